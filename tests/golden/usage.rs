//! What providers count → what is billed: `usage.json` has a usage object as a provider writes it, the prices, the counts by kind and
//! the charge, line by line, which are written by hand and by decimal arithmetic, not by the code under test.
//!
//! Each vector is read in every form in which its dialect can tell it: a whole answer; a stream with the object in a chunk of its own,
//! in the last chunk, in every chunk. All of them are billed alike.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tollway_data::dialects::estimate::Size;
use tollway_data::dialects::sse::Parser;
use tollway_data::dialects::{self, Emit, Events, Tally};
use tollway_data::ratios::{BYTES_PER_TOKEN, Learned};
use tollway_data::stages::settle::{self, Basis};
use tollway_proto::usage::UsageSource;
use tollway_shared::catalog::Dialect;
use tollway_shared::cost::{Charge, Prices};
use tollway_shared::tokens::TokenCounts;

/// Eight bytes: two tokens where they are estimated, as the prompt is of seven.
const TEXT: &str = "Grüezi.";
const PROMPT_TOKENS: u64 = 7;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    dialect: Dialect,
    prices: Prices,
    /// What the start of a message says; the end says `usage`.
    start: Option<Value>,
    usage: Option<Value>,
    source: UsageSource,
    tokens: TokenCounts,
    charge: Charge,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("usage.json")).unwrap()
}

/// A stream of these events, as it is metered.
fn streamed(dialect: Dialect, events: &[Value]) -> Tally {
    let (mut parser, mut tally) = (Parser::default(), Tally::default());
    let mut stream = Events::new(dialect, true, "acme/one", 0);
    let lines = events.iter().map(|event| format!("data: {event}\n\n"));
    let end = match dialect {
        Dialect::OpenAi => "data: [DONE]\n\n",
        Dialect::Anthropic => "",
    };
    parser.push(Bytes::from(lines.collect::<String>() + end));
    let mut last = Emit::Skip;
    while let Some(frame) = parser.next_frame().unwrap() {
        last = stream.take(&frame, &mut tally);
    }
    assert_eq!(last, Emit::Done);
    tally
}

/// The vector in each form of its dialect.
fn forms(vector: &Vector) -> Vec<(&'static str, Tally)> {
    let usage = vector.usage.clone();
    let whole = |body: Value| {
        let read = dialects::reply(vector.dialect, body.to_string().into(), "acme/one", 0);
        ("a whole answer", read.unwrap().tally)
    };
    match vector.dialect {
        Dialect::OpenAi => {
            let chunk = |delta: Value, finish: Option<&str>, usage: Option<&Value>| {
                let mut chunk =
                    json!({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
                chunk["usage"] = usage.cloned().unwrap_or_default();
                chunk
            };
            let (says, ends) = (json!({"content": TEXT}), json!({}));
            let own = json!({"id": "x", "choices": [], "usage": usage});
            let stream = |events: &[Value]| streamed(vector.dialect, events);
            vec![
                whole(
                    json!({"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}], "usage": usage}),
                ),
                (
                    "a chunk of its own",
                    stream(&[
                        chunk(says.clone(), None, None),
                        chunk(ends.clone(), Some("stop"), None),
                        own,
                    ]),
                ),
                (
                    "the last chunk",
                    stream(&[
                        chunk(says.clone(), None, None),
                        chunk(ends.clone(), Some("stop"), usage.as_ref()),
                    ]),
                ),
                (
                    "every chunk",
                    stream(&[
                        chunk(json!({"role": "assistant"}), None, usage.as_ref()),
                        chunk(says, None, usage.as_ref()),
                        chunk(ends, Some("stop"), usage.as_ref()),
                    ]),
                ),
            ]
        }
        Dialect::Anthropic => {
            let mut all = vector.start.clone().unwrap_or_default();
            if let (Some(all), Some(Value::Object(end))) = (all.as_object_mut(), usage.clone()) {
                // A whole message says once what a stream says at its start and its end; a prompt of zeros is said by nobody then.
                all.extend(end.into_iter().filter(|(_, count)| *count != 0));
            }
            let message = json!({"type": "message", "id": "m", "content": [{"type": "text", "text": TEXT}],
                "stop_reason": "end_turn", "usage": all});
            let events = [
                json!({"type": "message_start", "message": {"id": "m", "usage": vector.start}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}),
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}),
                json!({"type": "message_stop"}),
            ];
            vec![
                whole(message),
                ("start and end", streamed(vector.dialect, &events)),
            ]
        }
    }
}

#[test]
fn what_providers_count_is_what_is_billed() {
    let vectors = vectors();
    let names: BTreeSet<_> = vectors.iter().map(|vector| &vector.name).collect();
    assert!(
        names.len() == vectors.len() && vectors.len() >= 40,
        "{}",
        vectors.len()
    );
    for vector in &vectors {
        for (form, tally) in forms(vector) {
            let basis = Basis {
                size: Size {
                    prompt_bytes: PROMPT_TOKENS * BYTES_PER_TOKEN,
                    attachment_tokens: 0,
                    prompt_tokens_max: u64::MAX,
                    completion_tokens_max: u64::MAX,
                    learned: Learned::PRIOR,
                },
                used: true,
                expected: 0,
            };
            let settled = settle::settled(&vector.prices, &tally, basis);
            let told = (settled.source, settled.tokens, settled.charge);
            let expected = (vector.source, vector.tokens, vector.charge);
            assert_eq!(told, expected, "{}, as {form}", vector.name);
        }
    }
}
