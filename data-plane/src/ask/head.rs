//! The members of a body that are acted on, borrowed from it in one pass. PURE.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tollway_shared::fault::Fault;

use super::invalid;
use crate::dialects::estimate::{self, Measure, Prompt};

/// What is acted on, as written. A member that is `null` is as good as absent, unless it will be replaced.
#[derive(Default)]
pub(super) struct Head<'a> {
    pub(super) model: Option<&'a RawValue>,
    pub(super) models: Option<&'a RawValue>,
    pub(super) messages: Option<Prompt>,
    pub(super) stream: Option<&'a RawValue>,
    pub(super) stream_options: Option<&'a RawValue>,
    pub(super) user: Option<&'a RawValue>,
    pub(super) provider: Option<&'a RawValue>,
    pub(super) max_tokens: Option<&'a RawValue>,
    pub(super) max_completion_tokens: Option<&'a RawValue>,
    pub(super) n: Option<&'a RawValue>,
    /// Bytes of what a model is told beside the messages: its tools, the shape of its answer.
    pub(super) told_bytes: u64,
    /// Members that must not reach a provider, in order.
    pub(super) ours: Vec<(&'a str, &'a RawValue)>,
}

/// Our own faults travel through serde's error as text with this mark in front.
const INVALID: &str = "tollway-invalid ";

/// What an error of the parser means to the caller.
pub(super) fn as_fault(fault: &serde_json::Error) -> Fault {
    let text = fault.to_string();
    let (what, place) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
    if let Some((field, detail)) = what.strip_prefix(INVALID).and_then(|rest| rest.split_once(' ')) {
        return invalid(field, detail.into());
    }
    // What `expecting` of a part says. Its words come last, so that no text of the caller is taken for them.
    let expected = what.rsplit_once(", expected `").map(|(_, expected)| expected);
    if let Some((field, wanted)) = expected.and_then(|expected| expected.split_once("` as ")) {
        return invalid(field, format!("must be {wanted}"));
    }
    let place = if place.is_empty() {
        String::new()
    } else {
        format!(" at line {place}")
    };
    Fault::InvalidJson {
        detail: format!("{what}{place}"),
    }
}

fn refused<E: serde::de::Error>(field: &str, detail: &str) -> E {
    E::custom(format_args!("{INVALID}{field} {detail}"))
}

/// A key, borrowed unless it holds escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'de> Deserialize<'de> for Head<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadVisitor)
    }
}

struct HeadVisitor;

impl<'de> Visitor<'de> for HeadVisitor {
    type Value = Head<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head<'de>, A::Error> {
        let mut head = Head::default();
        while let Some(Key(key)) = map.next_key()? {
            match &*key {
                "model" => head.model = Some(map.next_value()?),
                "stream" => head.stream = not_null(map.next_value()?),
                "stream_options" => head.stream_options = Some(map.next_value()?),
                "user" => head.user = not_null(map.next_value()?),
                "max_tokens" => head.max_tokens = Some(map.next_value()?),
                "max_completion_tokens" => head.max_completion_tokens = Some(map.next_value()?),
                "n" => head.n = not_null(map.next_value()?),
                "messages" => {
                    head.messages = Some(map.next_value_seed(Messages)?);
                }
                "tools" | "functions" | "response_format" => {
                    let told: &RawValue = map.next_value()?;
                    head.told_bytes += not_null(told).map_or(0, |told| told.get().len() as u64);
                }
                name @ ("models" | "provider") => {
                    let value: &RawValue = map.next_value()?;
                    let Cow::Borrowed(borrowed) = key else {
                        return Err(refused(name, "must be written without escapes"));
                    };
                    head.ours.push((borrowed, value));
                    if borrowed == "models" {
                        head.models = not_null(value);
                    } else {
                        head.provider = not_null(value);
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(head)
    }
}

pub(super) fn not_null(raw: &RawValue) -> Option<&RawValue> {
    (raw.get() != "null").then_some(raw)
}

/// Looks at every message and keeps only their measure.
struct Messages;

impl<'de> DeserializeSeed<'de> for Messages {
    type Value = Prompt;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Prompt, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Messages {
    type Value = Prompt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`messages` as an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
        let mut prompt = Prompt::default();
        while let Some(message) = seq.next_element_seed(Message(prompt.messages))? {
            prompt.add(message);
        }
        if prompt.messages == 0 {
            return Err(refused("messages", "must not be empty"));
        }
        Ok(prompt)
    }
}

struct Message(usize);

impl<'de> DeserializeSeed<'de> for Message {
    type Value = Measure;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Measure, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message {
    type Value = Measure;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`messages[{}]` as an object", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Measure, A::Error> {
        let (mut role, mut measure) = (false, Measure::default());
        while let Some(Key(key)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            match &*key {
                "role" if value.get().starts_with('"') => role = true,
                "role" => {
                    let field = format!("messages[{}].role", self.0);
                    return Err(refused(&field, "must be a string"));
                }
                "content" => measure.add(estimate::content(value.get())),
                // An earlier answer in sound, by its id.
                "audio" => measure.has_files |= not_null(value).is_some(),
                "tool_calls" => measure.text_bytes += value.get().len() as u64,
                _ => {}
            }
        }
        if role {
            Ok(measure)
        } else {
            Err(refused(&format!("messages[{}].role", self.0), "is required"))
        }
    }
}
