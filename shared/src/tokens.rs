//! Token counts by kind. The kinds are disjoint, so their sum is the total and nothing is billed twice.

use serde::{Deserialize, Serialize};

/// How many tokens of each kind one attempt used, as the provider counts them.
///
/// Disjoint: `input` excludes all cache kinds, `output` excludes `output_reasoning`. Adapters do the subtraction for
/// dialects that report totals with subsets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Prompt tokens read at full price.
    pub input: u64,
    /// Prompt tokens read from the provider's cache.
    pub input_cache_read: u64,
    /// Prompt tokens written to the provider's cache, without those of the next kind.
    pub input_cache_write: u64,
    /// Prompt tokens written to the provider's cache to be kept for an hour, where that has a price of its own.
    #[serde(default)]
    pub input_cache_write_1h: u64,
    /// Completion tokens the caller can see.
    pub output: u64,
    /// Completion tokens spent on hidden reasoning.
    pub output_reasoning: u64,
}

impl TokenCounts {
    /// All prompt tokens.
    pub fn prompt(&self) -> u64 {
        self.input
            .saturating_add(self.input_cache_read)
            .saturating_add(self.cache_write())
    }

    /// All prompt tokens written to the provider's cache.
    pub fn cache_write(&self) -> u64 {
        self.input_cache_write.saturating_add(self.input_cache_write_1h)
    }

    /// All completion tokens.
    pub fn completion(&self) -> u64 {
        self.output.saturating_add(self.output_reasoning)
    }

    /// The same with a completion of at least this many tokens. Those that are missing count as visible ones.
    #[must_use]
    pub fn with_completion_of_at_least(self, completion: u64) -> Self {
        let missing = completion.saturating_sub(self.completion());
        Self {
            output: self.output.saturating_add(missing),
            ..self
        }
    }

    /// All tokens of every kind.
    pub fn total(&self) -> u64 {
        self.prompt().saturating_add(self.completion())
    }

    /// Adds another attempt's or event's counts. Saturates: 2^64 tokens are not reachable in one sum.
    pub fn add(&mut self, other: &Self) {
        self.input = self.input.saturating_add(other.input);
        self.input_cache_read = self.input_cache_read.saturating_add(other.input_cache_read);
        self.input_cache_write = self.input_cache_write.saturating_add(other.input_cache_write);
        self.input_cache_write_1h = self
            .input_cache_write_1h
            .saturating_add(other.input_cache_write_1h);
        self.output = self.output.saturating_add(other.output);
        self.output_reasoning = self.output_reasoning.saturating_add(other.output_reasoning);
    }
}
