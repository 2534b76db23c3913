//! How long the answers of an endpoint usually are, as this core has seen it lately: what is assumed of an answer that nobody
//! heard the end of although its provider bills the whole of it. PURE: time is an argument.
//!
//! A request that is cut off in the middle is more often a long one: it had more time to be hit. The mean is therefore weighted by how
//! long each answer took, which makes it right for whatever runs at an arbitrary moment.

use std::collections::HashMap;

use tollway_shared::ids::EndpointId;

/// Time spent answering after which what was seen before counts half.
const MEMORY_MS: u64 = 30 * 60 * 1_000;
/// An answer that took longer counts as one that took so long.
const ANSWER_MS_MAX: u64 = MEMORY_MS / 8;

/// Most endpoints that are remembered: ten for each of a thousand models.
const ENDPOINTS_MAX: usize = 10_000;

/// Answers of one endpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    token_ms: u64,
    ms: u64,
}

impl Seen {
    fn age(&mut self) {
        (self.token_ms, self.ms) = (self.token_ms / 2, self.ms / 2);
    }
}

/// What is known, by endpoint.
#[derive(Debug, Default)]
pub struct Lengths(HashMap<EndpointId, Seen>);

impl Lengths {
    /// Notes an answer that came whole.
    ///
    /// - `tokens`: its completion. `ms`: how long it took.
    pub fn note(&mut self, endpoint: &EndpointId, tokens: u64, ms: u64) {
        let ms = ms.clamp(1, ANSWER_MS_MAX);
        if !self.0.contains_key(endpoint) {
            if self.0.len() >= ENDPOINTS_MAX {
                self.make_room();
            }
            self.0.insert(endpoint.clone(), Seen::default());
        }
        let Some(seen) = self.0.get_mut(endpoint) else {
            return;
        };
        seen.token_ms = seen.token_ms.saturating_add(tokens.saturating_mul(ms));
        seen.ms += ms;
        if seen.ms >= MEMORY_MS {
            seen.age();
        }
    }

    /// Forgets an endpoint, the one that least is known of. What all know is worth half from then on, so that those which answer no
    /// more are the least known ones in the end.
    fn make_room(&mut self) {
        self.0.values_mut().for_each(Seen::age);
        let least = self.0.iter().min_by_key(|(_, seen)| seen.ms);
        if let Some(endpoint) = least.map(|(endpoint, _)| endpoint.clone()) {
            self.0.remove(&endpoint);
        }
    }

    /// The completion tokens of a usual answer; 0 where none was seen.
    pub fn usual(&self, endpoint: &EndpointId) -> u64 {
        self.0
            .get(endpoint)
            .map_or(0, |seen| seen.token_ms / seen.ms.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_at_any_moment_has_the_usual_length() {
        let (endpoint, mut lengths) = (EndpointId::trusted("e"), Lengths::default());
        assert_eq!(lengths.usual(&endpoint), 0);
        // At any moment nine in ten running answers are the long one.
        for _ in 0..10 {
            lengths.note(&endpoint, 100, 1_000);
            lengths.note(&endpoint, 900, 9_000);
        }
        assert_eq!(lengths.usual(&endpoint), 820);
        assert_eq!(lengths.usual(&EndpointId::trusted("other")), 0);
    }

    #[test]
    fn what_was_seen_long_ago_is_forgotten_and_one_answer_is_never_all_that_counts() {
        let (endpoint, mut lengths) = (EndpointId::trusted("e"), Lengths::default());
        for _ in 0..200 {
            lengths.note(&endpoint, 1_000, 60_000);
        }
        lengths.note(&endpoint, u64::MAX / ANSWER_MS_MAX, u64::MAX);
        assert!(lengths.usual(&endpoint) > 1_000);
        for _ in 0..1_000 {
            lengths.note(&endpoint, 10, 60_000);
        }
        assert_eq!(lengths.usual(&endpoint), 10);
    }

    #[test]
    fn endpoints_that_answer_no_more_make_room_for_new_ones() {
        let (busy, mut lengths) = (EndpointId::trusted("busy"), Lengths::default());
        for n in 0..ENDPOINTS_MAX + 30 {
            lengths.note(&EndpointId::trusted(format!("e{n}")), 10, 60_000);
            lengths.note(&busy, 100, 60_000);
        }
        assert_eq!((lengths.0.len(), lengths.usual(&busy)), (ENDPOINTS_MAX, 100));
        assert!(lengths.usual(&EndpointId::trusted("e0")) <= 10);
    }
}
