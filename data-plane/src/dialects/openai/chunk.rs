//! One event of a stream: what is looked at in it, and how it is changed without a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
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

/// Puts the caller's name of the model where the provider wrote its own.
#[derive(Debug)]
pub(super) struct Naming {
    /// In JSON.
    model: Bytes,
    known: Option<Known>,
}

/// How the chunks of this stream begin, the model included. One that begins with the same bytes has it at the same place and needs no
/// look inside.
#[derive(Debug)]
struct Known {
    start: Bytes,
    edit: Option<Edit>,
}

impl Naming {
    pub(super) fn new(model: &str) -> Self {
        Self {
            model: serde_json::to_vec(model).expect("text serializes").into(),
            known: None,
        }
    }

    /// The change that a chunk needs, if any. Errors: it is none.
    pub(super) fn edit(&mut self, data: &Bytes) -> Result<Option<Edit>, serde_json::Error> {
        if let Some(known) = self.known.as_ref().filter(|known| data.starts_with(&known.start)) {
            return Ok(known.edit.clone());
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
        if let Some(theirs) = theirs.filter(|theirs| theirs.get().ends_with('"'))
            && let Some(range) = slices::place(data, theirs.get().as_bytes())
        {
            self.known = Some(Known {
                // A copy: a slice would keep the whole read alive for as long as the stream.
                start: Bytes::copy_from_slice(&data[..range.end]),
                edit: edit.clone(),
            });
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
            looks += usize::from(known.is_none_or(|known| !data.starts_with(&known.start)));
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
}
