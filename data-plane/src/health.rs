//! What this core has seen of its endpoints lately. PURE: time is an argument.
//!
//! A failure is remembered for a short while and moves an endpoint behind its peers; it never takes one out, because the only
//! endpoint of a model is better tried than not.

use std::collections::HashMap;

use tollway_shared::fault::AttemptFault;
use tollway_shared::ids::EndpointId;
use tollway_shared::time::UnixMillis;

/// How long a failure is held against an endpoint.
pub const AILING_MS: i64 = 30_000;

/// Recent failures by endpoint.
#[derive(Debug, Default)]
pub struct Health {
    until: HashMap<EndpointId, UnixMillis>,
}

impl Health {
    /// Whether the endpoint failed lately.
    pub fn ailing(&self, endpoint: &EndpointId, now: UnixMillis) -> bool {
        self.until.get(endpoint).is_some_and(|until| now < *until)
    }

    /// Notes how an attempt ended.
    pub fn note(&mut self, endpoint: &EndpointId, fault: Option<AttemptFault>, now: UnixMillis) {
        match fault {
            None => drop(self.until.remove(endpoint)),
            Some(fault) if counts(fault) => {
                self.until.insert(endpoint.clone(), now.plus_ms(AILING_MS));
            }
            Some(_) => {}
        }
    }
}

/// Whether a fault says something about the endpoint rather than about the request.
fn counts(fault: AttemptFault) -> bool {
    match fault {
        AttemptFault::Status(status) => status >= 500 || status == 429,
        AttemptFault::Connect
        | AttemptFault::Address
        | AttemptFault::Timeout
        | AttemptFault::Broken
        | AttemptFault::Garbled
        | AttemptFault::Credential => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_forgotten_after_a_while_or_after_a_success() {
        let (mut health, endpoint) = (Health::default(), EndpointId::trusted("e"));
        let at = UnixMillis;
        health.note(&endpoint, Some(AttemptFault::Status(400)), at(0));
        assert!(!health.ailing(&endpoint, at(0)));
        health.note(&endpoint, Some(AttemptFault::Status(503)), at(0));
        assert!(health.ailing(&endpoint, at(AILING_MS - 1)));
        assert!(!health.ailing(&endpoint, at(AILING_MS)));
        health.note(&endpoint, Some(AttemptFault::Connect), at(0));
        health.note(&endpoint, None, at(1));
        assert!(!health.ailing(&endpoint, at(2)));
    }
}
