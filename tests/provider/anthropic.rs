//! The Anthropic dialect: messages plain and streamed, errors, the models list.

use serde_json::{Value, json};

use crate::answer::{Answer, Ask};
use crate::behaviour::Behaviour;
use crate::script::Write;
use crate::seen::Used;

pub(crate) fn answer_id(answer: &Answer) -> String {
    format!("msg_{}", answer.id)
}

pub(crate) fn plain(ask: &Ask, told: &Behaviour, answer: &Answer) -> Vec<u8> {
    let mut content = Vec::new();
    if !answer.pieces.is_empty() {
        content.push(json!({"type": "text", "text": answer.pieces.concat()}));
    }
    for call in &answer.tool_calls {
        let input: Value =
            serde_json::from_str(&call.arguments.concat()).expect("scripted arguments are JSON");
        content.push(json!({"type": "tool_use", "id": call_id(&call.id), "name": call.name, "input": input}));
    }
    let mut body = message(ask, answer, content);
    body["stop_reason"] = stop_reason(answer).into();
    if told.usage {
        body["usage"] = usage(&answer.used, answer.used.completion);
    }
    body.to_string().into_bytes()
}

/// All events of a stream in their order: `message_start`, the blocks, `message_delta`, `message_stop`.
pub(crate) fn stream(ask: &Ask, told: &Behaviour, answer: &Answer) -> Vec<Write> {
    let mut start = message(ask, answer, Vec::new());
    if told.usage {
        start["usage"] = usage(&answer.used, answer.used.completion.min(1));
    }
    let mut blocks = Blocks {
        writes: vec![event("message_start", &json!({"message": start}))],
        index: 0,
        ping: told.ping,
    };
    if !answer.pieces.is_empty() {
        let deltas = answer
            .pieces
            .iter()
            .map(|piece| json!({"type": "text_delta", "text": piece}));
        blocks.block(&json!({"type": "text", "text": ""}), deltas);
    }
    for call in &answer.tool_calls {
        let deltas = call
            .arguments
            .iter()
            .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}));
        blocks.block(
            &json!({"type": "tool_use", "id": call_id(&call.id), "name": call.name, "input": {}}),
            deltas,
        );
    }
    let mut writes = blocks.writes;
    let mut end = json!({"delta": {"stop_reason": stop_reason(answer), "stop_sequence": null}});
    if told.usage {
        end["usage"] = json!({"output_tokens": answer.used.completion}); // cumulative, not the last step
    }
    writes.push(Write {
        usage: told.usage,
        ..event("message_delta", &end)
    });
    writes.push(event("message_stop", &json!({})));
    writes
}

/// The content blocks of one stream.
struct Blocks {
    writes: Vec<Write>,
    index: u64,
    ping: bool,
}

impl Blocks {
    fn block(&mut self, head: &Value, deltas: impl Iterator<Item = Value>) {
        let index = self.index;
        self.writes.push(event(
            "content_block_start",
            &json!({"index": index, "content_block": head}),
        ));
        if index == 0 {
            self.writes.push(event("ping", &json!({})));
        }
        for delta in deltas {
            if self.ping {
                self.writes.push(event("ping", &json!({})));
            }
            self.writes.push(Write {
                content: true,
                ..event("content_block_delta", &json!({"index": index, "delta": delta}))
            });
        }
        self.writes
            .push(event("content_block_stop", &json!({"index": index})));
        self.index += 1;
    }
}

fn event(name: &str, fields: &Value) -> Write {
    let mut data = fields.clone();
    data["type"] = name.into();
    Write::frame(format!("event: {name}\ndata: {data}\n\n"))
}

pub(crate) fn error_body(status: u16, message: &str) -> Vec<u8> {
    let kind = match status {
        400 | 422 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"})
        .to_string()
        .into_bytes()
}

pub(crate) fn error_event() -> Write {
    event(
        "error",
        &json!({"error": {"type": "overloaded_error", "message": "scripted error"}}),
    )
}

pub(crate) fn models(names: &[String]) -> Vec<u8> {
    let list: Vec<_> = names.iter().map(|name| json!({"type": "model", "id": name, "display_name": name, "created_at": "2025-10-09T00:00:00Z"})).collect();
    json!({"data": list, "has_more": false, "first_id": names.first(), "last_id": names.last()})
        .to_string()
        .into_bytes()
}

fn message(ask: &Ask, answer: &Answer, content: Vec<Value>) -> Value {
    json!({
        "id": answer_id(answer), "type": "message", "role": "assistant", "model": ask.model,
        "content": content, "stop_reason": null, "stop_sequence": null,
    })
}

/// In this dialect `input_tokens` leaves the cached ones out.
fn usage(used: &Used, output: u64) -> Value {
    json!({
        "input_tokens": used.prompt - used.cache_read - used.cache_write,
        "cache_creation_input_tokens": used.cache_write,
        "cache_read_input_tokens": used.cache_read,
        "output_tokens": output,
        "service_tier": "standard",
    })
}

fn stop_reason(answer: &Answer) -> &'static str {
    match (answer.capped, answer.tool_calls.is_empty()) {
        (true, _) => "max_tokens",
        (false, false) => "tool_use",
        (false, true) => "end_turn",
    }
}

fn call_id(id: &str) -> String {
    format!("toolu_{id}")
}
