//! How many tokens an endpoint's provider makes of so many bytes, learned by this core from the answers that the provider counted: prompts
//! and completions apart. PURE.
//!
//! Bytes per token differ by a factor of three between models, languages and code, so one divisor for all is wrong for most. A ratio is of
//! sums, tokens to bytes, so that estimates are right in sum and long texts count for more than short ones. Hidden reasoning is
//! part of a completion: what is seen of an answer stands for what is not.

use std::collections::HashMap;

use tollway_shared::ids::EndpointId;

/// UTF-8 bytes of text per token, where nothing else is known.
pub const BYTES_PER_TOKEN: u64 = 4;
/// What is believed before anything is known weighs as much as so many bytes: one short answer changes little.
const PRIOR_BYTES: u64 = 64;
/// Bytes after which what was seen before counts half.
const MEMORY_BYTES: u64 = 8 << 20;
/// A longer text counts as one of so many bytes, so that none is ever all that counts.
const TEXT_BYTES_MAX: u64 = MEMORY_BYTES / 8;
/// A text of which the provider counts so many times as many tokens as expected, or as few, is a mistake or is not what was billed:
/// nothing is learned from it.
const FACTOR_MAX: u64 = 64;
/// Most endpoints that are remembered: ten for each of a thousand models.
const ENDPOINTS_MAX: usize = 10_000;

/// Tokens that were counted, to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    tokens: u64,
    bytes: u64,
}

impl Ratio {
    /// What is believed before anything is known.
    const PRIOR: Self = Self {
        tokens: PRIOR_BYTES / BYTES_PER_TOKEN,
        bytes: PRIOR_BYTES,
    };

    /// The tokens that so many bytes are expected to be. Rounded up, so that something is never nothing.
    pub fn tokens(&self, bytes: u64) -> u64 {
        let tokens = (u128::from(bytes) * u128::from(self.tokens)).div_ceil(u128::from(self.bytes.max(1)));
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    fn note(&mut self, tokens: u64, bytes: u64) {
        let plain = bytes.div_ceil(BYTES_PER_TOKEN);
        if tokens == 0
            || bytes == 0
            || tokens > plain.saturating_mul(FACTOR_MAX)
            || plain > tokens.saturating_mul(FACTOR_MAX)
        {
            return;
        }
        let counts = bytes.min(TEXT_BYTES_MAX);
        let share = u128::from(tokens) * u128::from(counts) / u128::from(bytes);
        self.tokens = self
            .tokens
            .saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        self.bytes += counts;
        if self.bytes >= MEMORY_BYTES {
            self.age();
        }
    }

    fn age(&mut self) {
        (self.tokens, self.bytes) = (self.tokens / 2, self.bytes / 2);
    }
}

/// What is known of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Of prompts.
    pub prompt: Ratio,
    /// Of completions.
    pub completion: Ratio,
}

impl Learned {
    /// Nothing is known.
    pub const PRIOR: Self = Self {
        prompt: Ratio::PRIOR,
        completion: Ratio::PRIOR,
    };

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        *self != Self::PRIOR
    }

    fn weight(&self) -> u64 {
        self.prompt.bytes + self.completion.bytes
    }

    fn age(&mut self) {
        self.prompt.age();
        self.completion.age();
    }
}

/// A text that was measured and counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// As the provider counts it.
    pub tokens: u64,
    /// As it was measured here; 0 where that says nothing.
    pub bytes: u64,
}

/// What is known, by endpoint.
#[derive(Debug, Default)]
pub struct Ratios(HashMap<EndpointId, Learned>);

impl Ratios {
    /// Notes an answer whose provider has counted it.
    pub fn note(&mut self, endpoint: &EndpointId, prompt: Counted, completion: Counted) {
        if !self.0.contains_key(endpoint) {
            if self.0.len() >= ENDPOINTS_MAX {
                self.make_room();
            }
            self.0.insert(endpoint.clone(), Learned::PRIOR);
        }
        if let Some(learned) = self.0.get_mut(endpoint) {
            learned.prompt.note(prompt.tokens, prompt.bytes);
            learned.completion.note(completion.tokens, completion.bytes);
        }
    }

