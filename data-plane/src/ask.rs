//! What a caller asks for: the head of a chat completions body, read in one borrowed pass. PURE.
//!
//! Only what we act on is typed, with its place in the body, so that it can be changed without writing the rest again.
//! A key that occurs twice is refused: the provider might read the other value.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tollway_shared::fault::Fault;

use crate::dialects::estimate::{self, Measure, Prompt};

/// Deepest nesting of a body.
pub const DEPTH_MAX: usize = 128;
/// Longest `user` label, in characters; the rest is cut off.
const USER_CHARS_MAX: usize = 128;
/// Most models in `models`.
const FALLBACKS_MAX: usize = 8;
/// Up to so many keys of one object a linear search finds a double faster than a hash set.
const LINEAR_KEYS_MAX: usize = 24;

/// A caller's request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The body as it came.
    pub body: Bytes,
    /// What is asked for.
    pub model: String,
    /// Where the value of `model` is in the body.
    pub model_at: Range<usize>,
    /// What to try when no endpoint of `model` answers.
    pub fallbacks: Vec<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether the caller wants a usage chunk at the end of a stream.
    pub wants_usage: bool,
    /// Where the value of `stream_options` is, if it is there.
    pub stream_options_at: Option<Range<usize>>,
    /// The caller's label for its own user.
    pub user: Option<String>,
    /// Which providers may serve it, and in which order.
    pub provider: Preferences,
    /// Members that are ours and must not reach a provider.
    pub ours_at: Vec<Range<usize>>,
    /// The estimate of its prompt tokens, for a provider that counts none and for a node that dies.
    pub prompt_tokens: u64,
}

/// The caller's routing preferences, as far as they are acted on; other members are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Preferences {
    /// Providers to try first, in this order.
    #[serde(default)]
    pub order: Option<Vec<String>>,
    /// The only providers that may serve it.
    #[serde(default)]
    pub only: Option<Vec<String>>,
    /// Providers that may not serve it.
    #[serde(default)]
    pub ignore: Option<Vec<String>>,
    /// Whether providers outside `order` may serve it, and whether another attempt may follow a failed one; default: yes.
    #[serde(default)]
    pub allow_fallbacks: Option<bool>,
}

/// The options inside `stream_options` that are acted on.
#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

impl Ask {
    /// Reads a body.
    pub fn parse(body: Bytes) -> Result<Self, Fault> {
        refuse_depth(&body)?;
        let text = std::str::from_utf8(&body).map_err(|fault| Fault::InvalidJson {
            detail: format!("not UTF-8 at byte {}", fault.valid_up_to()),
        })?;
        let mut json = serde_json::Deserializer::from_str(text);
        let head = Head::deserialize(&mut json)
            .and_then(|head| json.end().map(|()| head))
            .map_err(|fault| as_fault(&fault))?;
        let at = |raw: &RawValue| place(text, raw.get());
        let model = head.model.ok_or_else(|| missing("model"))?;
        let prompt = head.messages.ok_or_else(|| missing("messages"))?;
        let wanted = "an object";
        let stream_options: Option<Option<StreamOptions>> =
            optional("stream_options", wanted, head.stream_options)?;
        let provider: Option<Preferences> =
            optional("provider", "an object of routing preferences", head.provider)?;
        let user: Option<String> = optional("user", "a string", head.user)?;
        let fallbacks: Option<Vec<String>> = optional("models", "an array of strings", head.models)?;
        let fallbacks = fallbacks.unwrap_or_default();
        if fallbacks.len() > FALLBACKS_MAX {
            return Err(invalid(
                "models",
                format!("has more than {FALLBACKS_MAX} entries"),
            ));
        }
        let ask = Self {
            model: required("model", "a string", model)?,
            model_at: at(model),
            fallbacks,
            stream: optional("stream", "true or false", head.stream)?.unwrap_or(false),
            wants_usage: stream_options
                .flatten()
                .and_then(|o| o.include_usage)
                .unwrap_or(false),
            stream_options_at: head.stream_options.map(at),
            user: user.map(|user| user.chars().take(USER_CHARS_MAX).collect()),
            provider: provider.unwrap_or_default(),
            ours_at: members(text, &head.ours),
            prompt_tokens: prompt.tokens(),
            body: body.clone(),
        };
        if ask.model.is_empty() {
            return Err(invalid("model", "must not be empty".into()));
        }
        Ok(ask)
    }
}

fn invalid(field: &str, detail: String) -> Fault {
    Fault::InvalidField {
        field: field.into(),
        detail,
    }
}

