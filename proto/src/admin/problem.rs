//! What the admin API answers when it refuses: RFC 9457.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:tollway:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The class of the refusal, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
    /// The id of this request, also in the replica's log.
    pub instance: String,
    /// The field, header or query parameter that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A stable name of the class.
    pub code: ProblemCode,
}

/// The classes of refusals of the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The body is not JSON.
    MalformedJson,
    /// A header or query parameter is wrong.
    InvalidRequest,
    /// No admin key, or one that is not known.
    Unauthenticated,
    /// The admin's role does not allow this.
    Forbidden,
    /// There is no such record.
    NotFound,
    /// There is no such route.
    UnknownRoute,
    /// The route has no such method.
    MethodNotAllowed,
    /// It exists already, or something still refers to it.
    Conflict,
    /// `if_revision` does not match.
    PreconditionFailed,
    /// The body is too large.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// A field is wrong.
    Invalid,
    /// The idempotency key was used for another request.
    IdempotencyReused,
    /// No majority of replicas can be reached.
    NoQuorum,
    /// There is no leader right now.
    NoLeader,
    /// The answer did not come in time. A write may or may not have happened.
    Timeout,
    /// This replica is stopping, or not ready.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl ProblemCode {
    /// Every class.
    pub const ALL: [Self; 18] = [
        Self::MalformedJson,
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::UnknownRoute,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Invalid,
        Self::IdempotencyReused,
        Self::NoQuorum,
        Self::NoLeader,
        Self::Timeout,
        Self::Unavailable,
        Self::Internal,
    ];

    /// Stable name, HTTP status, title.
    pub fn spec(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::MalformedJson => ("malformed_json", 400, "The body is not JSON"),
            Self::InvalidRequest => ("invalid_request", 400, "A header or query parameter is wrong"),
            Self::Unauthenticated => ("unauthenticated", 401, "No valid admin key"),
            Self::Forbidden => ("forbidden", 403, "Not allowed"),
            Self::NotFound => ("not_found", 404, "No such record"),
            Self::UnknownRoute => ("unknown_route", 404, "No such route"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "No such method here"),
            Self::Conflict => ("conflict", 409, "In conflict with what exists"),
            Self::PreconditionFailed => ("precondition_failed", 412, "Changed meanwhile"),
            Self::TooLarge => ("too_large", 413, "The body is too large"),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, "Not JSON"),
            Self::Invalid => ("invalid", 422, "A field is wrong"),
            Self::IdempotencyReused => ("idempotency_reused", 422, "The idempotency key was used before"),
            Self::NoQuorum => ("no_quorum", 503, "No majority of replicas"),
            Self::NoLeader => ("no_leader", 503, "No leader right now"),
            Self::Timeout => ("timeout", 503, "No answer in time"),
            Self::Unavailable => ("unavailable", 503, "Not serving right now"),
            Self::Internal => ("internal", 500, "A fault of this replica"),
        }
    }
}

impl Problem {
    /// A refusal of this class.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        let (name, status, title) = code.spec();
        Self {
            kind: format!("urn:tollway:problem:{name}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            instance: String::new(),
            field: None,
            code,
        }
    }

    /// The same, naming what is wrong.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_the_same_name_in_json_and_in_its_type() {
        for code in ProblemCode::ALL {
            let json = serde_json::to_value(Problem::new(code, "x")).unwrap();
            assert_eq!(
                json["type"],
                format!("urn:tollway:problem:{}", json["code"].as_str().unwrap())
            );
        }
    }
}