    /// Forgets an endpoint, the one that least is known of. What all know is worth half from then on, so that those which answer no
    /// more are the least known ones in the end.
    fn make_room(&mut self) {
        self.0.values_mut().for_each(Learned::age);
        let least = self.0.iter().min_by_key(|(_, learned)| learned.weight());
        if let Some(endpoint) = least.map(|(endpoint, _)| endpoint.clone()) {
            self.0.remove(&endpoint);
        }
    }

    /// What is known of an endpoint; the prior where nothing is.
    pub fn of(&self, endpoint: &EndpointId) -> Learned {
        self.0.get(endpoint).copied().unwrap_or(Learned::PRIOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(tokens: u64, bytes: u64) -> Counted {
        Counted { tokens, bytes }
    }

    #[test]
    fn before_anything_is_known_a_token_is_four_bytes() {
        let learned = Ratios::default().of(&EndpointId::trusted("e"));
        assert!(!learned.is_known());
        for (bytes, tokens) in [(0, 0), (1, 1), (4, 1), (5, 2), (u64::MAX, u64::MAX / 4 + 1)] {
            assert_eq!(learned.prompt.tokens(bytes), tokens, "{bytes}");
        }
    }

    #[test]
    fn what_a_provider_counts_is_learned_apart_for_endpoints_prompts_and_completions() {
        let (endpoint, mut ratios) = (EndpointId::trusted("e"), Ratios::default());
        for bytes in (300..3_000).step_by(30) {
            ratios.note(&endpoint, counted(bytes / 3, bytes), counted(bytes / 6, bytes));
        }
        let learned = ratios.of(&endpoint);
        assert!(learned.is_known());
        assert_eq!(learned.prompt.tokens(30_000), 9_999);
        assert_eq!(learned.completion.tokens(30_000), 5_002);
        assert!(!ratios.of(&EndpointId::trusted("other")).is_known());
    }

    #[test]
    fn one_answer_is_never_all_that_counts_and_mistakes_count_nothing() {
        let (endpoint, mut ratios) = (EndpointId::trusted("e"), Ratios::default());
        let none = Counted::default();
        ratios.note(&endpoint, counted(1, 1), none);
        assert_eq!(ratios.of(&endpoint).prompt.tokens(4_000), 1_047);
        let before = ratios.of(&endpoint);
        for mistake in [
            counted(0, 4_000),
            counted(4_000, 0),
            counted(1_000_000, 4_000),
            counted(1, 4_000),
            counted(u64::MAX, 4_000),
        ] {
            ratios.note(&endpoint, mistake, mistake);
            assert_eq!(ratios.of(&endpoint), before, "{mistake:?}");
        }
        for _ in 0..10_000 {
            ratios.note(&endpoint, counted(1_000, 4_000), none);
        }
        ratios.note(&endpoint, counted(u64::MAX / 64, u64::MAX / 64), none);
        let tokens = ratios.of(&endpoint).prompt.tokens(4_000);
        assert!((1_000..2_000).contains(&tokens), "{tokens}");
    }

    #[test]
    fn what_was_learned_long_ago_is_forgotten() {
        let (endpoint, mut ratios) = (EndpointId::trusted("e"), Ratios::default());
        let none = Counted::default();
        for (tokens, expected) in [(2_000, 2_000), (500, 500)] {
            for _ in 0..40_000 {
                ratios.note(&endpoint, counted(tokens, 4_000), none);
            }
            let learned = ratios.of(&endpoint).prompt.tokens(4_000);
            assert!(learned.abs_diff(expected) <= 1, "{learned}");
        }
    }

    #[test]
    fn endpoints_that_answer_no_more_make_room_for_new_ones() {
        let (busy, mut ratios) = (EndpointId::trusted("busy"), Ratios::default());
        let text = counted(1_000, 2_000);
        for n in 0..ENDPOINTS_MAX + 30 {
            ratios.note(&EndpointId::trusted(format!("e{n}")), text, text);
            ratios.note(&busy, text, text);
        }
        assert_eq!(ratios.0.len(), ENDPOINTS_MAX);
        assert!(ratios.of(&busy).completion.tokens(2_000) > 990);
    }
}
