//! The OpenAI dialect: chat completions plain and streamed, errors, the models list.

use serde_json::{Value, json};

use crate::answer::{Answer, Ask};
use crate::behaviour::Behaviour;
use crate::script::Write;
use crate::seen::Used;

/// The `created` time of every answer: fixed, so that answers are reproducible.
const CREATED_S: u64 = 1_760_000_000;

pub(crate) fn answer_id(answer: &Answer) -> String {
    format!("chatcmpl-{}", answer.id)
}

pub(crate) fn plain(ask: &Ask, told: &Behaviour, answer: &Answer) -> Vec<u8> {
    let mut message = json!({"role": "assistant", "content": answer.pieces.concat(), "refusal": null});
    if !answer.tool_calls.is_empty() {
        message["tool_calls"] = answer
            .tool_calls
            .iter()
            .map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments.concat()});
                json!({"id": call_id(&call.id), "type": "function", "function": function})
            })
            .collect();
        if answer.pieces.is_empty() {
            message["content"] = Value::Null;
        }
    }
    let choice =
        json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(answer)});
    let mut body = json!({
        "id": answer_id(answer), "object": "chat.completion", "created": CREATED_S, "model": ask.model,
        "choices": [choice], "service_tier": "default", "system_fingerprint": "fp_scripted",
    });
    if told.usage {
        body["usage"] = usage(&answer.used);
    }
    body.to_string().into_bytes()
}

/// All events of a stream, the usage chunk only when the caller asked for it.
pub(crate) fn stream(ask: &Ask, told: &Behaviour, answer: &Answer) -> Vec<Write> {
    let chunk = Chunk::new(ask, told, answer);
    let mut writes = vec![Write::frame(
        chunk.event(r#"{"role":"assistant","content":"","refusal":null}"#, "null"),
    )];
    let content = |delta: &str, writes: &mut Vec<Write>| {
        if told.ping {
            writes.push(Write::frame(": ping\n\n"));
        }
        writes.push(Write::content(chunk.event(delta, "null")));
    };
    for piece in &answer.pieces {
        content(&format!(r#"{{"content":{}}}"#, quoted(piece)), &mut writes);
    }
    for (index, call) in answer.tool_calls.iter().enumerate() {
        let function = json!({"name": call.name, "arguments": ""});
        let head = json!({"index": index, "id": call_id(&call.id), "type": "function", "function": function});
        content(&json!({"tool_calls": [head]}).to_string(), &mut writes);
        for piece in &call.arguments {
            let part = json!({"index": index, "function": {"arguments": piece}});
            content(&json!({"tool_calls": [part]}).to_string(), &mut writes);
        }
    }
    writes.push(Write::frame(chunk.event("{}", &quoted(finish_reason(answer)))));
    if ask.include_usage && told.usage {
        writes.push(Write::usage(format!(
            "{}\"choices\":[],\"usage\":{}}}\n\n",
            chunk.head,
            usage(&answer.used)
        )));
    }
    writes.push(Write::frame("data: [DONE]\n\n"));
    writes
}

/// What all chunks of one stream share.
struct Chunk {
    head: String,
    tail: &'static str,
}

impl Chunk {
    fn new(ask: &Ask, told: &Behaviour, answer: &Answer) -> Self {
        let head = format!(
            r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{CREATED_S},"model":{},"service_tier":"default","system_fingerprint":"fp_scripted","#,
            answer_id(answer),
            quoted(&ask.model),
        );
        // As the real one does: once usage was asked for, every other chunk says `null`.
        let tail = if ask.include_usage && told.usage {
            "],\"usage\":null}\n\n"
        } else {
            "]}\n\n"
        };
        Self { head, tail }
    }

    fn event(&self, delta: &str, finish_reason: &str) -> String {
        let Self { head, tail } = self;
        format!(
            r#"{head}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}{tail}"#
        )
    }
}

pub(crate) fn error_body(status: u16, message: &str) -> Vec<u8> {
    let (kind, code) = match status {
        400 | 413 | 422 => ("invalid_request_error", Value::Null),
        401 => ("invalid_request_error", json!("invalid_api_key")),
        403 => ("invalid_request_error", json!("permission_denied")),
        404 => ("invalid_request_error", json!("model_not_found")),
        429 => ("rate_limit_error", json!("rate_limit_exceeded")),
        _ => ("server_error", Value::Null),
    };
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        .to_string()
        .into_bytes()
}

pub(crate) fn error_event() -> Write {
    let error =
        json!({"error": {"message": "scripted error", "type": "server_error", "param": null, "code": null}});
    Write::frame(format!("data: {error}\n\n"))
}

pub(crate) fn models(names: &[String]) -> Vec<u8> {
    let list: Vec<_> = names
        .iter()
        .map(|name| json!({"id": name, "object": "model", "created": CREATED_S, "owned_by": "scripted"}))
        .collect();
    json!({"object": "list", "data": list}).to_string().into_bytes()
}

fn usage(used: &Used) -> Value {
    json!({
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    })
}

fn finish_reason(answer: &Answer) -> &'static str {
    match (answer.capped, answer.tool_calls.is_empty()) {
        (true, _) => "length",
        (false, false) => "tool_calls",
        (false, true) => "stop",
    }
}

fn call_id(id: &str) -> String {
    format!("call_{id}")
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
