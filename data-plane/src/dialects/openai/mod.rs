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
    total_tokens: Option<u64>,
    /// Cache reads, as some providers write them beside or in place of the details.
    #[serde(default)]
    cached_tokens: Option<u64>,
    /// The same, of others.
    #[serde(default)]
    prompt_cache_hit_tokens: Option<u64>,
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
                && details.cache_write_tokens.unwrap_or(0) == counts.cache_write()
        });
        let completion = self.completion_tokens_details.as_ref();
        prompt && completion.is_none_or(|d| d.reasoning_tokens.unwrap_or(0) == counts.output_reasoning)
    }

    /// Disjoint counts: in this dialect totals include their details. `None` when it counts nothing at all.
    ///
    /// Some providers leave hidden reasoning out of `completion_tokens`, and some tell it in no place of its own: `total_tokens` gives it
    /// away, being larger than the prompt and the visible completion together. Others leave the cache out of `prompt_tokens`: then it is
    /// larger by just that.
    pub(crate) fn counts(&self) -> Option<TokenCounts> {
        if self.prompt_tokens.is_none() && self.completion_tokens.is_none() {
            return None;
        }
        let prompt = self.prompt_tokens.unwrap_or(0);
        let details = self.prompt_tokens_details.as_ref();
        let read = details
            .and_then(|d| d.cached_tokens)
            .or(self.cached_tokens)
            .or(self.prompt_cache_hit_tokens);
        let write = details.and_then(|d| d.cache_write_tokens).unwrap_or(0);
        let cached = read.unwrap_or(0).saturating_add(write);
        let completion = self.completion_tokens.unwrap_or(0);
        let apart = prompt.saturating_add(completion).saturating_add(cached);
        let prompt = if cached > 0 && self.completion_tokens.is_some() && self.total_tokens == Some(apart) {
            prompt.saturating_add(cached)
        } else {
            prompt
        };
        let read = read.unwrap_or(0).min(prompt);
        let write = write.min(prompt - read);
        let (output, output_reasoning) = self.completion(prompt);
        Some(TokenCounts {
            input: prompt - read - write,
            input_cache_read: read,
            input_cache_write: write,
            input_cache_write_1h: 0,
            output,
            output_reasoning,
        })
    }

    /// Visible and hidden completion tokens.
    fn completion(&self, prompt: u64) -> (u64, u64) {
        let told = self.completion_tokens_details.as_ref();
        let told = told.and_then(|d| d.reasoning_tokens).unwrap_or(0);
        let total = self.total_tokens.unwrap_or(0);
        let completion = self.completion_tokens.unwrap_or(total.saturating_sub(prompt));
        let left_out = total.saturating_sub(prompt.saturating_add(completion));
        if left_out > 0 && (told == 0 || told == left_out) {
            return (completion, left_out);
        }
        let reasoning = told.min(completion);
        (completion - reasoning, reasoning)
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

    #[test]
    fn a_total_tells_what_other_counts_leave_out() {
        for (json, [input, read, output, reasoning]) in [
            (
                r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":180}"#,
                [100, 0, 50, 30],
            ),
            (
                r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":5150,
                    "prompt_tokens_details":{"cached_tokens":5000}}"#,
                [100, 5_000, 50, 0],
            ),
            (
                r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":180,
                    "prompt_tokens_details":{"cached_tokens":40}}"#,
                [60, 40, 50, 30],
            ),
            (r#"{"prompt_tokens":20,"total_tokens":500}"#, [20, 0, 480, 0]),
            (r#"{"prompt_tokens":20}"#, [20, 0, 0, 0]),
        ] {
            let counts = serde_json::from_str::<Usage>(json).unwrap().counts().unwrap();
            let found = [
                counts.input,
                counts.input_cache_read,
                counts.output,
                counts.output_reasoning,
            ];
            assert_eq!(found, [input, read, output, reasoning], "{json}");
        }
    }
}
