//! A whole answer: passed on as it came, after one borrowed pass that proves it is an answer and meters it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

use super::{Usage, faults};
use crate::dialects::{Reply, ReplyFault, Tally};

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
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

/// Reads an answer.
pub fn read(body: Bytes) -> Result<Reply, ReplyFault> {
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
    Ok(Reply { body, tally })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_metered_and_passed_on_untouched() {
        let body = Bytes::from_static(
            br#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hey"},"finish_reason":"stop"}],
                "usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
        );
        let reply = read(body.clone()).unwrap();
        assert_eq!(reply.body, body);
        assert_eq!(reply.tally.usage.map(|u| (u.input, u.output)), Some((3, 1)));
        assert_eq!(reply.tally.text_bytes, 3);
        assert_eq!(reply.tally.finish_reason.as_deref(), Some("stop"));
    }

    #[test]
    fn counts_that_cannot_be_read_leave_the_answer_whole() {
        let body = Bytes::from_static(
            br#"{"choices":[{"message":{"content":"hey"}}],"usage":{"prompt_tokens":-5,"completion_tokens":"x"}}"#,
        );
        let reply = read(body.clone()).unwrap();
        assert_eq!(
            (reply.body, reply.tally.usage, reply.tally.text_bytes),
            (body, None, 3)
        );
    }

    #[test]
    fn what_is_not_an_answer_is_told_apart() {
        assert_eq!(read(Bytes::from_static(b"<html>")), Err(ReplyFault::Garbled));
        assert_eq!(read(Bytes::from_static(b"{}")), Err(ReplyFault::Garbled));
        let error = read(Bytes::from_static(br#"{"error":{"message":"no","code":503}}"#));
        assert!(matches!(error, Err(ReplyFault::Error(e)) if e.status == Some(503) && e.message == "no"));
    }
}
