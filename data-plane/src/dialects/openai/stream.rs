//! Events of a stream: passed on as they came, but for the model's name. Only those before the first token, those that hold usage, an
//! error or an end, and those that neither begin nor end like one before are parsed.
//!
//! Usage is held back, wherever the provider writes it, and shown once, at the end, as it is billed.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Serialize;
use serde_json::value::RawValue;

use super::chunk::{self, Choice, Chunk, Naming};
use super::{Usage, faults};
use crate::dialects::slices::{self, Edit};
use crate::dialects::sse::Frame;
use crate::dialects::usage::{self, Billed};
use crate::dialects::{Emit, Tally};

/// A quote inside a JSON string is escaped, so these can only be keys.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\":"));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\":"));
static FINISH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\":"));
static TEXTS: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
    [
        &b"\"content\":"[..],
        b"\"reasoning\":",
        b"\"reasoning_content\":",
        b"\"arguments\":",
    ]
    .map(Finder::new)
});

/// A usage chunk of ours, for a provider that sent none.
#[derive(Serialize)]
struct UsageChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [(); 0],
    usage: &'a RawValue,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    wants_usage: bool,
    begun: bool,
    model: String,
    naming: Naming,
    id: String,
    created: i64,
    /// The provider's usage object, the last one that counts anything.
    usage: Option<Bytes>,
    /// The chunk that holds nothing but usage.
    usage_only: Option<Bytes>,
}

impl Stream {
    /// - `wants_usage`: whether the caller asked for a usage chunk.
    /// - `model`: as the caller knows it; `created`: the second that is shown until a chunk says one.
    pub fn new(wants_usage: bool, model: &str, created: i64) -> Self {
        Self {
            wants_usage,
            begun: false,
            model: model.to_owned(),
            naming: Naming::new(model),
            id: String::new(),
            created,
            usage: None,
            usage_only: None,
        }
    }

    /// The end of a stream that was written here. `usage`: the provider's object.
    pub(super) fn ended(
        mut self,
        id: Option<&RawValue>,
        created: Option<&RawValue>,
        usage: Option<&RawValue>,
    ) -> Self {
        self.note(id, created);
        self.usage = usage.map(|usage| Bytes::copy_from_slice(usage.get().as_bytes()));
        self
    }

    /// The id that all chunks have; empty before the first.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The usage chunk, for callers who asked for it: comes after the last event. The provider's own, if it wrote one.
    pub fn usage_chunk(&self, billed: &Billed) -> Option<Bytes> {
        if !self.wants_usage {
            return None;
        }
        let usage = usage::written(self.usage.as_deref(), billed);
        if let Some(theirs) = &self.usage_only
            && let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(theirs)
            && let Some(range) = chunk
                .usage
                .and_then(|raw| slices::place(theirs, raw.get().as_bytes()))
        {
            let ours = serde_json::to_vec(&self.model).expect("text serializes").into();
            let mut edits = vec![Edit { range, with: usage }];
            edits.extend(chunk::naming(theirs, chunk.model, &ours));
            edits.sort_by_key(|edit| edit.range.start);
            return Some(chunk::written(theirs, &edits));
        }
        let chunk = UsageChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices: [],
            usage: serde_json::from_slice(&usage).expect("what we wrote is JSON"),
        };
        let chunk = serde_json::to_vec(&chunk).expect("text and raw values serialize");
        Some(chunk::written(&chunk, &[]))
    }

    /// Whether anything of the answer itself has come. A role alone, or an empty text, is none of it.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Looks at one event.
    pub fn take(&mut self, frame: &Frame, tally: &mut Tally) -> Emit {
        let Some(data) = &frame.data else {
            return Emit::Pass(frame.raw.clone());
        };
        let first = data.iter().find(|b| !b.is_ascii_whitespace());
        match first {
            None => return Emit::Skip,
            Some(b'[') if data.trim_ascii() == b"[DONE]" => return done(tally),
            // Not parsed, which every event would pay for; what was cut short or never was an object does not end like one.
            Some(b'{') if data.trim_ascii_end().ends_with(b"}") => {}
            Some(_) => return Emit::Garbled,
        }
        let data = &chunk::line(frame, data);
        let text: u64 = TEXTS.iter().map(|finder| text_bytes(finder, data)).sum();
        tally.text_bytes += text;
        let interesting = !self.begun
            || value_after(&USAGE, data) == Some(b'{')
            || value_after(&FINISH, data) == Some(b'"')
            || value_after(&ERROR, data).is_some_and(|first| first != b'n')
            || frame.event == "error";
        if interesting {
            return self.parsed(frame, data, tally);
        }
        match self.naming.edit(data) {
            Ok(edit) => Emit::Pass(chunk::event(frame, data, edit.as_slice())),
            Err(_) => Emit::Garbled,
        }
    }

    fn parsed(&mut self, frame: &Frame, data: &Bytes, tally: &mut Tally) -> Emit {
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            return Emit::Garbled;
        };
        if let Some(error) = chunk.error {
            return Emit::Error(faults::inside(error));
        }
        if frame.event == "error" {
            let message = faults::message(data).unwrap_or_else(|| "no message".into());
            return Emit::Error(crate::dialects::ProviderError {
                status: None,
                message,
            });
        }
        let choices = chunk.choices.as_deref().unwrap_or_default();
        if let Some(reason) = choices.iter().find_map(Choice::ended) {
            tally.finish_reason = Some(reason.to_owned());
        }
        self.begun = self.begun || choices.iter().any(Choice::speaks);
        self.note(chunk.id, chunk.created);
        let mut edits: Vec<Edit> = self.naming.named(data, chunk.model).into_iter().collect();
        let usage = chunk.usage.map(|usage| usage.get().as_bytes());
        if let Some(place) = usage.and_then(|usage| slices::place(data, usage)) {
            let counts = serde_json::from_slice::<Usage>(&data[place.clone()])
                .ok()
                .and_then(|usage| usage.counts());
            if counts.is_some() {
                tally.usage = counts;
                // Some servers count in every chunk; before the end these are counts of what was written so far.
                tally.usage_is_final = choices.is_empty() || tally.finish_reason.is_some();
                self.usage = Some(data.slice(place.clone()));
            }
            if choices.is_empty() {
                self.usage_only = Some(data.clone());
                return Emit::Skip;
            }
            edits.push(Edit {
                range: place,
                with: Bytes::from_static(b"null"),
            });
            edits.sort_by_key(|edit| edit.range.start);
        }
        Emit::Pass(chunk::event(frame, data, &edits))
    }

    /// What chunks have in common, from the first one that says it.
    fn note(&mut self, id: Option<&RawValue>, created: Option<&RawValue>) {
        if self.id.is_empty()
            && let Some(id) = id.and_then(|id| serde_json::from_str::<String>(id.get()).ok())
        {
            self.id = id;
            let created = created.and_then(|created| created.get().parse().ok());
            self.created = created.unwrap_or(self.created);
        }
    }
}

