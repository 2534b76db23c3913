//! Anthropic messages, translated from and to OpenAI chat completions.

pub mod faults;
pub mod reply;
pub mod request;
pub mod stream;
mod tools;
mod turns;

use serde::{Deserialize, Serialize};
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
    output_tokens: Option<u64>,
}

impl Usage {
    /// Takes over what a later event says.
    pub(crate) fn merge(&mut self, later: &Self) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.cache_creation_input_tokens = later
            .cache_creation_input_tokens
            .or(self.cache_creation_input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
    }

    /// The counts: this dialect's kinds are disjoint already. Thinking is part of `output_tokens` and not told apart.
    pub(crate) fn counts(&self) -> TokenCounts {
        TokenCounts {
            input: self.input_tokens.unwrap_or(0),
            input_cache_read: self.cache_read_input_tokens.unwrap_or(0),
            input_cache_write: self.cache_creation_input_tokens.unwrap_or(0),
            output: self.output_tokens.unwrap_or(0),
            output_reasoning: 0,
        }
    }
}

/// The usage object that callers see.
#[derive(Debug, Serialize)]
pub(crate) struct UsageOut {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetailsOut,
}

#[derive(Debug, Serialize)]
struct PromptDetailsOut {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

impl From<TokenCounts> for UsageOut {
    fn from(counts: TokenCounts) -> Self {
        Self {
            prompt_tokens: counts.prompt(),
            completion_tokens: counts.completion(),
            total_tokens: counts.prompt().saturating_add(counts.completion()),
            prompt_tokens_details: PromptDetailsOut {
                cached_tokens: counts.input_cache_read,
                cache_write_tokens: counts.input_cache_write,
            },
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
