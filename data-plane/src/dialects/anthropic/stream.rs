//! A stream of message events as a stream of completion chunks.
//!
//! Content blocks have one index for all kinds; chunks number tool calls alone, so the places are counted here.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Usage, faults, finish_reason};
use crate::dialects::sse::Frame;
use crate::dialects::usage::{self, Billed};
use crate::dialects::{Emit, Tally};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event<'a> {
    MessageStart {
        #[serde(borrow)]
        message: Started<'a>,
    },
    ContentBlockStart {
        #[serde(borrow)]
        content_block: Block<'a>,
    },
    ContentBlockDelta {
        #[serde(borrow)]
        delta: Delta<'a>,
    },
    MessageDelta {
        #[serde(borrow)]
        delta: Ending<'a>,
        usage: Option<Usage>,
    },
    MessageStop,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Started<'a> {
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text {
        #[serde(borrow)]
        text: Cow<'a, str>,
    },
    #[serde(rename = "thinking_delta")]
    Thinking {
        #[serde(borrow)]
        thinking: Cow<'a, str>,
    },
    #[serde(rename = "input_json_delta")]
    InputJson {
        #[serde(borrow)]
        partial_json: Cow<'a, str>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Ending<'a> {
    #[serde(borrow, default)]
    stop_reason: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: &'a [ChoiceOut<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct ChoiceOut<'a> {
    index: u32,
    delta: DeltaOut<'a>,
    finish_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    native_finish_reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct DeltaOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallOut<'a>; 1]>,
}

#[derive(Serialize)]
struct CallOut<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionOut<'a>,
}

#[derive(Serialize)]
struct FunctionOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    wants_usage: bool,
    model: String,
    created: i64,
    id: String,
    usage: Usage,
    calls: u32,
    begun: bool,
}

impl Stream {
    /// `wants_usage`: whether the caller asked for a usage chunk.
    pub fn new(wants_usage: bool, model: &str, created: i64) -> Self {
        Self {
            wants_usage,
            model: model.to_owned(),
            created,
            id: String::new(),
            usage: Usage::default(),
            calls: 0,
            begun: false,
        }
    }

    /// Whether anything of the answer itself has come. The start of a message or of a block is none of it.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Translates one event.
    pub fn take(&mut self, frame: &Frame, tally: &mut Tally) -> Emit {
        let Some(data) = &frame.data else {
            return Emit::Skip;
        };
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else {
            return Emit::Garbled;
        };
        match event {
            Event::MessageStart { message } => {
                self.id = message.id.into_owned();
                self.note(message.usage.as_ref(), tally);
                self.delta(DeltaOut {
                    role: Some("assistant"),
                    content: Some(""),
                    ..DeltaOut::default()
                })
            }
            Event::ContentBlockStart { content_block } => self.block(&content_block, tally),
            Event::ContentBlockDelta { delta } => self.content(&delta, tally),
            Event::MessageDelta { delta, usage } => {
                self.note(usage.as_ref(), tally);
                tally.usage_is_final = usage.is_some();
                let Some(native) = delta.stop_reason else {
                    return Emit::Skip;
                };
                let reason = finish_reason(&native);
                tally.finish_reason = Some(reason.to_owned());
                self.begun = true;
                self.chunk(&[ChoiceOut {
                    index: 0,
                    delta: DeltaOut::default(),
                    finish_reason: Some(reason),
                    native_finish_reason: Some(&native),
                }])
            }
            // One that was never said to be complete was cut short by the provider.
            Event::MessageStop if tally.finish_reason.is_none() => Emit::Garbled,
            Event::MessageStop => Emit::Done,
            Event::Error => Emit::Error(faults::inside(data)),
            Event::Other => Emit::Skip,
        }
    }

    /// The id that all chunks have; empty before the first.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The usage chunk, for callers who asked for it: comes after the last event.
    pub fn usage_chunk(&self, billed: &Billed) -> Option<Bytes> {
        if !self.wants_usage {
            return None;
        }
        let usage = usage::written(None, billed);
        let usage = serde_json::from_slice(&usage).expect("what we wrote is JSON");
        Some(self.written(&[], Some(usage)))
    }

    fn note(&mut self, usage: Option<&Usage>, tally: &mut Tally) {
        if let Some(usage) = usage {
            self.usage.merge(usage);
            tally.usage = Some(self.usage.counts());
        }
    }

    fn note_text(&mut self, text: &str, tally: &mut Tally) {
        tally.text_bytes += text.len() as u64;
        self.begun = self.begun || !text.is_empty();
    }

    fn block(&mut self, block: &Block<'_>, tally: &mut Tally) -> Emit {
        match &*block.kind {
            "tool_use" => {
                self.calls += 1;
                self.call(CallOut {
                    index: self.calls - 1,
                    id: Some(&block.id),
                    kind: Some("function"),
                    function: FunctionOut {
                        name: Some(&block.name),
                        arguments: "",
                    },
                })
            }
            "text" if !block.text.is_empty() => {
                self.note_text(&block.text, tally);
                self.delta(DeltaOut {
                    content: Some(&block.text),
                    ..DeltaOut::default()
                })
            }
            _ => Emit::Skip,
        }
    }