/// The end, if the answer was said to be complete before it: one without a finish reason was cut short by the provider.
fn done(tally: &mut Tally) -> Emit {
    tally.usage_is_final |= tally.usage.is_some();
    if tally.finish_reason.is_some() {
        Emit::Done
    } else {
        Emit::Garbled
    }
}

/// The first byte of the value after a key.
fn value_after(key: &Finder<'_>, data: &[u8]) -> Option<u8> {
    let after = key.find(data)? + key.needle().len();
    data[after..].iter().copied().find(|b| !b.is_ascii_whitespace())
}

/// The length of the text after a key, escapes as written.
fn text_bytes(key: &Finder<'_>, data: &[u8]) -> u64 {
    let mut total = 0;
    let mut from = 0;
    while let Some(found) = key.find(&data[from..]) {
        from += found + key.needle().len();
        let rest = data[from..].trim_ascii_start();
        let Some(text) = rest.strip_prefix(b"\"") else {
            continue;
        };
        let mut skip = usize::MAX; // the byte after a backslash
        for place in memchr::memchr2_iter(b'"', b'\\', text) {
            if place == skip {
                continue;
            }
            if text[place] == b'\\' {
                skip = place + 1;
                continue;
            }
            total += place as u64;
            break;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::sse::Parser;
    use serde_json::{Value, json};
    use tollway_shared::money::NanoUsd;
    use tollway_shared::tokens::TokenCounts;

    fn run(wants_usage: bool, body: &'static str) -> (Vec<Emit>, Tally) {
        let (mut parser, mut stream, mut tally) = (
            Parser::default(),
            Stream::new(wants_usage, "a/b", 7),
            Tally::default(),
        );
        parser.push(Bytes::from_static(body.as_bytes()));
        let mut emits = Vec::new();
        while let Some(frame) = parser.next_frame().unwrap() {
            emits.push(stream.take(&frame, &mut tally));
        }
        (emits, tally)
    }

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"h\\\"i\\\\\"},\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    );

    const BILLED: Billed = Billed {
        tokens: TokenCounts {
            input: 3,
            input_cache_read: 0,
            input_cache_write: 0,
            input_cache_write_1h: 0,
            output: 2,
            output_reasoning: 0,
        },
        estimated: false,
        cost: NanoUsd(7),
    };

    /// The usage chunk at the end of a stream.
    fn usage_chunk(wants_usage: bool, body: &'static str) -> Option<Value> {
        let (mut parser, mut stream) = (Parser::default(), Stream::new(wants_usage, "a/b", 7));
        parser.push(Bytes::from_static(body.as_bytes()));
        while let Some(frame) = parser.next_frame().unwrap() {
            stream.take(&frame, &mut Tally::default());
        }
        let chunk = stream.usage_chunk(&BILLED)?;
        Some(serde_json::from_slice(chunk.strip_prefix(b"data: ").unwrap()).unwrap())
    }

    #[test]
    fn usage_is_shown_once_and_only_to_callers_who_asked() {
        for wants_usage in [true, false] {
            let (emits, tally) = run(wants_usage, STREAM);
            assert!(matches!(
                emits[..],
                [Emit::Pass(_), Emit::Pass(_), Emit::Skip, Emit::Done]
            ));
            assert_eq!(tally.usage.map(|u| (u.input, u.output)), Some((3, 2)));
            assert_eq!(
                (tally.text_bytes, tally.finish_reason.as_deref()),
                (6, Some("stop"))
            );
        }
        assert_eq!(usage_chunk(false, STREAM), None);
        let own = STREAM.replace(
            r#"{"choices":[],"#,
            r#"{"id":"x","model":"m","timings":1,"choices":[],"#,
        );
        let chunk = usage_chunk(true, own.leak()).unwrap();
        assert_eq!((&chunk["model"], &chunk["timings"]), (&json!("a/b"), &json!(1)));
        assert_eq!(chunk["usage"]["total_tokens"], 5);
        assert_eq!(chunk["usage"]["cost"], 7e-9);
    }

    #[test]
    fn a_provider_without_a_usage_chunk_gets_one_written() {
        const NONE: &str =
            "data: {\"id\":\"x\",\"created\":5,\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        let with_end = NONE.replace(
            "}]}",
            "}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"queue_s\":1}}",
        );
        let (emits, _) = run(true, with_end.clone().leak());
        let Emit::Pass(passed) = &emits[0] else {
            panic!("{emits:?}")
        };
        assert!(passed.ends_with(b"}],\"usage\":null}\n\n"), "{passed:?}");
        for (body, queue_s) in [(NONE.to_owned(), Value::Null), (with_end, json!(1))] {
            let chunk = usage_chunk(true, body.leak()).unwrap();
            assert_eq!(
                (
                    &chunk["id"],
                    &chunk["created"],
                    &chunk["model"],
                    &chunk["choices"]
                ),
                (&json!("x"), &json!(5), &json!("a/b"), &json!([]))
            );
            assert_eq!(chunk["usage"]["completion_tokens"], 2);
            assert_eq!(chunk["usage"]["queue_s"], queue_s);
        }
    }

    #[test]
    fn errors_are_recognised_and_words_in_texts_are_not() {
        let (emits, _) = run(false, "data: {\"error\":{\"message\":\"full\",\"code\":503}}\n\n");
        assert!(matches!(&emits[..], [Emit::Error(e)] if e.status == Some(503)));
        let (emits, tally) = run(
            false,
            "data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"error\\\":1,\\\"usage\\\":{\"},\"error\":null}]}\n\n",
        );
        assert!(matches!(&emits[..], [Emit::Pass(_)]), "{emits:?}");
        assert_eq!(tally.usage, None);
        for garbled in [
            "data: oops\n\n",
            "data: {{{oops\n\n",
            "data: {\"choices\":[{\"delta\":{\n\n",
        ] {
            assert!(matches!(&run(false, garbled).0[..], [Emit::Garbled]), "{garbled}");
        }
    }

    #[test]
    fn counts_of_a_stream_that_was_cut_are_not_final() {
        const COUNTED: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n";
        const ENDED: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        let is_final = |body: String| {
            let (_, tally) = run(true, body.leak());
            assert_eq!(tally.usage.map(|u| u.output), Some(1));
            tally.usage_is_final
        };
        assert!(!is_final(COUNTED.into()));
        assert!(!is_final(format!("{COUNTED}{ENDED}")));
        assert!(is_final(format!("{COUNTED}{ENDED}data: [DONE]\n\n")));
        let with_end = COUNTED.replace("\"finish_reason\":null", "\"finish_reason\":\"stop\"");
        assert!(is_final(with_end));
    }

    #[test]
    fn an_end_without_a_finish_reason_is_none() {
        for reason in ["null", "\"\""] {
            let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":R}]}\n\ndata: [DONE]\n\n";
            let (emits, tally) = run(false, chunk.replace('R', reason).leak());
            assert!(matches!(emits[..], [Emit::Pass(_), Emit::Garbled]), "{emits:?}");
            assert_eq!(tally.finish_reason, None);
        }
    }
}
