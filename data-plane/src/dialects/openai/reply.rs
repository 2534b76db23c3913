//! A whole answer: passed on as it came, but for the model's name and the usage object, after one borrowed pass that proves it is an
//! answer and meters it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

use super::chunk::{even_null, naming};
use super::{Usage, faults};
use crate::dialects::slices::place;
use crate::dialects::{Reply, ReplyFault, Tally};

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default, deserialize_with = "even_null")]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

/// Reads an answer. `model`: as the caller knows it.
pub fn read(body: Bytes, model: &str) -> Result<Reply, ReplyFault> {
    let parsed: Body<'_> = serde_json::from_slice(&body).map_err(|_| ReplyFault::Garbled)?;
    if let Some(error) = parsed.error {
        return Err(ReplyFault::Error(faults::inside(error)));
    }
    let choices = parsed.choices.ok_or(ReplyFault::Garbled)?;
    let length = |raw: Option<&RawValue>| raw.map_or(0, |raw| raw.get().len().saturating_sub(2) as u64);
    let texts = choices.iter().filter_map(|choice| choice.message.as_ref());
    let tally = Tally {
        // Counts that cannot be read do not spoil an answer: it is estimated, as a stream's would be.
        usage: parsed
            .usage
            .and_then(|usage| serde_json::from_str::<Usage>(usage.get()).ok()?.counts()),
        usage_is_final: true,
        text_bytes: texts
            .map(|m| {
                [m.content, m.reasoning, m.reasoning_content, m.tool_calls]
                    .into_iter()
                    .map(|raw| length(raw.filter(|raw| raw.get() != "null")))
                    .sum::<u64>()
            })
            .sum(),
        finish_reason: choices
            .iter()
            .find_map(|choice| choice.finish_reason.as_deref().map(str::to_owned)),
    };
    let model = serde_json::to_vec(model).expect("text serializes").into();
    let named = naming(&body, parsed.model, &model);
    let usage = parsed
        .usage
        .and_then(|usage| place(&body, usage.get().as_bytes()));
    let end = memchr::memrchr(b'}', &body).ok_or(ReplyFault::Garbled)?;
    Ok(Reply {
        usage: usage.unwrap_or(end..end),
        model: named,
        body,
        tally,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::usage::Billed;
    use tollway_shared::money::NanoUsd;
    use tollway_shared::tokens::TokenCounts;

    #[test]
    fn an_answer_is_metered() {
        let body = Bytes::from_static(
            br#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hey"},"finish_reason":"stop"}],
                "usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
        );
        let reply = read(body.clone(), "a/b").unwrap();
        assert_eq!(reply.body, body);
        assert_eq!(reply.tally.usage.map(|u| (u.input, u.output)), Some((3, 1)));
        assert_eq!(reply.tally.text_bytes, 3);
        assert_eq!(reply.tally.finish_reason.as_deref(), Some("stop"));
    }

    #[test]
    fn only_the_models_name_and_the_usage_object_change() {
        const CHOICES: &str = r#""choices": [{"message":{"content":"\"model\": \"m\""}}]"#;
        const OURS: &str = r#"{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":0}"#;
        for (theirs, estimated, ours) in [
            (
                r#"{"usage": {"prompt_tokens":3,"completion_tokens":1,"x":[1]},CHOICES , "model":"m"}"#,
                false,
                r#"{"usage": OURS,"x":[1],"cost":0.000000007},CHOICES , "model":"a/b"}"#,
            ),
            (
                "{ \"model\":\"a/b\",CHOICES}\n",
                true,
                "{ \"model\":\"a/b\",CHOICES,\"usage\":OURS,\"cost\":0.000000007,\"estimated\":true}}\n",
            ),
            (
                r#"{"model":null,CHOICES,"usage":null}"#,
                true,
                r#"{"model":"a/b",CHOICES,"usage":OURS,"cost":0.000000007,"estimated":true}}"#,
            ),
            (
                r#"{CHOICES,"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
                true,
                r#"{"model":"a/b",CHOICES,"usage":OURS,"cost":0.000000007,"estimated":true}}"#,
            ),
        ] {
            let whole = |text: &str| text.replace("CHOICES", CHOICES).replace("OURS", OURS);
            let reply = read(whole(theirs).into(), "a/b").unwrap();
            let billed = Billed {
                tokens: TokenCounts {
                    input: 3,
                    output: 1,
                    ..TokenCounts::default()
                },
                estimated,
                cost: NanoUsd(7),
            };
            assert_eq!(reply.priced(&billed).to_bytes(), whole(ours), "{theirs}");
        }
    }

    #[test]
    fn counts_that_cannot_be_read_leave_the_answer_whole() {
        let body = Bytes::from_static(
            br#"{"choices":[{"message":{"content":"hey"}}],"usage":{"prompt_tokens":-5,"completion_tokens":"x"}}"#,
        );
        let reply = read(body.clone(), "a/b").unwrap();
        assert_eq!(
            (reply.body, reply.tally.usage, reply.tally.text_bytes),
            (body, None, 3)
        );
    }

    #[test]
    fn what_is_not_an_answer_is_told_apart() {
        assert_eq!(
            read(Bytes::from_static(b"<html>"), "a/b"),
            Err(ReplyFault::Garbled)
        );
        assert_eq!(read(Bytes::from_static(b"{}"), "a/b"), Err(ReplyFault::Garbled));
        let error = read(
            Bytes::from_static(br#"{"error":{"message":"no","code":503}}"#),
            "a/b",
        );
        assert!(matches!(error, Err(ReplyFault::Error(e)) if e.status == Some(503) && e.message == "no"));
    }
}
