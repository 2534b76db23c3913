//! How often it is written down how far a streamed answer has got. PURE: time is an argument.
//!
//! What is not written when the node dies is not billed, so records must be close together measured by the answer; each is a write(2),
//! so they must be far apart measured by the clock. Hence two bounds, of which the earlier one counts:
//! - [`TOKENS`] more: a provider that sends a lot at once costs one record per so many tokens, and no crash loses more than these;
//! - [`EVERY`], if the answer has grown by a [`SHARE`]th meanwhile: the usual 50 to 200 tokens a second are known to 1 to 4 tokens
//!   while an answer is short, and a long one does not write more than its size justifies.
//!
//! A stream of 500 tokens thus writes about 150 records of 60 bytes, one of 4,000 not over 300.

use std::time::Duration;

use tokio::time::Instant;

/// So many more tokens are always written down.
pub(super) const TOKENS: u64 = 64;
/// Fewer than that wait so long.
pub(super) const EVERY: Duration = Duration::from_millis(20);
/// And until they are one part in so many of what the answer has.
pub(super) const SHARE: u64 = 64;

/// What was last written down of one answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    at: Instant,
    tokens: u64,
}

impl Pace {
    /// Nothing yet.
    ///
    /// - `at`: when the answer was asked for: its first tokens are due at once.
    pub(super) fn new(at: Instant) -> Self {
        Self { at, tokens: 0 }
    }

    /// Whether an answer of so many tokens is to be written down now.
    pub(super) fn is_due(&self, now: Instant, tokens: u64) -> bool {
        let more = tokens.saturating_sub(self.tokens);
        more >= TOKENS
            || (more > 0
                && more.saturating_mul(SHARE) >= self.tokens
                && now.saturating_duration_since(self.at) >= EVERY)
    }

    /// It was written down.
    pub(super) fn wrote(&mut self, now: Instant, tokens: u64) {
        *self = Self { at: now, tokens };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streams an answer: how often it is written, and the most tokens that were ever not.
    fn streamed(tokens: u64, per_event: u64, event_every: Duration) -> (u64, u64) {
        let mut now = Instant::now();
        let (mut pace, mut writes, mut most) = (Pace::new(now), 0, 0);
        for so_far in (1..=tokens / per_event).map(|event| event * per_event) {
            now += event_every;
            if pace.is_due(now, so_far) {
                pace.wrote(now, so_far);
                writes += 1;
            }
            most = most.max(so_far - pace.tokens);
        }
        (writes, most)
    }

    #[test]
    fn records_are_close_together_in_tokens_and_few_in_time() {
        let ms = Duration::from_millis;
        for (tokens, per_event, event_every, writes, most) in [
            // 100 tokens a second: 2 tokens apart, then a 64th of the answer.
            (500, 1, ms(10), 140..=160, 7),
            (4_000, 1, ms(10), 270..=300, TOKENS - 1),
            // As fast as a socket can: by tokens alone.
            (4_000, 1, ms(0), 62..=62, TOKENS - 1),
            (4_000, 40, ms(0), 50..=50, 40),
            // Slow: every event, as it is the only one in a while.
            (60, 1, ms(200), 60..=60, 0),
        ] {
            let (wrote, lost) = streamed(tokens, per_event, event_every);
            assert!(
                writes.contains(&wrote),
                "{tokens} by {per_event} every {event_every:?}: {wrote}"
            );
            assert!(
                lost <= most,
                "{tokens} by {per_event} every {event_every:?}: {lost}"
            );
        }
    }
}
