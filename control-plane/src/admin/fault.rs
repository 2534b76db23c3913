//! Refusals of the admin API: made anywhere, rendered once as `application/problem+json`.
//!
//! A [`Fault`] travels to the outermost layer as a response extension, so that every refusal, axum's own included, carries the
//! id of its request.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use tollway_proto::admin::problem::{PROBLEM_JSON, Problem, ProblemCode};
use tollway_proto::command::{Refusal, RefusalCode};

use crate::raft::{MembersFault, ProposeFault};

/// What `Retry-After` says while there is no leader or majority.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request is refused.
#[derive(Debug, Clone)]
pub(crate) struct Fault(Box<Problem>);

impl Fault {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }

    /// A field, header or query parameter that is wrong.
    pub(crate) fn at(code: ProblemCode, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail).field(field)))
    }

    pub(crate) fn not_found(noun: &str, id: impl std::fmt::Display) -> Self {
        Self::new(ProblemCode::NotFound, format!("{noun} `{id}` does not exist"))
    }

    /// What is wrong, as it is told.
    pub(crate) fn problem(self) -> Problem {
        *self.0
    }

    /// The response, with the request's id in it.
    pub(crate) fn render(self, instance: &str) -> Response<Body> {
        let mut problem = *self.0;
        problem.instance = instance.to_owned();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).expect("a problem is plain text and numbers");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"tollway\""),
                );
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<ProposeFault> for Fault {
    fn from(fault: ProposeFault) -> Self {
        let code = match fault {
            ProposeFault::NoQuorum => ProblemCode::NoQuorum,
            ProposeFault::NoLeader => ProblemCode::NoLeader,
            ProposeFault::Timeout => ProblemCode::Timeout,
            ProposeFault::Stopping => ProblemCode::Unavailable,
            ProposeFault::TooLarge => ProblemCode::TooLarge,
        };
        let detail = match fault {
            ProposeFault::Timeout => {
                "the write was not confirmed in time: whether it happened is not known; send it again with the same \
                 `Idempotency-Key`, and it happens once"
                    .to_owned()
            }
            other => other.to_string(),
        };
        Self::new(code, detail)
    }
}

impl From<MembersFault> for Fault {
    fn from(fault: MembersFault) -> Self {
        let code = match fault {
            MembersFault::AlreadyInitialized
            | MembersFault::LastVoter(_)
            | MembersFault::Refused(_)
            | MembersFault::Removed(_)
            | MembersFault::NoSuccessor => ProblemCode::Conflict,
            MembersFault::NoLeader => ProblemCode::NoLeader,
            MembersFault::NotCaughtUp { .. } | MembersFault::Timeout => ProblemCode::Timeout,
            MembersFault::NotFound(_) => ProblemCode::NotFound,
        };
        Self::new(code, fault.to_string())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.code {
            RefusalCode::NotFound => ProblemCode::NotFound,
            RefusalCode::Conflict => ProblemCode::Conflict,
            RefusalCode::Precondition => ProblemCode::PreconditionFailed,
            RefusalCode::Invalid => ProblemCode::Invalid,
            RefusalCode::IdempotencyReused => ProblemCode::IdempotencyReused,
            RefusalCode::Forbidden => ProblemCode::Forbidden,
        };
        match refusal.field {
            Some(field) => {
                let detail = format!("`{field}` {}", refusal.detail);
                Self::at(code, field, detail)
            }
            None => Self::new(code, refusal.detail),
        }
    }
}
