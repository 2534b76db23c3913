//! Token counts when a provider reports none: an honest guess from the text that was sent and received, always flagged as such.

use serde::Deserialize;
use std::borrow::Cow;
use tollway_shared::tokens::TokenCounts;

/// The estimator's name in usage events. A change of its arithmetic is another name.
pub const NAME: &str = "bytes4.v1";
/// UTF-8 bytes of text per token.
const BYTES_PER_TOKEN: u64 = 4;
/// What the frame around one message costs.
const TOKENS_PER_MESSAGE: u64 = 4;
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
    /// What they take of the body.
    pub attachment_bytes: u64,
}

impl Measure {
    /// Counts more in.
    pub fn add(&mut self, other: Self) {
        self.text_bytes += other.text_bytes;
        self.attachments += other.attachments;
        self.attachment_bytes += other.attachment_bytes;
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

    /// The estimate.
    pub fn tokens(&self) -> u64 {
        tokens(self.measure.text_bytes)
            + TOKENS_PER_ATTACHMENT * self.measure.attachments
            + TOKENS_PER_MESSAGE * self.messages as u64
    }

    /// The most that it can be: a token is at least one byte of what is sent.
    ///
    /// - `body_bytes`: of the whole request, tools and schemas included.
    pub fn tokens_max(&self, body_bytes: u64) -> u64 {
        let measure = &self.measure;
        body_bytes.saturating_sub(measure.attachment_bytes)
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
    let parts: Vec<Part<'_>> = serde_json::from_str(json).unwrap_or_default();
    let mut measure = Measure::default();
    for part in parts {
        match part.text {
            Some(text) => measure.text_bytes += text.len() as u64,
            None => measure.attachments += 1,
        }
    }
    if measure.attachments > 0 {
        measure.attachment_bytes = (json.len() as u64).saturating_sub(measure.text_bytes);
    }
    measure
}

/// What is known of a request's size before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The estimate of its prompt.
    pub prompt_tokens: u64,
    /// The most that the caller allows in all answers.
    pub completion_tokens_max: u64,
}

/// The counts of a request of this size that got `reply_bytes` bytes of text back.
pub fn counts(size: Size, reply_bytes: u64) -> TokenCounts {
    TokenCounts {
        input: size.prompt_tokens,
        output: tokens(reply_bytes).min(size.completion_tokens_max),
        ..TokenCounts::default()
    }
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

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

fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_counts_a_quarter_of_its_bytes_and_images_a_flat_amount() {
        let mut prompt = Prompt::default();
        prompt.add(content(r#""12345678""#));
        prompt.add(content(
            r#"[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:,"}}]"#,
        ));
        prompt.add(content("null"));
        assert_eq!(prompt.tokens(), 3 + 12 + 1_000);
        let size = |completion_tokens_max| Size {
            prompt_tokens: 7,
            completion_tokens_max,
        };
        assert_eq!(counts(size(u64::MAX), 5).output, 2);
        assert_eq!(counts(size(1), 5).output, 1);
    }

    #[test]
    fn no_prompt_has_more_tokens_than_bytes_and_its_attachments_count_flat() {
        let mut prompt = Prompt::default();
        prompt.add(content(r#""12345678""#));
        assert_eq!(prompt.tokens_max(100), 100 + 8 + 512);
        let image = r#"[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]"#;
        prompt.add(content(image));
        let body = 100 + image.len() as u64;
        assert_eq!(prompt.tokens_max(body), 100 + 4 + 2 * 8 + 512 + 10_000);
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
