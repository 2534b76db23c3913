//! Token counts when a provider reports none: an honest guess from the text that was sent and received, always flagged as such.
//!
//! Text is measured in bytes here. How many tokens these are is learned of each endpoint ([`crate::ratios`]).

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tollway_shared::tokens::TokenCounts;

use crate::ratios::{BYTES_PER_TOKEN, Counted, Learned};

/// The estimator's name in usage events where nothing is known of the endpoint: four bytes are a token. A change of its arithmetic is
/// another name.
pub const PLAIN: &str = "bytes4.v2";
/// Its name where bytes per token were learned from what the endpoint's provider counted.
pub const LEARNED: &str = "bytes-learned.v1";
/// What the frame around one message costs.
const BYTES_PER_MESSAGE: u64 = 4 * BYTES_PER_TOKEN;
/// What an image or file costs.
const TOKENS_PER_ATTACHMENT: u64 = 1_000;
/// The most that the frame around one message costs.
const TOKENS_PER_MESSAGE_MAX: u64 = 8;
/// The most that an image or a page of a file is sold for, but for models that multiply an image's tokens to price it like their
/// larger kin; those have a price of their own.
const TOKENS_PER_ATTACHMENT_MAX: u64 = 10_000;
/// What providers add of their own, most of it for tools.
const TOKENS_ADDED_MAX: u64 = 512;

/// What one message holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// Bytes of text.
    pub text_bytes: u64,
    /// Images and files.
    pub attachments: u64,
    /// What images take of the body.
    pub image_bytes: u64,
    /// Whether there is something whose tokens neither its bytes nor a flat amount bound: a file, sound, or what is not known.
    pub has_files: bool,
}

impl Measure {
    /// Counts more in.
    pub fn add(&mut self, other: Self) {
        self.text_bytes += other.text_bytes;
        self.attachments += other.attachments;
        self.image_bytes += other.image_bytes;
        self.has_files |= other.has_files;
    }
}

/// What all messages hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prompt {
    /// How many there are.
    pub messages: usize,
    /// Their sum.
    pub measure: Measure,
}

impl Prompt {
    /// Counts a message in.
    pub fn add(&mut self, message: Measure) {
        self.messages += 1;
        self.measure.add(message);
    }

    /// The bytes that the estimate is made from: of text, tools among it, and of the frames around messages.
    pub fn bytes(&self) -> u64 {
        self.measure.text_bytes + BYTES_PER_MESSAGE * self.messages as u64
    }

    /// The estimate of its images and files.
    pub fn attachment_tokens(&self) -> u64 {
        TOKENS_PER_ATTACHMENT * self.measure.attachments
    }

    /// The most that it can be, unless it [has files](Measure::has_files): a token is at least one byte of what is sent.
    ///
    /// - `body_bytes`: of the whole request, tools and schemas included.
    pub fn tokens_max(&self, body_bytes: u64) -> u64 {
        let measure = &self.measure;
        body_bytes.saturating_sub(measure.image_bytes)
            + TOKENS_PER_ATTACHMENT_MAX * measure.attachments
            + TOKENS_PER_MESSAGE_MAX * self.messages as u64
            + TOKENS_ADDED_MAX
    }
}

/// Measures a message's `content` as it is written in JSON: a text, or an array of parts.
pub fn content(json: &str) -> Measure {
    if let Some(text) = json.strip_prefix('"') {
        return Measure {
            text_bytes: text_bytes(text),
            ..Measure::default()
        };
    }
    let mut measure = Measure::default();
    let Ok(parts) = serde_json::from_str::<Option<Vec<Part>>>(json) else {
        measure.has_files = true;
        return measure;
    };
    for part in parts.into_iter().flatten() {
        measure.text_bytes += part.text_bytes;
        if let Some(bytes) = part.image_bytes {
            measure.attachments += 1;
            measure.image_bytes += bytes;
        }
        if part.is_file {
            measure.attachments += 1;
            measure.has_files = true;
        }
    }
    measure
}

/// What is known of a request's size at an endpoint before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// [`Prompt::bytes`].
    pub prompt_bytes: u64,
    /// [`Prompt::attachment_tokens`].
    pub attachment_tokens: u64,
    /// The most that its prompt can be: no estimate is higher than what was held.
    pub prompt_tokens_max: u64,
    /// The most that caller and endpoint allow in all answers.
    pub completion_tokens_max: u64,
    /// What was known of the endpoint when it was asked.
    pub learned: Learned,
}

