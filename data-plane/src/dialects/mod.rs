//! Wire formats of providers, as pure functions of bytes. The caller's side is always OpenAI chat completions.
//!
//! | file | what |
//! |---|---|
//! | [`sse`] | bytes to events, whatever the split |
//! | [`slices`] | a body around what was changed in it |
//! | [`estimate`] | token counts when a provider gives none |
//! | [`usage`] | the usage object that callers see |
//! | [`openai`] | passed through; `model` and usage are spliced |
//! | [`anthropic`] | translated both ways |
//!
//! Each dialect has `request` (what is sent), `reply` (a whole answer), `stream` (its events) and `faults` (error bodies).

pub mod anthropic;
pub mod estimate;
pub mod openai;
pub mod slices;
pub mod sse;
pub mod usage;

use std::ops::Range;

use bytes::Bytes;
use tollway_shared::catalog::{Dialect, Endpoint, Provider};
use tollway_shared::fault::Fault;
use tollway_shared::tokens::TokenCounts;

use crate::ask::Ask;
use slices::{Edit, Slices};
use usage::Billed;

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
    /// The body, as it came or was translated.
    pub body: Bytes,
    /// The change that gives the model the name that the caller knows.
    pub model: Option<Edit>,
    /// Where the usage object is in it; empty where it goes, behind the last member.
    pub usage: Range<usize>,
    /// What it shows.
    pub tally: Tally,
}

impl Reply {
    /// What the caller gets: the body with the model's name and what it is billed for.
    pub fn priced(&self, billed: &Billed) -> Slices {
        let theirs = Some(&self.body[self.usage.clone()]).filter(|usage| !usage.is_empty());
        let usage = usage::written(theirs, billed);
        let with = match theirs {
            Some(_) => usage,
            None => [&b",\"usage\":"[..], &usage].concat().into(),
        };
        let mut edits = Vec::with_capacity(2);
        edits.extend(self.model.clone());
        edits.push(Edit {
            range: self.usage.clone(),
            with,
        });
        edits.sort_by_key(|edit| edit.range.start);
        Slices::edited(&self.body, &edits)
    }
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

/// The most completion tokens in one answer of an endpoint to an ask without a cap, as far as anybody says.
pub fn output_tokens_max(endpoint: &Endpoint, provider: &Provider) -> Option<u32> {
    let own = match provider.dialect {
        Dialect::OpenAi => None,
        Dialect::Anthropic => Some(anthropic::request::MAX_TOKENS_DEFAULT),
    };
    endpoint.max_output_tokens.or(own)
}

/// Reads a whole answer. `model`: as the caller knows it; `created`: shown where the dialect has none.
pub fn reply(dialect: Dialect, body: Bytes, model: &str, created: i64) -> Result<Reply, ReplyFault> {
    match dialect {
        Dialect::OpenAi => openai::reply::read(body, model),
        Dialect::Anthropic => anthropic::reply::read(&body, model, created),
    }
}

/// A whole answer, as [`reply`] gives it, as the events of the stream that was asked for. `None` when it cannot be read.
pub fn streamed(
    body: &[u8],
    tally: &mut Tally,
    wants_usage: bool,
    model: &str,
    created: i64,
) -> Option<(Events, Vec<Emit>)> {
    let stream = openai::stream::Stream::new(wants_usage, model, created);
    let (stream, events) = openai::restream::events(body, tally, model, stream)?;
    Some((Events::OpenAi(stream.into()), events))
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
    OpenAi(Box<openai::stream::Stream>),
    /// Translated.
    Anthropic(Box<anthropic::stream::Stream>),
}

impl Events {
    /// The start of a stream. `wants_usage`: whether the caller asked for a usage chunk; `model`: as the caller knows it.
    pub fn new(dialect: Dialect, wants_usage: bool, model: &str, created: i64) -> Self {
        match dialect {
            Dialect::OpenAi => {
                Self::OpenAi(Box::new(openai::stream::Stream::new(wants_usage, model, created)))
            }
            Dialect::Anthropic => Self::Anthropic(Box::new(anthropic::stream::Stream::new(
                wants_usage,
                model,
                created,
            ))),
        }
    }

    /// Whether anything of the answer itself has come: a token, a tool call, a refusal or an end. Until then another provider may still
    /// answer in this one's place.
    pub fn begun(&self) -> bool {
        match self {
            Self::OpenAi(stream) => stream.begun(),
            Self::Anthropic(stream) => stream.begun(),
        }
    }

    /// The usage chunk, which comes after the last event, for a caller who asked for one.
    pub fn usage_chunk(&self, billed: &Billed) -> Option<Bytes> {
        match self {
            Self::OpenAi(stream) => stream.usage_chunk(billed),
            Self::Anthropic(stream) => stream.usage_chunk(billed),
        }
    }

    /// The id that all chunks have, once one has said it.
    pub fn id(&self) -> Option<&str> {
        let id = match self {
            Self::OpenAi(stream) => stream.id(),
            Self::Anthropic(stream) => stream.id(),
        };
        Some(id).filter(|id| !id.is_empty())
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
