//! One event of a stream: what is looked at in it, and how it is changed without a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::dialects::slices::{self, Edit};
use crate::dialects::sse::Frame;

const DATA: &[u8] = b"data: ";

#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) created: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    /// Why it ended. Some servers write an empty text until then.
    pub(super) fn ended(&self) -> Option<&str> {
        self.finish_reason.as_deref().filter(|reason| !reason.is_empty())
    }

    /// Whether it says anything: an end, or a member of the delta that is not the role and not empty.
    pub(super) fn speaks(&self) -> bool {
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

/// Reads a member whose place matters, so that `null` is one too.
pub(super) fn even_null<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// How often the place of a stream's model is learned anew. Where chunks have nothing in common it would be copied for each of them.
const LEARNED_MAX: u32 = 8;

static CHOICES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"choices\":"));

/// Puts the caller's name of the model where the provider wrote its own.
#[derive(Debug)]
pub(super) struct Naming {
    /// In JSON.
    model: Bytes,
    known: Option<Known>,
    learned: u32,
}

/// What the chunks of this stream have in common, the model included: how they begin, or how they end where `choices` come before the
/// model. One that begins or ends with the same bytes has the model at the same place and needs no look inside.
///
/// An end says as much as a beginning: it starts with the comma before the model's key, so that in a text it would close that text and
/// go on with what is no JSON.
#[derive(Debug)]
struct Known {
    same: Bytes,
    is_end: bool,
    /// Its place is counted from where `same` starts.
    edit: Option<Edit>,
}

impl Known {
    /// - `place`: of the model's value in `data`.
    fn of(data: &[u8], place: &Range<usize>, edit: Option<&Edit>) -> Option<Self> {
        let is_end = CHOICES.find(&data[..place.start]).is_some();
        let same = if is_end {
            comma_before(data, place.start)?..data.len()
        } else {
            0..place.end
        };
        Some(Self {
            // A copy: a slice would keep the whole read alive for as long as the stream.
            same: Bytes::copy_from_slice(&data[same.clone()]),
            is_end,
            edit: edit.map(|edit| edit.moved(|at| at - same.start)),
        })
    }

    /// Where `data` has what all have, if it has.
    fn place(&self, data: &[u8]) -> Option<usize> {
        let start = if self.is_end {
            data.len().checked_sub(self.same.len())?
        } else {
            0
        };
        data[start..].starts_with(&self.same).then_some(start)
    }
}

/// Where the comma is in front of the key `model`, whose value starts at `value`.
fn comma_before(object: &[u8], value: usize) -> Option<usize> {
    let key = object[..value].trim_ascii_end().strip_suffix(b":")?;
    let before = key.trim_ascii_end().strip_suffix(b"\"model\"")?;
    before.trim_ascii_end().strip_suffix(b",").map(<[u8]>::len)
}

impl Naming {
    pub(super) fn new(model: &str) -> Self {
        Self {
            model: serde_json::to_vec(model).expect("text serializes").into(),
            known: None,
            learned: 0,
        }
    }

    /// The change that a chunk needs, if any. Errors: it is none.
    pub(super) fn edit(&mut self, data: &Bytes) -> Result<Option<Edit>, serde_json::Error> {
        if let Some(known) = &self.known
            && let Some(start) = known.place(data)
        {
            return Ok(known.edit.as_ref().map(|edit| edit.moved(|at| at + start)));
        }
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow, default, deserialize_with = "even_null")]
            model: Option<&'a RawValue>,
        }
        let named: Named<'_> = serde_json::from_slice(data)?;
        Ok(self.named(data, named.model))
    }

    /// The same, for a chunk that was parsed. `theirs`: its member `model`.
    pub(super) fn named(&mut self, data: &Bytes, theirs: Option<&RawValue>) -> Option<Edit> {
        let edit = naming(data, theirs, &self.model);
        if self.learned < LEARNED_MAX
            && self
                .known
                .as_ref()
                .is_none_or(|known| known.place(data).is_none())
            && let Some(theirs) = theirs.filter(|theirs| theirs.get().ends_with('"'))
            && let Some(place) = slices::place(data, theirs.get().as_bytes())
        {
            self.known = Known::of(data, &place, edit.as_ref());
            self.learned += 1;
        }
        edit
    }
}

/// The change that puts `model`, in JSON, into an object whose own `model` is `theirs`.
pub(super) fn naming(object: &[u8], theirs: Option<&RawValue>, model: &Bytes) -> Option<Edit> {
    let Some(theirs) = theirs else {
        let at = memchr::memchr(b'{', object)? + 1;
        let empty = object[at..].trim_ascii_start().starts_with(b"}");
        let comma = if empty { "" } else { "," };
        let model = String::from_utf8_lossy(model);
        return Some(Edit {
            range: at..at,
            with: format!("\"model\":{model}{comma}").into(),
        });
    };
    let range = slices::place(object, theirs.get().as_bytes())?;
    (object[range.clone()] != model[..]).then(|| Edit {
        range,
        with: model.clone(),
    })
}

