//! Error bodies, of OpenAI and of the servers that nearly speak like it.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

use crate::dialects::{ProviderError, shown};

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    detail: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Inside<'a> {
    #[serde(borrow, default)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<&'a RawValue>,
}

/// The message of an error body, if it has one.
pub fn message(body: &[u8]) -> Option<String> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    body.error
        .map(|error| inside(error).message)
        .or_else(|| body.message.map(Cow::into_owned))
        .or_else(|| body.detail.map(|detail| detail.get().to_owned()))
}

/// An `error` member: an object, or a bare text.
pub fn inside(error: &RawValue) -> ProviderError {
    if let Ok(text) = serde_json::from_str::<String>(error.get()) {
        return ProviderError {
            status: None,
            message: shown(&text),
        };
    }
    let parsed = serde_json::from_str::<Inside<'_>>(error.get()).ok();
    let status = parsed
        .as_ref()
        .and_then(|e| e.code)
        .and_then(|code| code.get().trim_matches('"').parse().ok());
    let message = parsed.and_then(|e| e.message);
    ProviderError {
        status: status.filter(|status| (400..600).contains(status)),
        message: shown(message.as_deref().unwrap_or("no message")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_shapes_are_understood() {
        for (body, expected) in [
            (r#"{"error":{"message":"m","type":"t"}}"#, Some("m")),
            (r#"{"error":"m"}"#, Some("m")),
            (r#"{"object":"error","message":"m"}"#, Some("m")),
            (r#"{"detail":"m"}"#, Some("\"m\"")),
            ("<html>", None),
        ] {
            assert_eq!(message(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }
}
