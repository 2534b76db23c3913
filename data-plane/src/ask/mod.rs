//! What a caller asks for: the head of a chat completions body, read in one borrowed pass. PURE.
//!
//! | file | what |
//! |---|---|
//! | `head` | the members that are acted on |
//! | `place` | where they are in the body, and how deep it is |
//! | `unique` | no key twice in one object |
//! | `surrogate` | no half of a character |
//!
//! Only what we act on is typed, with its place in the body, so that it can be changed without writing the rest again.

mod head;
mod place;
mod surrogate;
mod unique;

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tollway_shared::catalog::OutputCap;
use tollway_shared::fault::Fault;

use crate::dialects::estimate::{Prompt, Size};
use crate::ratios::Learned;
use head::{Head, as_fault, not_null};
use place::{members, place, refuse_depth};

/// Longest `user` label, in characters; the rest is cut off.
const USER_CHARS_MAX: usize = 128;
/// Most models in `models`.
const FALLBACKS_MAX: usize = 8;
/// Most answers to one request (`n`), as OpenAI has it.
const ANSWERS_MAX: u32 = 128;

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
    /// The caller's cap on the completion tokens of one answer.
    pub output_tokens_max: Option<u32>,
    /// The caps in the body, those that are `null` too.
    pub caps: Vec<Cap>,
    /// A lower cap than the caller's, that a budget has put on it.
    pub clamped: Option<u32>,
    /// Whether its worst case is held: then no answer may be longer than what that was made from.
    pub is_held: bool,
    /// How many answers it wants, usually one.
    pub answers: u32,
    /// The measure of its prompt, for a provider that counts none and for a node that dies.
    pub prompt: Prompt,
    /// The most prompt tokens that it can be.
    pub prompt_tokens_max: u64,
}

