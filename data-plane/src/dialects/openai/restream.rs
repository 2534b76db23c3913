//! A whole answer as the stream that was asked for: some servers cannot stream, and say so only by how they answer.
//!
//! Each choice becomes one chunk with all it says and one with its end; then comes the end.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::stream::Stream;
use crate::dialects::{Emit, Tally};

#[derive(Deserialize)]
struct In<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    created: Option<&'a RawValue>,
    #[serde(borrow, default)]
    service_tier: Option<&'a RawValue>,
    #[serde(borrow, default)]
    system_fingerprint: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Vec<ChoiceIn<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ChoiceIn<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    native_finish_reason: Option<&'a RawValue>,
}

/// What a message and a delta have in common.
#[derive(Default, Deserialize, Serialize)]
struct Message<'a> {
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    reasoning_details: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize, Serialize)]
struct Call<'a> {
    /// Its place among the calls; only a stream says it.
    #[serde(skip_deserializing)]
    index: usize,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    function: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Serialize)]
struct Chunk<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    object: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a RawValue>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'a RawValue>,
    system_fingerprint: Option<&'a RawValue>,
    choices: &'a [ChoiceOut<'a>],
}

#[derive(Serialize)]
struct ChoiceOut<'a> {
    index: u32,
    delta: Message<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a RawValue>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    native_finish_reason: Option<&'a RawValue>,
}

/// The events of `body`, a whole answer that was read already; `None` when it cannot be written as a stream.
///
/// - `tally`: what the answer shows. An answer that came whole has ended, so a finish reason that it lacks is filled in.
/// - `stream`: the stream that they are the events of; it gets to know what its usage chunk shows.
pub(crate) fn events(
    body: &[u8],
    tally: &mut Tally,
    model: &str,
    stream: Stream,
) -> Option<(Stream, Vec<Emit>)> {
    let whole: In<'_> = serde_json::from_slice(body).ok()?;
    let chunk = |choices: &[ChoiceOut<'_>]| {
        written(&Chunk {
            id: whole.id,
            object: "chat.completion.chunk",
            created: whole.created,
            model,
            service_tier: whole.service_tier,
            system_fingerprint: whole.system_fingerprint,
            choices,
        })
    };
    let mut events = Vec::with_capacity(whole.choices.len() * 2 + 2);
    for (place, choice) in (0..).zip(whole.choices) {
        let index = choice.index.unwrap_or(place);
        let mut delta = choice.message.unwrap_or_default();
        delta.role = Some("assistant");
        let calls = delta.tool_calls.iter_mut().flatten();
        calls.enumerate().for_each(|(place, call)| call.index = place);
        let reason = choice.finish_reason.filter(|reason| !reason.is_empty());
        let reason = reason.unwrap_or_else(|| match &delta.tool_calls {
            Some(calls) if !calls.is_empty() => "tool_calls".into(),
            _ => "stop".into(),
        });
        let said = ChoiceOut {
            index,
            delta,
            logprobs: choice.logprobs,
            finish_reason: None,
            native_finish_reason: None,
        };
        let ended = ChoiceOut {
            index,
            delta: Message::default(),
            logprobs: None,
            finish_reason: Some(&reason),
            native_finish_reason: choice.native_finish_reason,
        };
        events.push(Emit::Pass(chunk(&[said])));
        events.push(Emit::Pass(chunk(&[ended])));
        tally.finish_reason.get_or_insert_with(|| reason.into_owned());
    }
    events.push(Emit::Done);
    Some((stream.ended(whole.id, whole.created, whole.usage), events))
}

fn written(chunk: &Chunk<'_>) -> Bytes {
    let mut out = BytesMut::with_capacity(512).writer();
    out.get_mut().extend_from_slice(b"data: ");
    serde_json::to_writer(&mut out, chunk).expect("text and raw values serialize, and memory takes it");
    out.get_mut().extend_from_slice(b"\n\n");
    out.into_inner().freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::usage::Billed;
    use serde_json::{Value, json};
    use tollway_shared::money::NanoUsd;
    use tollway_shared::tokens::TokenCounts;

    #[test]
    fn every_choice_says_all_of_it_and_ends() {
        let body = json!({
            "id": "x", "object": "chat.completion", "created": 7, "model": "m", "choices": [
                {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "a\nb", "refusal": null}},
                {"index": 1, "message": {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "queue_s": 3}
        });
        let mut tally = Tally::default();
        let stream = Stream::new(true, "a/b", 0);
        let (stream, events) = events(body.to_string().as_bytes(), &mut tally, "a/b", stream).unwrap();
        let chunks: Vec<Value> = events
            .iter()
            .filter_map(|emit| match emit {
                Emit::Pass(bytes) => {
                    Some(serde_json::from_slice(bytes.strip_prefix(b"data: ").unwrap()).unwrap())
                }
                _ => None,
            })
            .collect();
        let choices: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
        assert_eq!(
            choices[0],
            &json!({"index": 0, "delta": {"role": "assistant", "content": "a\nb"}, "finish_reason": null})
        );
        assert_eq!(
            choices[1],
            &json!({"index": 0, "delta": {}, "finish_reason": "length"})
        );
        assert_eq!(
            choices[2]["delta"]["tool_calls"],
            json!([{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
        );
        assert_eq!(choices[3]["finish_reason"], "tool_calls");
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["object"] == "chat.completion.chunk"
                    && chunk["created"] == 7
                    && chunk["model"] == "a/b")
        );
        assert_eq!(events.last(), Some(&Emit::Done));
        let billed = Billed {
            tokens: TokenCounts::default(),
            estimated: false,
            cost: NanoUsd(1),
        };
        let usage = stream.usage_chunk(&billed).unwrap();
        let usage: Value = serde_json::from_slice(usage.strip_prefix(b"data: ").unwrap()).unwrap();
        assert_eq!((&usage["id"], &usage["created"]), (&json!("x"), &json!(7)));
        assert_eq!(usage["usage"]["queue_s"], 3);
        assert_eq!(tally.finish_reason.as_deref(), Some("length"));
    }
}
