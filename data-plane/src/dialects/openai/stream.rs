//! Events of a stream: passed on as they came. Only those before the first token, and those that hold usage, an error or an end, are
//! parsed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Usage, faults};
use crate::dialects::sse::Frame;
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

#[derive(Deserialize)]
struct Chunk<'a> {
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
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    /// Why it ended. Some servers write an empty text until then.
    fn ended(&self) -> Option<&str> {
        self.finish_reason.as_deref().filter(|reason| !reason.is_empty())
    }

    /// Whether it says anything: an end, or a member of the delta that is not the role and not empty.
    fn speaks(&self) -> bool {
        const EMPTY: [&str; 4] = ["null", "\"\"", "[]", "{}"];
        let delta = self.delta.map_or("{}", RawValue::get);
        let said = serde_json::from_str::<BTreeMap<Cow<'_, str>, &RawValue>>(delta).map(|members| {
            members
                .iter()
                .any(|(key, value)| key != "role" && !EMPTY.contains(&value.get()))
        });
        self.ended().is_some() || said.unwrap_or(true)
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    wants_usage: bool,
    begun: bool,
}

impl Stream {
    /// `wants_usage`: whether the caller asked for a usage chunk.
    pub fn new(wants_usage: bool) -> Self {
        Self {
            wants_usage,
            begun: false,
        }
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
        let text: u64 = TEXTS.iter().map(|finder| text_bytes(finder, data)).sum();
        tally.text_bytes += text;
        let interesting = !self.begun
            || value_after(&USAGE, data) == Some(b'{')
            || value_after(&FINISH, data) == Some(b'"')
            || value_after(&ERROR, data).is_some_and(|first| first != b'n')
            || frame.event == "error";
        if interesting {
            self.parsed(frame, data, tally)
        } else {
            Emit::Pass(frame.raw.clone())
        }
    }

    fn parsed(&mut self, frame: &Frame, data: &[u8], tally: &mut Tally) -> Emit {
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
        let Some(usage) = chunk.usage else {
            return Emit::Pass(frame.raw.clone());
        };
        let counts = serde_json::from_str::<Usage>(usage.get())
            .ok()
            .and_then(|usage| usage.counts());
        if counts.is_some() {
            tally.usage = counts;
            // Some servers count in every chunk; before the end these are counts of what was written so far.
            tally.usage_is_final = choices.is_empty() || tally.finish_reason.is_some();
        }
        if choices.is_empty() && !self.wants_usage {
            return Emit::Skip;
        }
        // Data in one line is a slice of the raw event, so the place of the usage object in it is known.
        let raw = frame.raw.as_ptr_range();
        let end = usage.get().as_bytes().as_ptr_range().end;
        if self.wants_usage && usage.get().ends_with('}') && raw.contains(&usage.get().as_ptr()) {
            let brace = end as usize - raw.start as usize - 1;
            return Emit::Usage(frame.raw.clone(), brace);
        }
        Emit::Pass(frame.raw.clone())
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
    use bytes::Bytes;

    fn run(wants_usage: bool, body: &'static str) -> (Vec<Emit>, Tally) {
        let (mut parser, mut stream, mut tally) =
            (Parser::default(), Stream::new(wants_usage), Tally::default());
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

    #[test]
    fn the_usage_chunk_is_hidden_from_callers_who_did_not_ask() {
        let (emits, tally) = run(false, STREAM);
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

    #[test]
    fn the_place_of_the_usage_objects_end_is_known() {
        let (emits, _) = run(true, STREAM);
        let Emit::Usage(raw, brace) = &emits[2] else {
            panic!("{emits:?}")
        };
        assert_eq!(&raw[brace - 1..=*brace], b"2}");
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
