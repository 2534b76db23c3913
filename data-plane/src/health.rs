//! What this core has seen of its endpoints lately. PURE: time is an argument.
//!
//! An endpoint is ailing when at least half of its attempts in the last half minute failed, and at least three did: one failure
//! among many answers is noise, and moving all traffic for it would be an outage of our own. Ailing ones go behind their peers; none
//! is taken out, because the only endpoint of a model is better tried than not.

use std::collections::HashMap;

use tollway_shared::fault::AttemptFault;
use tollway_shared::ids::EndpointId;
use tollway_shared::time::UnixMillis;

/// What counts is the running half window and the one before it, so a failure is held against an endpoint for 15 to 30 s.
pub const HALF_WINDOW_MS: i64 = 15_000;
/// Fewer failures than this prove nothing.
pub const FAILURES_MIN: u32 = 3;

/// Attempts of one endpoint in one half window.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    good: u32,
    failed: u32,
}

/// The running half window, by its number since 1970, and the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    number: i64,
    now: Count,
    before: Count,
}

impl Window {
    fn at(mut self, now: UnixMillis) -> Self {
        let number = now.0.div_euclid(HALF_WINDOW_MS);
        match number - self.number {
            i64::MIN..=0 => {} // the clock went back: keep counting where we are
            1 => (self.before, self.now) = (self.now, Count::default()),
            2.. => (self.before, self.now) = (Count::default(), Count::default()),
        }
        self.number = self.number.max(number);
        self
    }

    fn is_ailing(&self) -> bool {
        let failed = self.now.failed.saturating_add(self.before.failed);
        let good = self.now.good.saturating_add(self.before.good);
        failed >= FAILURES_MIN && failed >= good
    }
}

/// Recent attempts by endpoint.
#[derive(Debug, Default)]
pub struct Health {
    windows: HashMap<EndpointId, Window>,
}

impl Health {
    /// Whether the endpoint fails too often.
    pub fn ailing(&self, endpoint: &EndpointId, now: UnixMillis) -> bool {
        self.windows
            .get(endpoint)
            .is_some_and(|window| window.at(now).is_ailing())
    }

    /// Notes how an attempt ended.
    pub fn note(&mut self, endpoint: &EndpointId, fault: Option<AttemptFault>, now: UnixMillis) {
        if fault.is_some_and(|fault| !counts(fault)) {
            return;
        }
        if !self.windows.contains_key(endpoint) {
            self.windows.insert(endpoint.clone(), Window::default());
        }
        let Some(window) = self.windows.get_mut(endpoint) else {
            return;
        };
        *window = window.at(now);
        let count = if fault.is_some() {
            &mut window.now.failed
        } else {
            &mut window.now.good
        };
        *count = count.saturating_add(1);
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
        | AttemptFault::CutShort
        | AttemptFault::Garbled
        | AttemptFault::Credential => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Option<AttemptFault> = Some(AttemptFault::Status(503));

    fn after(notes: &[(Option<AttemptFault>, i64)]) -> (Health, EndpointId) {
        let (mut health, endpoint) = (Health::default(), EndpointId::trusted("e"));
        for (fault, at) in notes {
            health.note(&endpoint, *fault, UnixMillis(*at));
        }
        (health, endpoint)
    }

    #[test]
    fn three_failures_that_are_half_of_all_make_an_endpoint_ail() {
        let is_ailing = |notes: &[(Option<AttemptFault>, i64)]| {
            let (health, endpoint) = after(notes);
            health.ailing(&endpoint, UnixMillis(10))
        };
        assert!(!is_ailing(&[(FAILED, 1), (FAILED, 2)]), "two prove nothing");
        assert!(is_ailing(&[(FAILED, 1), (FAILED, 2), (FAILED, 3)]));
        assert!(is_ailing(&[
            (None, 0),
            (FAILED, 1),
            (None, 1),
            (FAILED, 2),
            (None, 2),
            (FAILED, 3)
        ]));
        let mut mostly_good = vec![(None, 0); 4];
        mostly_good.extend([(FAILED, 1); 3]);
        assert!(!is_ailing(&mostly_good), "three among seven are noise");
        let refused = Some(AttemptFault::Status(400));
        assert!(
            !is_ailing(&[(refused, 1); 5]),
            "a wrong request says nothing about the endpoint"
        );
    }

    #[test]
    fn failures_are_forgotten_after_half_a_minute_and_a_clock_that_goes_back_does_no_harm() {
        let (health, endpoint) = after(&[(FAILED, 1), (FAILED, 2), (FAILED, 3)]);
        assert!(health.ailing(&endpoint, UnixMillis(2 * HALF_WINDOW_MS - 1)));
        assert!(!health.ailing(&endpoint, UnixMillis(2 * HALF_WINDOW_MS)));
        assert!(health.ailing(&endpoint, UnixMillis(-5 * HALF_WINDOW_MS)));
    }
}