impl Size {
    /// The estimate of its prompt.
    pub fn prompt_tokens(&self) -> u64 {
        let text = self.learned.prompt.tokens(self.prompt_bytes);
        text.saturating_add(self.attachment_tokens)
            .min(self.prompt_tokens_max)
    }

    /// The estimator that speaks.
    pub fn estimator(&self) -> &'static str {
        if self.learned.is_known() { LEARNED } else { PLAIN }
    }

    /// What there is to learn from a prompt that the provider has counted. Of one with images and files nothing: they are counted by
    /// other rules.
    pub fn counted_prompt(&self, counts: &TokenCounts) -> Counted {
        Counted {
            tokens: counts.prompt(),
            bytes: if self.attachment_tokens == 0 {
                self.prompt_bytes
            } else {
                0
            },
        }
    }
}

/// The counts of a request of this size that got `reply_bytes` bytes of text back.
pub fn counts(size: &Size, reply_bytes: u64) -> TokenCounts {
    let completion = size.learned.completion.tokens(reply_bytes);
    TokenCounts {
        input: size.prompt_tokens(),
        output: completion.min(size.completion_tokens_max),
        ..TokenCounts::default()
    }
}

/// A part of a message's content, as far as its tokens go.
#[derive(Default)]
struct Part {
    text_bytes: u64,
    image_bytes: Option<u64>,
    /// Whether it has, or names, what is not bounded by its bytes or a flat amount. Of members that nobody knows here that is assumed:
    /// some servers go by them whatever the part's `type` says.
    is_file: bool,
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part of a message's content")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Part, A::Error> {
        let mut part = Part::default();
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "type" => {
                    let kind: Option<Text<'_>> = map.next_value()?;
                    let kind = kind.as_ref().map(|Text(kind)| &**kind);
                    part.is_file |= !matches!(kind, None | Some("text" | "refusal" | "image_url"));
                }
                "text" | "refusal" => {
                    let text: Option<Text<'_>> = map.next_value()?;
                    part.text_bytes += text.map_or(0, |Text(text)| text.len() as u64);
                }
                "image_url" => match map.next_value::<&RawValue>()?.get() {
                    "null" => part.is_file = true, // one that the server has kept
                    image => part.image_bytes = Some(image.len() as u64),
                },
                // Of answers that are sent back, and how closely to look at an image.
                "cache_control" | "annotations" | "citations" | "detail" | "id" | "index" => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => part.is_file |= may_name_something(map.next_value::<&RawValue>()?.get()),
            }
        }
        Ok(part)
    }
}

/// Whether a value can stand for something that is elsewhere: no number, nothing empty.
fn may_name_something(json: &str) -> bool {
    let inside = json
        .strip_prefix(['"', '[', '{'])
        .and_then(|rest| rest.strip_suffix(['"', ']', '}']));
    inside.is_some_and(|inside| !inside.trim().is_empty())
}

/// A text that is borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Bytes of a text in JSON, its closing quote included in `text`. An escape stands for one byte, `\\uXXXX` for two.
fn text_bytes(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let (mut length, mut next) = (bytes.len().saturating_sub(1), 0);
    for place in memchr::memchr_iter(b'\\', bytes) {
        if place >= next {
            next = place + 2;
            let saved = if bytes.get(place + 1) == Some(&b'u') { 4 } else { 1 };
            length = length.saturating_sub(saved);
        }
    }
    length as u64
}

#[cfg(test)]
mod tests {
    use tollway_shared::ids::EndpointId;

    use super::*;
    use crate::ratios::Ratios;

