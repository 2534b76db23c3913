//! Anthropic messages, translated from and to OpenAI chat completions.

pub mod faults;
pub mod reply;
pub mod request;
pub mod stream;
mod tools;
mod turns;

use serde::Deserialize;
use tollway_shared::tokens::TokenCounts;

/// The usage object. Fields that an event leaves out keep what an earlier one said.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation: Option<CacheCreation>,
    #[serde(default)]
    output_tokens: Option<u64>,
}

/// What `cache_creation_input_tokens` is the sum of.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct CacheCreation {
    #[serde(default)]
    ephemeral_5m_input_tokens: Option<u64>,
    #[serde(default)]
    ephemeral_1h_input_tokens: Option<u64>,
}

impl Usage {
    /// Takes over what a later event says: its counts are of the whole message so far. Some servers repeat the prompt's as zeros at the
    /// end, which takes nothing back.
    pub(crate) fn merge(&mut self, later: &Self) {
        if later.counts().prompt() > 0 {
            self.input_tokens = later.input_tokens.or(self.input_tokens);
            self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
            self.cache_creation_input_tokens = later
                .cache_creation_input_tokens
                .or(self.cache_creation_input_tokens);
            self.cache_creation = later.cache_creation.or(self.cache_creation);
        }
        self.output_tokens = later.output_tokens.or(self.output_tokens);
    }

    /// The counts: this dialect's kinds are disjoint already, but for what the cache keeps for an hour, which is part of all that was
    /// written to it. Thinking is part of `output_tokens` and not told apart.
    pub(crate) fn counts(&self) -> TokenCounts {
        let lives = self.cache_creation.unwrap_or_default();
        let hour = lives.ephemeral_1h_input_tokens.unwrap_or(0);
        let lives = hour.saturating_add(lives.ephemeral_5m_input_tokens.unwrap_or(0));
        let written = self.cache_creation_input_tokens.unwrap_or(lives);
        TokenCounts {
            input: self.input_tokens.unwrap_or(0),
            input_cache_read: self.cache_read_input_tokens.unwrap_or(0),
            input_cache_write: written.saturating_sub(hour),
            input_cache_write_1h: hour.min(written),
            output: self.output_tokens.unwrap_or(0),
            output_reasoning: 0,
        }
    }
}

/// The caller's word for a stop reason.
pub(crate) fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}