/// A member of the body that caps the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// Its name.
    pub name: OutputCap,
    /// Where its key is, quotes included.
    pub key_at: Range<usize>,
    /// Where its value is.
    pub value_at: Range<usize>,
    /// Whether that is `null`: no cap.
    pub is_null: bool,
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
struct StreamOptions<'a> {
    #[serde(default, borrow)]
    include_usage: Option<&'a RawValue>,
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
        unique::refuse_duplicates(text)?;
        surrogate::refuse_halves(text)?;
        let at = |raw: &RawValue| place(text, raw.get());
        let model = head.model.ok_or_else(|| missing("model"))?;
        let mut prompt = head.messages.ok_or_else(|| missing("messages"))?;
        prompt.measure.text_bytes += head.told_bytes;
        let stream_options: Option<Option<StreamOptions>> =
            object("stream_options", "an object", head.stream_options)?;
        let wants_usage: Option<Option<bool>> = optional(
            "stream_options.include_usage",
            "true or false",
            stream_options.flatten().and_then(|options| options.include_usage),
        )?;
        let provider: Option<Preferences> =
            object("provider", "an object of routing preferences", head.provider)?;
        let user: Option<String> = optional("user", "a string", head.user)?;
        let fallbacks: Option<Vec<String>> = optional("models", "an array of strings", head.models)?;
        let fallbacks = fallbacks.unwrap_or_default();
        if fallbacks.len() > FALLBACKS_MAX {
            return Err(invalid(
                "models",
                format!("has more than {FALLBACKS_MAX} entries"),
            ));
        }
        let named = [
            (OutputCap::MaxTokens, head.max_tokens),
            (OutputCap::MaxCompletionTokens, head.max_completion_tokens),
        ];
        let cap = |(name, value): (OutputCap, Option<&RawValue>)| {
            let value_at = at(value?);
            let key_at = place::key(text, &value_at);
            Some(Cap {
                name,
                key_at,
                value_at,
                is_null: value.and_then(not_null).is_none(),
            })
        };
        let caps: Vec<_> = named.into_iter().filter_map(cap).collect();
        let [max_tokens, max_completion_tokens] = named.map(|(_, value)| value.and_then(not_null));
        let max_tokens = count("max_tokens", u32::MAX, max_tokens)?;
        let max_completion_tokens = count("max_completion_tokens", u32::MAX, max_completion_tokens)?;
        let ask = Self {
            model: required("model", "a string", model)?,
            model_at: at(model),
            fallbacks,
            stream: optional("stream", "true or false", head.stream)?.unwrap_or(false),
            wants_usage: wants_usage.flatten().unwrap_or(false),
            stream_options_at: head.stream_options.map(at),
            user: user.map(|user| user.chars().take(USER_CHARS_MAX).collect()),
            provider: provider.unwrap_or_default(),
            ours_at: members(text, &head.ours),
            // The newer name, where a caller sends both.
            output_tokens_max: max_completion_tokens.or(max_tokens),
            caps,
            clamped: None,
            is_held: false,
            answers: count("n", ANSWERS_MAX, head.n)?.unwrap_or(1),
            prompt_tokens_max: prompt.tokens_max(body.len() as u64),
            prompt,
            body: body.clone(),
        };
        if ask.model.is_empty() {
            return Err(invalid("model", "must not be empty".into()));
        }
        Ok(ask)
    }

    /// Lowers its cap.
    pub fn clamp(&mut self, cap: u32) {
        self.output_tokens_max = Some(cap);
        self.clamped = Some(cap);
    }

    /// What is known of its size at an endpoint, for estimates.
    ///
    /// - `sold`: the most completion tokens of one answer where the caller has no cap, as far as anybody knows.
    pub fn size(&self, sold: Option<u32>, learned: Learned) -> Size {
        let each = self.output_tokens_max.or(sold);
        Size {
            prompt_bytes: self.prompt.bytes(),
            attachment_tokens: self.prompt.attachment_tokens(),
            prompt_tokens_max: self.prompt_tokens_max,
            completion_tokens_max: each
                .map_or(u64::MAX, u64::from)
                .saturating_mul(u64::from(self.answers)),
            learned,
        }
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

/// An object or `null`. A list would be read as the members in their order.
fn object<'a, T: Deserialize<'a>>(
    field: &str,
    wanted: &str,
    raw: Option<&'a RawValue>,
) -> Result<Option<T>, Fault> {
    if raw.is_some_and(|raw| raw.get().starts_with('[')) {
        return Err(invalid(field, format!("must be {wanted}")));
    }
    optional(field, wanted, raw)
}

/// A number of things, at least one.
fn count(field: &str, max: u32, raw: Option<&RawValue>) -> Result<Option<u32>, Fault> {
    let wanted = format!("an integer from 1 to {max}");
    match optional(field, &wanted, raw)? {
        Some(number) if !(1..=max).contains(&number) => Err(invalid(field, format!("must be {wanted}"))),
        number => Ok(number),
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
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"stream_options":{{"include_usage":"a"}}}}"#),
                "invalid_value stream_options.include_usage",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"stream_options":7}}"#),
                "invalid_value stream_options",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"stream_options":[true]}}"#),
                "invalid_value stream_options",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"provider":[["a"]]}}"#),
                "invalid_value provider",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"stream_options":{{"include_usage":null}}}}"#),
                "ok",
            ),
            (
                r#"{"model":"a/b","messages":[{"role":"user","content":"\ud83d"}]}"#.into(),
                "invalid_json -",
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
            (
                format!(r#"{{"model":"a",{MESSAGES},"metadata":{{"x":1,"y":{{"x":1}},"x":2}}}}"#),
                "duplicate_key metadata.x",
            ),
            (
                format!(
                    r#"{{"model":"a",{MESSAGES},"tools":[{{}},{{"function":{{"parameters":{{"a\"b":[1,{{}}],"c":"\\","\u0061\"b":2}}}}}}]}}"#
                ),
                "duplicate_key tools[1].function.parameters.a\"b",
            ),
            (
                r#"{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"a","type":"text"}]}]}"#
                    .into(),
                "duplicate_key messages[0].content[0].type",
            ),
            (
                format!(r#"{{"model":"a",{MESSAGES},"provider":{{"only":["a"],"only":["b"]}}}}"#),
                "duplicate_key provider.only",
            ),
            (format!(r#"{{"model":"a/b",{MESSAGES},"max_tokens":0}}"#), "invalid_value max_tokens"),
            (format!(r#"{{"model":"a/b",{MESSAGES},"max_tokens":"9"}}"#), "invalid_value max_tokens"),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"max_completion_tokens":1.5}}"#),
                "invalid_value max_completion_tokens",
            ),
            (
                format!(r#"{{"model":"a/b",{MESSAGES},"max_tokens":4294967296}}"#),
                "invalid_value max_tokens",
            ),
            (format!(r#"{{"model":"a/b",{MESSAGES},"max_tokens":null,"n":null}}"#), "ok"),
            (format!(r#"{{"model":"a/b",{MESSAGES},"n":0}}"#), "invalid_value n"),
            (format!(r#"{{"model":"a/b",{MESSAGES},"n":129}}"#), "invalid_value n"),
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
