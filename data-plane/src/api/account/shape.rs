//! Numbers as OpenRouter writes them: dollars as exact decimals that are JSON numbers, without an exponent and without floats.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tollway_shared::money::NanoUsd;

/// Nano-dollars, written as a number of dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(pub i64);

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = NanoUsd(self.0).to_string();
        RawValue::from_string(text)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

/// What every answer is wrapped in.
#[derive(Debug, Serialize)]
pub struct Data<T> {
    /// The answer.
    pub data: T,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_exact_numbers() {
        for (nano, text) in [
            (0, "0"),
            (12_100, "0.0000121"),
            (-1, "-0.000000001"),
            (i64::MAX, "9223372036.854775807"),
        ] {
            assert_eq!(serde_json::to_string(&Usd(nano)).unwrap(), text);
        }
    }
}
