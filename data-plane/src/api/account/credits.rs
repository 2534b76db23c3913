//! `GET /v1/credits`: what the organization got, and what it used up.

use serde::Serialize;
use tollway_proto::push::v1::Credits;

use super::shape::{Data, Usd};

/// The balance is the difference.
#[derive(Debug, Serialize)]
pub struct CreditsOut {
    total_credits: Usd,
    total_usage: Usd,
}

/// The answer's body.
pub fn body(credits: &Credits) -> Data<CreditsOut> {
    Data {
        data: CreditsOut {
            total_credits: Usd(credits.total),
            total_usage: Usd(credits.used),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_two_numbers_of_dollars() {
        let body = body(&Credits {
            total: 25_000_000_000,
            used: 1_500_000_001,
        });
        let json = serde_json::to_string(&body).unwrap();
        assert_eq!(json, r#"{"data":{"total_credits":25,"total_usage":1.500000001}}"#);
    }
}
