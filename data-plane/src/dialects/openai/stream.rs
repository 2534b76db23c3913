//! Events of a stream: passed on as they came. Only those that hold usage, an error or an end are parsed.

use std::borrow::Cow;
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
    finish_reason: Option<Cow<'a, str>>,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    wants_usage: bool,
}

impl Stream {
    /// `wants_usage`: whether the caller asked for a usage chunk.
    pub fn new(wants_usage: bool) -> Self {
        Self { wants_usage }
    }

    /// Looks at one event.
    pub fn take(&mut self, frame: &Frame, tally: &mut Tally) -> Emit {
        let Some(data) = &frame.data else {
            return Emit::Pass(frame.raw.clone());
        };
        let first = data.iter().find(|b| !b.is_ascii_whitespace());
        match first {
            None => return Emit::Skip,
            Some(b'[') if data.trim_ascii() == b"[DONE]" => return Emit::Done,
            // Not parsed, which every event would pay for; what was cut short or never was an object does not end like one.
            Some(b'{') if data.trim_ascii_end().ends_with(b"}") => {}
            Some(_) => return Emit::Garbled,
        }
        let text: u64 = TEXTS.iter().map(|finder| text_bytes(finder, data)).sum();
        tally.text_bytes += text;
        let interesting = value_after(&USAGE, data) == Some(b'{')
            || value_after(&FINISH, data) == Some(b'"')
            || value_after(&ERROR, data).is_some_and(|first| first != b'n')
            || frame.event == "error";
        if interesting {
            self.parsed(frame, data, tally)
        } else {
            Emit::Pass(frame.raw.clone())
        }
    }

    fn parsed(&self, frame: &Frame, data: &[u8], tally: &mut Tally) -> Emit {
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
        if let Some(reason) = choices.iter().find_map(|choice| choice.finish_reason.as_deref()) {
            tally.finish_reason = Some(reason.to_owned());
        }
        let Some(usage) = chunk.usage else {
            return Emit::Pass(frame.raw.clone());
        };
        let counts = serde_json::from_str::<Usage>(usage.get())
            .ok()
            .and_then(|usage| usage.counts());
        if counts.is_some() {
            tally.usage = counts;
            tally.usage_is_final = true;
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
}
