//! The usage object that callers see: the figures that are billed, and what the provider's own object says besides.
//!
//! A provider's idea of money (`cost` and its details, of a provider that resells) is between it and the operator: it is taken out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use serde_json::value::RawValue;
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;

use super::openai;

/// Members that are written here, whatever the provider says in them.
const OURS: [&str; 7] = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cost",
    "cost_details",
    "is_byok",
    "estimated",
];

/// What an answer is billed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Billed {
    /// The counts.
    pub tokens: TokenCounts,
    /// Whether they are our estimate.
    pub estimated: bool,
    /// What they cost.
    pub cost: NanoUsd,
}

/// The object. `theirs`: the provider's own, when it gave one; of an estimate nothing in it is kept.
pub fn written(theirs: Option<&[u8]>, billed: &Billed) -> Bytes {
    let counts = &billed.tokens;
    let theirs = theirs.filter(|_| !billed.estimated).unwrap_or(b"{}");
    let mut members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(theirs).unwrap_or_default();
    members.retain(|key, _| !OURS.contains(&&**key));
    // Details of a provider that contradicts itself are not what is billed.
    if serde_json::from_slice(theirs).is_ok_and(|usage: openai::Usage| !usage.details_are(counts)) {
        members.remove("prompt_tokens_details");
        members.remove("completion_tokens_details");
    }
    let total = counts.prompt().saturating_add(counts.completion());
    let mut out = String::with_capacity(256);
    write!(
        out,
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{total}"#,
        counts.prompt(),
        counts.completion()
    )
    .expect("memory takes it");
    if !members.contains_key("prompt_tokens_details") {
        let (read, write) = (counts.input_cache_read, counts.cache_write());
        write!(
            out,
            r#","prompt_tokens_details":{{"cached_tokens":{read},"cache_write_tokens":{write}}}"#
        )
        .expect("memory takes it");
    }
    if counts.output_reasoning > 0 && !members.contains_key("completion_tokens_details") {
        let reasoning = counts.output_reasoning;
        write!(
            out,
            r#","completion_tokens_details":{{"reasoning_tokens":{reasoning}}}"#
        )
        .expect("memory takes it");
    }
    for (key, value) in &members {
        let key = serde_json::to_string(key).expect("text serializes");
        write!(out, ",{key}:{}", value.get()).expect("memory takes it");
    }
    write!(out, r#","cost":{}"#, billed.cost).expect("memory takes it");
    out.push_str(if billed.estimated {
        r#","estimated":true}"#
    } else {
        "}"
    });
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(theirs: Option<&str>, estimated: bool, expected: &str) {
        let billed = Billed {
            tokens: TokenCounts {
                input: 3,
                input_cache_read: 4,
                output: 2,
                ..TokenCounts::default()
            },
            estimated,
            cost: NanoUsd(12_100),
        };
        assert_eq!(
            written(theirs.map(str::as_bytes), &billed),
            expected,
            "{theirs:?}"
        );
    }

    #[test]
    fn figures_are_the_billed_ones_and_the_rest_is_the_providers() {
        const DETAILS: &str = r#""prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":0}"#;
        let counts = r#"{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9"#;
        let ours = format!("{counts},{DETAILS}");
        check(None, false, &format!(r#"{ours},"cost":0.0000121}}"#));
        check(
            None,
            true,
            &format!(r#"{ours},"cost":0.0000121,"estimated":true}}"#),
        );
        check(
            Some(
                r#"{"total_tokens":99,"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":1},"cost":9.5,"cost_details":{"x":1},"is_byok":true,"queue_s":0.1}"#,
            ),
            false,
            &format!(
                r#"{counts},"prompt_tokens_details":{{"cached_tokens":4,"audio_tokens":1}},"queue_s":0.1,"cost":0.0000121}}"#
            ),
        );
        let contradiction =
            r#"{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":90}}"#;
        check(
            Some(contradiction),
            false,
            &format!(r#"{ours},"cost":0.0000121}}"#),
        );
        check(
            Some(r#"{"prompt_tokens":7,"queue_s":0.1}"#),
            true,
            &format!(r#"{ours},"cost":0.0000121,"estimated":true}}"#),
        );
    }
}