fn missing(field: &str) -> Fault {
    invalid(field, "is required".into())
}

fn required<'a, T: Deserialize<'a>>(field: &str, wanted: &str, raw: &'a RawValue) -> Result<T, Fault> {
    serde_json::from_str(raw.get()).map_err(|_| invalid(field, format!("must be {wanted}")))
}

fn optional<'a, T: Deserialize<'a>>(
    field: &str,
    wanted: &str,
    raw: Option<&'a RawValue>,
) -> Result<Option<T>, Fault> {
    raw.map_or(Ok(None), |raw| required(field, wanted, raw))
}

/// Where `part`, a slice of `text`, is.
fn place(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.len()
}

/// The ranges of whole members (key, value and one comma) given the places of their keys and values, in order.
fn members(text: &str, ours: &[(&str, &RawValue)]) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ours.len());
    for (key, value) in ours {
        let start = place(text, key).start - 1; // its opening quote
        let end = place(text, value.get()).end;
        let before = bytes[..start]
            .iter()
            .rposition(|b| !b.is_ascii_whitespace())
            .unwrap_or(0);
        let gone = out.last().is_some_and(|last| before < last.end);
        if bytes[before] == b',' && !gone {
            out.push(before..end);
        } else {
            // Nothing is left before it, so the comma after it goes.
            let after = bytes[end..]
                .iter()
                .position(|b| !b.is_ascii_whitespace())
                .map_or(end, |n| end + n);
            out.push(
                start..if bytes.get(after) == Some(&b',') {
                    after + 1
                } else {
                    end
                },
            );
        }
    }
    out
}