    #[test]
    fn text_counts_a_quarter_of_its_bytes_and_images_a_flat_amount() {
        let mut prompt = Prompt::default();
        prompt.add(content(r#""12345678""#));
        prompt.add(content(
            r#"[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:,"}}]"#,
        ));
        prompt.add(content("null"));
        let size = |prompt_tokens_max, completion_tokens_max| Size {
            prompt_bytes: prompt.bytes(),
            attachment_tokens: prompt.attachment_tokens(),
            prompt_tokens_max,
            completion_tokens_max,
            learned: Learned::PRIOR,
        };
        let most = size(u64::MAX, u64::MAX);
        assert_eq!((most.prompt_tokens(), most.estimator()), (3 + 12 + 1_000, PLAIN));
        assert_eq!(counts(&most, 5).output, 2);
        assert_eq!(counts(&size(1_000, 1), 5), counts(&size(1_000, 1), 500));
        assert_eq!(counts(&size(1_000, 1), 5).total(), 1_001);
    }

    #[test]
    fn an_endpoint_is_estimated_as_its_provider_has_counted_and_no_higher_than_was_held() {
        let (endpoint, mut ratios) = (EndpointId::trusted("e"), Ratios::default());
        let size = |learned, attachment_tokens| Size {
            prompt_bytes: 900,
            attachment_tokens,
            prompt_tokens_max: 1_200,
            completion_tokens_max: 500,
            learned,
        };
        let told = TokenCounts {
            input: 100,
            input_cache_read: 200,
            output: 50,
            output_reasoning: 50,
            ..TokenCounts::default()
        };
        let images = size(Learned::PRIOR, 1_000).counted_prompt(&told);
        assert_eq!(images.bytes, 0);
        for _ in 0..1_000 {
            let prompt = size(Learned::PRIOR, 0).counted_prompt(&told);
            let completion = Counted {
                tokens: told.completion(),
                bytes: 500,
            };
            ratios.note(&endpoint, prompt, completion);
        }
        let learned = size(ratios.of(&endpoint), 0);
        assert_eq!((learned.prompt_tokens(), learned.estimator()), (300, LEARNED));
        assert_eq!(counts(&learned, 250).output, 51);
        assert_eq!(counts(&learned, 25_000).output, 500);
        assert_eq!(size(ratios.of(&endpoint), 1_000).prompt_tokens(), 1_200);
    }

    #[test]
    fn no_prompt_has_more_tokens_than_bytes_and_its_attachments_count_flat() {
        let mut prompt = Prompt::default();
        prompt.add(content(r#""12345678""#));
        assert_eq!(prompt.tokens_max(100), 100 + 8 + 512);
        let image = r#"[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]"#;
        prompt.add(content(image));
        let url = r#"{"url":"data:image/png;base64,AAAA"}"#;
        let (body, besides) = (100 + image.len() as u64, image.len() - url.len());
        let flat = 2 * 8 + 512 + 10_000;
        assert_eq!(prompt.tokens_max(body), 100 + besides as u64 + flat);
        assert!(!prompt.measure.has_files);
    }

    #[test]
    fn of_files_nobody_knows_how_many_tokens_they_are_and_a_refusal_is_text() {
        for (json, has_files) in [
            (r#"[{"type":"refusal","refusal":"12345678"}]"#, false),
            (r#"[{"type":"file","file":{"file_id":"f-1"}}]"#, true),
            (
                r#"[{"type":"file","text":"","image_url":{"url":"data:,"},"file":{"file_data":"AAAA"}}]"#,
                true,
            ),
            (
                r#"[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]"#,
                true,
            ),
            (
                r#"[{"text":"what is this","video_url":"https://example.com/v.mp4"}]"#,
                true,
            ),
            (
                r#"[{"type":"text","text":"","input_audio":{"data":"AAAA"}}]"#,
                true,
            ),
            (r#"[{"image_url":null,"uuid":"kept"}]"#, true),
            (
                r#"[{"type":"text","text":"a","annotations":[{"url":"u"}],"id":"p1","n":1,"more":[ ],"last":false}]"#,
                false,
            ),
            (
                r#"[{"type":"image_url","image_url":{"url":"data:,"},"detail":"low"}]"#,
                false,
            ),
            (
                r#"[{"type":"text","text":"a","cache_control":{"type":"ephemeral"},"video_url":null}]"#,
                false,
            ),
            (r#"{"type":"file"}"#, true),
            ("[7]", true),
            ("null", false),
        ] {
            assert_eq!(content(json).has_files, has_files, "{json}");
        }
        assert_eq!(
            content(r#"[{"type":"refusal","refusal":"12345678"}]"#).text_bytes,
            8
        );
    }

    #[test]
    fn escapes_are_measured_as_what_they_stand_for() {
        for (json, bytes) in [
            (r#""a\nb""#, 3),
            (r#""\\\\""#, 2),
            (r#""\u00e9""#, 2),
            (r#""""#, 0),
            ("\"é\"", 2),
        ] {
            assert_eq!(content(json).text_bytes, bytes, "{json}");
        }
    }
}