    fn content(&mut self, delta: &Delta<'_>, tally: &mut Tally) -> Emit {
        match delta {
            Delta::Text { text } => {
                self.note_text(text, tally);
                self.delta(DeltaOut {
                    content: Some(text),
                    ..DeltaOut::default()
                })
            }
            Delta::Thinking { thinking } => {
                self.note_text(thinking, tally);
                self.delta(DeltaOut {
                    reasoning: Some(thinking),
                    ..DeltaOut::default()
                })
            }
            // Only client tools have a call open; a server tool's arguments come before any of them.
            Delta::InputJson { partial_json } if self.calls > 0 => {
                self.note_text(partial_json, tally);
                self.call(CallOut {
                    index: self.calls - 1,
                    id: None,
                    kind: None,
                    function: FunctionOut {
                        name: None,
                        arguments: partial_json,
                    },
                })
            }
            Delta::InputJson { .. } | Delta::Other => Emit::Skip,
        }
    }

    fn call(&self, call: CallOut<'_>) -> Emit {
        self.delta(DeltaOut {
            tool_calls: Some([call]),
            ..DeltaOut::default()
        })
    }

    fn delta(&self, delta: DeltaOut<'_>) -> Emit {
        self.chunk(&[ChoiceOut {
            index: 0,
            delta,
            finish_reason: None,
            native_finish_reason: None,
        }])
    }

    fn chunk(&self, choices: &[ChoiceOut<'_>]) -> Emit {
        Emit::Pass(self.written(choices, None))
    }

    fn written(&self, choices: &[ChoiceOut<'_>], usage: Option<&RawValue>) -> Bytes {
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage,
        };
        let mut out = BytesMut::with_capacity(256).writer();
        out.get_mut().extend_from_slice(b"data: ");
        serde_json::to_writer(&mut out, &chunk).expect("text serializes, and memory takes it");
        out.get_mut().extend_from_slice(b"\n\n");
        out.into_inner().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::sse::Parser;
    use serde_json::Value;
    use tollway_shared::money::NanoUsd;

    const STREAM: &str = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":7,\"output_tokens\":1}}}\n\n",
        "event: ping\ndata: {\"type\":\"ping\"}\n\n",
        "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
        "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n",
        "data: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
        "data: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t1\",\"name\":\"add\",\"input\":{}}}\n\n",
        "data: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"a\\\":1}\"}}\n\n",
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":12}}\n\n",
        "data: {\"type\":\"message_stop\"}\n\n",
    );

    #[test]
    fn events_become_chunks_and_usage_adds_up() {
        let (mut parser, mut stream, mut tally) =
            (Parser::default(), Stream::new(true, "a/b", 7), Tally::default());
        parser.push(Bytes::from_static(STREAM.as_bytes()));
        let mut deltas = Vec::new();
        let mut done = false;
        while let Some(frame) = parser.next_frame().unwrap() {
            match stream.take(&frame, &mut tally) {
                Emit::Pass(bytes) => {
                    let text = std::str::from_utf8(&bytes).unwrap();
                    let chunk: Value = serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap();
                    assert_eq!((&chunk["id"], &chunk["model"]), (&"msg_1".into(), &"a/b".into()));
                    deltas.push(chunk["choices"][0]["delta"].to_string());
                }
                Emit::Done => done = true,
                Emit::Skip => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(done);
        assert_eq!(
            deltas,
            [
                r#"{"content":"","role":"assistant"}"#,
                r#"{"content":"Hi"}"#,
                r#"{"tool_calls":[{"function":{"arguments":"","name":"add"},"id":"t1","index":0,"type":"function"}]}"#,
                r#"{"tool_calls":[{"function":{"arguments":"{\"a\":1}"},"index":0}]}"#,
                "{}",
            ]
        );
        let usage = tally.usage.unwrap();
        assert_eq!((usage.input, usage.input_cache_read, usage.output), (5, 7, 12));
        assert_eq!(tally.finish_reason.as_deref(), Some("tool_calls"));
        let billed = Billed {
            tokens: usage,
            estimated: false,
            cost: NanoUsd(1),
        };
        let chunk = stream.usage_chunk(&billed).unwrap();
        assert!(chunk.ends_with(b"\"cost\":0.000000001}}\n\n"), "{chunk:?}");
    }

    #[test]
    fn an_error_event_is_an_error_and_noise_is_garbled() {
        let take = |data: &'static str| {
            let frame = Frame {
                raw: Bytes::new(),
                event: Bytes::new(),
                data: Some(Bytes::from_static(data.as_bytes())),
            };
            Stream::new(false, "a/b", 0).take(&frame, &mut Tally::default())
        };
        let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#;
        assert!(matches!(take(error), Emit::Error(e) if e.status == Some(529)));
        assert_eq!(take("{"), Emit::Garbled);
        assert_eq!(take(r#"{"type":"something_new"}"#), Emit::Skip);
    }
}
