//! A whole message as a chat completion.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Usage, faults, finish_reason};
use crate::dialects::{Reply, ReplyFault, Tally};

#[derive(Deserialize)]
struct In<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Vec<BlockIn<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct BlockIn<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Cow<'a, str>,
    #[serde(borrow, default)]
    thinking: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Out<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: [ChoiceOut<'a>; 1],
}

#[derive(Serialize)]
struct ChoiceOut<'a> {
    index: u32,
    message: MessageOut<'a>,
    finish_reason: &'a str,
    native_finish_reason: Option<&'a str>,
    logprobs: Option<()>,
}

#[derive(Serialize)]
struct MessageOut<'a> {
    role: &'static str,
    content: Option<String>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallOut<'a>>,
}

#[derive(Serialize)]
struct CallOut<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionOut<'a>,
}

#[derive(Serialize)]
struct FunctionOut<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// Translates an answer.
pub fn read(body: &[u8], model: &str, created: i64) -> Result<Reply, ReplyFault> {
    let message: In<'_> = serde_json::from_slice(body).map_err(|_| ReplyFault::Garbled)?;
    match &*message.kind {
        "message" => {}
        "error" => return Err(ReplyFault::Error(faults::inside(body))),
        _ => return Err(ReplyFault::Garbled),
    }
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for block in &message.content {
        match &*block.kind {
            "text" => text.push_str(&block.text),
            "thinking" => reasoning.push_str(&block.thinking),
            "tool_use" => calls.push(CallOut {
                id: &block.id,
                kind: "function",
                function: FunctionOut {
                    name: &block.name,
                    arguments: block.input.map_or("{}", RawValue::get),
                },
            }),
            _ => {} // encrypted thinking and server tools have no counterpart
        }
    }
    let arguments: usize = calls.iter().map(|call| call.function.arguments.len()).sum();
    let native = message.stop_reason.as_deref();
    let finish = finish_reason(native.unwrap_or("end_turn"));
    let counts = message.usage.map(|usage| usage.counts());
    let tally = Tally {
        usage: counts,
        usage_is_final: true,
        text_bytes: (text.len() + reasoning.len() + arguments) as u64,
        finish_reason: Some(finish.to_owned()),
    };
    let out = Out {
        id: &message.id,
        object: "chat.completion",
        created,
        model,
        system_fingerprint: None,
        choices: [ChoiceOut {
            index: 0,
            message: MessageOut {
                role: "assistant",
                content: (!text.is_empty() || calls.is_empty()).then_some(text),
                refusal: None,
                reasoning: (!reasoning.is_empty()).then_some(reasoning),
                tool_calls: calls,
            },
            finish_reason: finish,
            native_finish_reason: native,
            logprobs: None,
        }],
    };
    let body = serde_json::to_vec(&out).expect("text serializes");
    let end = body.len() - 1;
    Ok(Reply {
        body: body.into(),
        model: None,
        usage: end..end,
        tally,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::usage::Billed;
    use serde_json::{Value, json};
    use tollway_shared::money::NanoUsd;

    #[test]
    fn a_message_with_tools_and_cache_becomes_a_completion() {
        let body = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "tool_use",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I add."},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}],
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 9}
        });
        let reply = read(body.to_string().as_bytes(), "a/b", 7).unwrap();
        let billed = Billed {
            tokens: reply.tally.usage.unwrap(),
            estimated: false,
            cost: NanoUsd(7),
        };
        let out: Value = serde_json::from_slice(&reply.priced(&billed).to_bytes()).unwrap();
        assert_eq!(out["choices"][0]["message"]["content"], "I add.");
        assert_eq!(out["choices"][0]["message"]["reasoning"], "hm");
        assert_eq!(
            out["choices"][0]["message"]["tool_calls"],
            json!([{"id": "t1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}}])
        );
        assert_eq!(out["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(out["usage"]["prompt_tokens"], 125);
        assert_eq!(out["usage"]["prompt_tokens_details"]["cached_tokens"], 100);
        assert_eq!(out["usage"]["cost"], 7e-9);
        let counts = reply.tally.usage.unwrap();
        assert_eq!(
            (
                counts.input,
                counts.input_cache_read,
                counts.input_cache_write,
                counts.output
            ),
            (5, 100, 20, 9)
        );
    }

    #[test]
    fn what_is_not_a_message_is_told_apart() {
        assert_eq!(read(b"{}", "a/b", 0), Err(ReplyFault::Garbled));
        let error = read(
            br#"{"type":"error","error":{"type":"api_error","message":"x"}}"#,
            "a/b",
            0,
        );
        assert!(matches!(error, Err(ReplyFault::Error(e)) if e.status == Some(500)));
    }
}
