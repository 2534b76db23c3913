//! Error bodies and error events.

use serde::Deserialize;
use std::borrow::Cow;

use crate::dialects::{ProviderError, shown};

/// `{"type":"error","error":{"type","message"}}`.
#[derive(Deserialize)]
pub(crate) struct Body<'a> {
    #[serde(borrow)]
    error: Inside<'a>,
}

#[derive(Deserialize)]
struct Inside<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

/// The message of an error body, if it has one.
pub fn message(body: &[u8]) -> Option<String> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    Some(body.error.message.into_owned())
}

/// What an error event says.
pub(crate) fn inside(body: &[u8]) -> ProviderError {
    let Ok(body) = serde_json::from_slice::<Body<'_>>(body) else {
        return ProviderError {
            status: None,
            message: "no message".into(),
        };
    };
    ProviderError {
        status: status(&body.error.kind),
        message: shown(&body.error.message),
    }
}

/// The status that an error type stands for. Source: Anthropic's error reference.
fn status(kind: &str) -> Option<u16> {
    Some(match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "api_error" => 500,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_says_status_and_message() {
        let error = inside(br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#);
        assert_eq!((error.status, error.message.as_str()), (Some(529), "Overloaded"));
        assert_eq!(inside(b"{}").status, None);
    }
}
