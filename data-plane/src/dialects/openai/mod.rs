//! OpenAI chat completions: what callers speak, and most servers.

mod chunk;
pub mod faults;
pub mod reply;
pub mod request;
pub mod restream;
pub mod stream;

use serde::Deserialize;
use tollway_shared::tokens::TokenCounts;

/// The usage object, as far as it is metered.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Default, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    cache_write_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl Usage {
    /// Whether its details, where it has any, are those of these counts.
    pub(crate) fn details_are(&self, counts: &TokenCounts) -> bool {
        let prompt = self.prompt_tokens_details.as_ref().is_none_or(|details| {
            details.cached_tokens.unwrap_or(0) == counts.input_cache_read
                && details.cache_write_tokens.unwrap_or(0) == counts.input_cache_write
        });
        let completion = self.completion_tokens_details.as_ref();
        prompt && completion.is_none_or(|d| d.reasoning_tokens.unwrap_or(0) == counts.output_reasoning)
    }

    /// Disjoint counts: in this dialect totals include their details. `None` when it counts nothing at all.
    pub(crate) fn counts(&self) -> Option<TokenCounts> {
        let prompt = self.prompt_tokens;
        let completion = self.completion_tokens;
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        let details = self.prompt_tokens_details.as_ref();
        let read = details.and_then(|d| d.cached_tokens).unwrap_or(0).min(prompt);
        let write = details
            .and_then(|d| d.cache_write_tokens)
            .unwrap_or(0)
            .min(prompt - read);
        let reasoning = self.completion_tokens_details.as_ref();
        let reasoning = reasoning
            .and_then(|d| d.reasoning_tokens)
            .unwrap_or(0)
            .min(completion);
        Some(TokenCounts {
            input: prompt - read - write,
            input_cache_read: read,
            input_cache_write: write,
            output: completion - reasoning,
            output_reasoning: reasoning,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_become_disjoint_counts() {
        let usage: Usage = serde_json::from_str(
            r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
                "prompt_tokens_details":{"cached_tokens":60,"cache_write_tokens":10},
                "completion_tokens_details":{"reasoning_tokens":20}}"#,
        )
        .unwrap();
        let counts = usage.counts().unwrap();
        assert_eq!(
            (counts.input, counts.input_cache_read, counts.input_cache_write),
            (30, 60, 10)
        );
        assert_eq!((counts.output, counts.output_reasoning), (30, 20));
        let nonsense: Usage =
            serde_json::from_str(r#"{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}"#)
                .unwrap();
        assert_eq!(nonsense.counts().unwrap().prompt(), 1);
        assert_eq!(Usage::default().counts(), None);
    }
}