/// Nesting can be no deeper than there are opening brackets, and most bodies have few: only the others are looked at closely.
fn refuse_depth(body: &[u8]) -> Result<(), Fault> {
    if memchr::memchr2_iter(b'[', b'{', body).nth(DEPTH_MAX).is_none() {
        return Ok(());
    }
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for byte in body {
        match (text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => text = !text,
            (false, b'[' | b'{') => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Fault::TooDeep { max: DEPTH_MAX });
                }
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Our own faults travel through serde's error as text with one of these marks in front.
const DUPLICATE: &str = "tollway-duplicate ";
const INVALID: &str = "tollway-invalid ";

fn as_fault(fault: &serde_json::Error) -> Fault {
    let text = fault.to_string();
    let (what, place) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
    if let Some(field) = what.strip_prefix(DUPLICATE) {
        return Fault::DuplicateKey { field: field.into() };
    }
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

/// The keys of one object so far.
#[derive(Default)]
struct Seen<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Seen<'a> {
    /// Notes a key. False when it was there.
    fn first(&mut self, key: Cow<'a, str>) -> bool {
        if !self.many.is_empty() {
            return self.many.insert(key);
        }
        if self.few.contains(&key) {
            return false;
        }
        self.few.push(key);
        if self.few.len() > LINEAR_KEYS_MAX {
            self.many.extend(self.few.drain(..));
        }
        true
    }
}

#[derive(Default)]
struct Head<'a> {
    model: Option<&'a RawValue>,
    models: Option<&'a RawValue>,
    messages: Option<Prompt>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
    provider: Option<&'a RawValue>,
    ours: Vec<(&'a str, &'a RawValue)>,
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
        let (mut head, mut seen) = (Head::default(), Seen::default());
        while let Some(Key(key)) = map.next_key()? {
            if !seen.first(key.clone()) {
                return Err(A::Error::custom(format_args!("{DUPLICATE}{key}")));
            }
            match &*key {
                "model" => head.model = Some(map.next_value()?),
                "stream" => head.stream = not_null(map.next_value()?),
                "stream_options" => head.stream_options = Some(map.next_value()?),
                "user" => head.user = not_null(map.next_value()?),
                "messages" => {
                    head.messages = Some(map.next_value_seed(Messages)?);
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

fn not_null(raw: &RawValue) -> Option<&RawValue> {
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
        let (mut seen, mut role, mut measure) = (Seen::default(), false, Measure::default());
        while let Some(Key(key)) = map.next_key()? {
            if !seen.first(key.clone()) {
                return Err(A::Error::custom(format_args!(
                    "{DUPLICATE}messages[{}].{key}",
                    self.0
                )));
            }
            let value: &RawValue = map.next_value()?;
            match &*key {
                "role" if value.get().starts_with('"') => role = true,
                "role" => {
                    let field = format!("messages[{}].role", self.0);
                    return Err(refused(&field, "must be a string"));
                }
                "content" => measure.add(estimate::content(value.get())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::slices::{Edit, Slices};
    use proptest::prelude::*;

    fn parse(body: &str) -> Result<Ask, Fault> {
        Ask::parse(Bytes::copy_from_slice(body.as_bytes()))
    }

    const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

    #[test]
    fn the_head_is_read_and_placed() {
        let body = format!(
            r#"{{"model" : "a/b", {MESSAGES},"stream":true,"stream_options":{{"include_usage":true}},"user":"u"}}"#
        );
        let ask = parse(&body).unwrap();
        assert_eq!(
            (ask.model.as_str(), ask.stream, ask.wants_usage),
            ("a/b", true, true)
        );
        assert_eq!(&body[ask.model_at.clone()], "\"a/b\"");
        assert_eq!(&body[ask.stream_options_at.unwrap()], r#"{"include_usage":true}"#);
        assert_eq!(ask.user.as_deref(), Some("u"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |body: String| match parse(&body) {
            Err(fault) => format!("{} {}", fault.spec().code, fault.param().unwrap_or("-")),
            Ok(_) => "ok".into(),
        };
        for (body, expected) in [
            (format!("{{{MESSAGES}}}"), "invalid_value model"),
            (r#"{"model":"a/b"}"#.into(), "invalid_value messages"),
            (
                r#"{"model":"a/b","messages":[]}"#.into(),
                "invalid_value messages",
            ),
            (
                r#"{"model":"a/b","messages":"x, expected `y` as z"}"#.into(),
                "invalid_value messages",
            ),
            (
                r#"{"model":"a/b","messages":[1]}"#.into(),
                "invalid_value messages[0]",
            ),
            (
                r#"{"model":"a/b","messages":[{"content":""}]}"#.into(),
                "invalid_value messages[0].role",
            ),
            (
                r#"{"model":"a/b","messages":[{"role":1}]}"#.into(),
                "invalid_value messages[0].role",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"stream":"yes"}}"#),
                "invalid_value stream",
            ),
            (format!(r#"{{"model":7,{MESSAGES}}}"#), "invalid_value model"),
            (
                format!(r#"{{"model":"a","model":"b",{MESSAGES}}}"#),
                "duplicate_key model",
            ),
            (
                format!(r#"{{"model":"a","mod\u0065l":"b",{MESSAGES}}}"#),
                "duplicate_key model",
            ),
            (
                r#"{"model":"a","messages":[{"role":"user"},{"role":"user","content":"a","content":"b"}]}"#
                    .into(),
                "duplicate_key messages[1].content",
            ),
            ("{".into(), "invalid_json -"),
            ("[]".into(), "invalid_json -"),
            (format!(r#"{{"model":"a/b",{MESSAGES}}} x"#), "invalid_json -"),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"x":{}}}"#, "[".repeat(200)),
                "json_too_deep -",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"x":"{}"}}"#, "[".repeat(200)),
                "ok",
            ),
        ] {
            assert_eq!(field(body.clone()), expected, "{body}");
        }
    }

    #[test]
    fn our_members_leave_without_a_trace() {
        for (body, left) in [
            (
                r#"{"provider":{},"models":["x/y"],"model":"a",M}"#,
                r#"{"model":"a",M}"#,
            ),
            (
                r#"{"model":"a","provider":{"only":["p"]},M}"#,
                r#"{"model":"a",M}"#,
            ),
            (
                r#"{"model":"a",M , "models":[] , "provider":{} }"#,
                r#"{"model":"a",M   }"#,
            ),
            (
                r#"{ "models":[],"model":"a","provider":null,M}"#,
                r#"{ "model":"a",M}"#,
            ),
        ] {
            let body = Bytes::from(body.replace('M', MESSAGES).replace("Messages", "M"));
            let ask = Ask::parse(body.clone()).unwrap();
            let edits: Vec<_> = ask
                .ours_at
                .into_iter()
                .map(|range| Edit {
                    range,
                    with: Bytes::new(),
                })
                .collect();
            let out = Slices::edited(&body, &edits).to_bytes();
            assert_eq!(String::from_utf8_lossy(&out), left.replace('M', MESSAGES));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Ask::parse(body.into()));
        }

        #[test]
        fn no_near_json_makes_it_panic(body in r#"\{("(model|messages|models|provider|x)":(\[\]|\{\}|"a"|null|\[\{"role":"user"\}\]),?){0,6}\}?"#) {
            drop(parse(&body));
        }
    }
}