/// An event with `edits` in its data, which are in order.
pub(super) fn event(frame: &Frame, data: &[u8], edits: &[Edit]) -> Bytes {
    match slices::place(&frame.raw, data) {
        _ if edits.is_empty() => frame.raw.clone(),
        Some(place) => slices::spliced(&frame.raw, place.start, edits),
        None => written(data, edits),
    }
}

/// The same without the event's own frame.
pub(super) fn written(data: &[u8], edits: &[Edit]) -> Bytes {
    slices::spliced(&[DATA, data, b"\n\n"].concat(), DATA.len(), edits)
}

/// The data of an event as one line, which is a slice of its bytes unless it came in several.
pub(super) fn line(frame: &Frame, data: &Bytes) -> Bytes {
    if slices::place(&frame.raw, data).is_some() {
        return data.clone();
    }
    // A line end inside JSON is space between two tokens.
    let joined: Vec<u8> = data.iter().map(|b| if *b == b'\n' { b' ' } else { *b }).collect();
    joined.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::sse::Parser;

    /// What becomes of events, and how many of them were looked into.
    fn named(model: &str, body: &'static str) -> (String, usize) {
        let (mut parser, mut naming, mut looks) = (Parser::default(), Naming::new(model), 0);
        parser.push(Bytes::from_static(body.as_bytes()));
        let mut out = String::new();
        while let Some(frame) = parser.next_frame().unwrap() {
            let data = line(&frame, frame.data.as_ref().unwrap());
            let known = naming.known.as_ref();
            looks += usize::from(known.is_none_or(|known| known.place(&data).is_none()));
            let edit = naming.edit(&data).unwrap();
            out.push_str(std::str::from_utf8(&event(&frame, &data, edit.as_slice())).unwrap());
        }
        (out, looks)
    }

    #[test]
    fn the_model_is_named_at_the_top_and_nowhere_else() {
        const CHUNKS: &str = "data: {\"id\":\"x\",\"model\":\"m-1\",\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"m-1\\\"\"}}]}\n\n";
        let ours = CHUNKS.replace("\"model\":\"m-1\"", "\"model\":\"a/b\"");
        let three: &str = CHUNKS.repeat(3).leak();
        assert_eq!(named("a/b", three), (ours.repeat(3), 1));
        assert_eq!(named("m-1", three), (three.to_owned(), 1));
        for (theirs, ours) in [
            // Not the first one in the text, a neighbour with a name that goes on, none at all, none in an object without members.
            (
                r#"{"choices":[{"model":"m-1"}],"model":"m-1"}"#,
                r#"{"choices":[{"model":"m-1"}],"model":"a/b"}"#,
            ),
            (
                r#"{"models":"m-1","model" : null }"#,
                r#"{"models":"m-1","model" : "a/b" }"#,
            ),
            (r#"{"choices":[]}"#, r#"{"model":"a/b","choices":[]}"#),
            ("{ }", r#"{"model":"a/b" }"#),
        ] {
            let body = format!("data: {theirs}\n\n").leak();
            assert_eq!(named("a/b", body).0, format!("data: {ours}\n\n"));
        }
        let lines = "event: x\ndata: {\"id\":1,\ndata: \"model\":\"m\"}\n\n";
        assert_eq!(named("a/b", lines).0, "data: {\"id\":1, \"model\":\"a/b\"}\n\n");
    }

    #[test]
    fn a_model_behind_the_choices_is_found_by_how_chunks_end() {
        let chunk = |text: &str, model: &str| {
            let text = serde_json::to_string(text).unwrap();
            format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":{text}}}}}],\"id\":\"x\" , \"model\": \"{model}\",\"object\":\"o\"}}\n\n"
            )
        };
        // The third ends like a chunk before its own end; the last one has the name of a model inside.
        let texts = [
            "a",
            "longer than that",
            ",\"model\": \"m\",\"object\":\"o\"}",
            "b",
        ];
        let written = |model: &str| texts.iter().map(|text| chunk(text, model)).collect::<String>();
        assert_eq!(named("a/b", written("m").leak()), (written("a/b"), 1));
        assert_eq!(named("m", written("m").leak()), (written("m"), 1));
    }

    #[test]
    fn chunks_that_have_nothing_in_common_are_looked_into_and_not_kept() {
        let chunk =
            |n: usize, model: &str| format!("data: {{\"id\":{n},\"model\":\"{model}\",\"choices\":[]}}\n\n");
        let count = 3 * LEARNED_MAX as usize;
        let written = |model: &str| (0..count).map(|n| chunk(n, model)).collect::<String>();
        assert_eq!(named("a/b", written("m").leak()), (written("a/b"), count));
        let mut naming = Naming::new("a/b");
        for n in 0..count {
            let data = chunk(n, "m").trim_start_matches("data: ").trim_end().to_owned();
            assert!(naming.edit(&data.into()).unwrap().is_some());
        }
        let kept = naming.known.unwrap().same;
        assert!(
            kept.starts_with(format!("{{\"id\":{}", LEARNED_MAX - 1).as_bytes()),
            "{kept:?}"
        );
    }
}
