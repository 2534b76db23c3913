//! Wire formats of providers, as pure functions of bytes. The caller's side is always OpenAI chat completions.
//!
//! | file | what |
//! |---|---|
//! | [`sse`] | bytes to events, whatever the split |
//! | [`slices`] | a body around what was changed in it |
//! | [`estimate`] | token counts when a provider gives none |
//! | [`openai`] | passed through; `model` is spliced, usage is read |
//! | [`anthropic`] | translated both ways |
//!
//! Each dialect has `request` (what is sent), `reply` (a whole answer), `stream` (its events) and `faults` (error bodies).

pub mod anthropic;
pub mod estimate;
pub mod openai;
pub mod slices;
pub mod sse;

use bytes::Bytes;
use tollway_shared::catalog::{Dialect, Endpoint, Provider};
use tollway_shared::fault::Fault;
use tollway_shared::tokens::TokenCounts;

use crate::ask::Ask;
use slices::Slices;

/// Longest provider message that is shown to a caller, in characters.
const MESSAGE_CHARS_MAX: usize = 500;

/// What is sent to a provider, apart from credentials.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Appended to the provider's base URL.
    pub path: &'static str,
    /// Headers that the dialect wants.
    pub headers: &'static [(&'static str, &'static str)],
    /// The body.
    pub body: Slices,
}

/// What an answer has shown so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// The provider's own counts.
    pub usage: Option<TokenCounts>,
    /// Whether these are the counts of the whole answer.
    pub usage_is_final: bool,
    /// Bytes of text, reasoning and tool arguments, for the estimate.
    pub text_bytes: u64,
    /// The normalised finish reason.
    pub finish_reason: Option<String>,
}

/// A provider's error inside an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderError {
    /// The status it means, when it says one.
    pub status: Option<u16>,
    /// Shortened, without control characters and keys.
    pub message: String,
}

/// A whole answer in the caller's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The body.
    pub body: Bytes,
    /// What it shows.
    pub tally: Tally,
}

/// Why a whole answer is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyFault {
    /// Not this dialect.
    Garbled,
    /// An error under a status of success.
    Error(ProviderError),
}

/// What becomes of one event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emit {
    /// These bytes go to the caller.
    Pass(Bytes),
    /// These bytes go to the caller and hold the usage object, whose last brace is at this place.
    Usage(Bytes, usize),
    /// Nothing goes to the caller.
    Skip,
    /// The stream has ended as it should.
    Done,
    /// The provider reported an error.
    Error(ProviderError),
    /// Not this dialect.
    Garbled,
}

/// What is sent for this ask.
pub fn encode(ask: &Ask, endpoint: &Endpoint, provider: &Provider) -> Result<Encoded, Fault> {
    match provider.dialect {
        Dialect::OpenAi => Ok(openai::request::encode(ask, endpoint, provider)),
        Dialect::Anthropic => anthropic::request::encode(ask, endpoint),
    }
}

/// Reads a whole answer. `model` and `created` are shown where the dialect's own would mislead or are missing.
pub fn reply(dialect: Dialect, body: Bytes, model: &str, created: i64) -> Result<Reply, ReplyFault> {
    match dialect {
        Dialect::OpenAi => openai::reply::read(body),
        Dialect::Anthropic => anthropic::reply::read(&body, model, created),
    }
}

/// A whole answer, as [`reply`] gives it, as the events of the stream that was asked for. `None` when it cannot be read.
pub fn streamed(body: &[u8], tally: &mut Tally, wants_usage: bool) -> Option<Vec<Emit>> {
    openai::restream::events(body, tally, wants_usage)
}

/// What a provider's error body says.
pub fn error_message(dialect: Dialect, body: &[u8]) -> String {
    let message = match dialect {
        Dialect::OpenAi => openai::faults::message(body),
        Dialect::Anthropic => anthropic::faults::message(body),
    };
    message.map_or_else(|| "no message".into(), |text| shown(&text))
}

/// A stream's events, one after the other.
#[derive(Debug)]
pub enum Events {
    /// Passed through.
    OpenAi(openai::stream::Stream),
    /// Translated.
    Anthropic(Box<anthropic::stream::Stream>),
}

impl Events {
    /// The start of a stream. `wants_usage`: whether the caller asked for a usage chunk.
    pub fn new(dialect: Dialect, wants_usage: bool, model: &str, created: i64) -> Self {
        match dialect {
            Dialect::OpenAi => Self::OpenAi(openai::stream::Stream::new(wants_usage)),
            Dialect::Anthropic => Self::Anthropic(Box::new(anthropic::stream::Stream::new(
                wants_usage,
                model,
                created,
            ))),
        }
    }

    /// The end of a stream of which nothing more comes.
    pub fn passed_through() -> Self {
        Self::OpenAi(openai::stream::Stream::new(false))
    }

    /// Whether anything of the answer itself has come: a token, a tool call, a refusal or an end. Until then another provider may still
    /// answer in this one's place.
    pub fn begun(&self) -> bool {
        match self {
            Self::OpenAi(stream) => stream.begun(),
            Self::Anthropic(stream) => stream.begun(),
        }
    }

    /// The usage chunk that has to be written by us at the end, for a caller who asked for one.
    pub fn usage_chunk(&self, tally: &Tally) -> Option<(Bytes, usize)> {
        match self {
            Self::OpenAi(_) => None,
            Self::Anthropic(stream) => stream.usage_chunk(tally),
        }
    }

    /// Looks at the next event.
    pub fn take(&mut self, frame: &sse::Frame, tally: &mut Tally) -> Emit {
        match self {
            Self::OpenAi(stream) => stream.take(frame, tally),
            Self::Anthropic(stream) => stream.take(frame, tally),
        }
    }
}

/// A provider's text as callers may see it: short, without control characters, without anything that looks like a key.
pub fn shown(text: &str) -> String {
    text.split_inclusive(char::is_whitespace)
        .map(|word| {
            let bare = word.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
            if bare.starts_with("sk-") || bare.starts_with("Bearer") {
                "*** "
            } else {
                word
            }
        })
        .flat_map(str::chars)
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MESSAGE_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_message_has_no_keys_and_no_control_characters() {
        assert_eq!(shown("bad key: 'sk-abc123' here\x1b[2J"), "bad key: *** here [2J");
        assert_eq!(shown(&"é".repeat(900)).chars().count(), MESSAGE_CHARS_MAX);
    }
}
