//! The error table of the public API: one variant per cause, one stable code each.
//!
//! `Display` is what callers read. Causes from inside (addresses, provider bodies, credentials) never get into it.
//! 401, 403, 404 and 410 are raised only from positive knowledge in a valid snapshot (invariant I21): a fault of ours is 5xx.

mod attempt;
mod examples;
mod limit;
mod spec;
mod text;

pub use attempt::AttemptFault;
use attempt::{attempt_hint, attempts_failed};
pub use limit::LimitNote;
use spec::spec;
pub use spec::{FaultSpec, Owner};
use text::{close_matches, date, left_hint, left_of_credit_hint, resets_hint, said, successor_hint};

use crate::ids::{ModelId, ProviderId};
use crate::lease::hold::Left;
use crate::time::UnixMillis;

/// Why a request was not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The body is not JSON.
    #[error("the request body is not valid JSON: {detail}")]
    InvalidJson {
        /// What the parser said, with line and column.
        detail: String,
    },
    /// A field has the wrong type or value.
    #[error("`{field}` {detail}")]
    InvalidField {
        /// The path of the field.
        field: String,
        /// What is wrong with it and what to do.
        detail: String,
    },
    /// A key occurs twice in one object, so we and the provider might read different values.
    #[error("`{field}` occurs twice in one object; send it once")]
    DuplicateKey {
        /// The path of the field.
        field: String,
    },
    /// The JSON is nested too deeply.
    #[error("the request body is nested deeper than {max} levels")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// The body is too large.
    #[error("the request body is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// The body came too slowly.
    #[error("the request body did not arrive in time")]
    SlowBody,
    /// No API key was sent.
    #[error("no API key: send `Authorization: Bearer sk-tw-v1-…`")]
    MissingKey,
    /// The key is not known, or not well formed.
    #[error("the API key is not valid")]
    InvalidKey,
    /// The key was revoked.
    #[error("the API key was revoked")]
    RevokedKey,
    /// The key's end date has passed.
    #[error("the API key has expired")]
    ExpiredKey,
    /// The organization or project is disabled.
    #[error("the {level} of this API key is disabled")]
    TenantDisabled {
        /// `organization` or `project`.
        level: &'static str,
    },
    /// The key's list of models does not contain this one.
    #[error("this API key may not use model `{model}`")]
    ModelForbidden {
        /// What was asked for.
        model: ModelId,
    },
    /// There is no such model.
    #[error("model `{model}` does not exist{}", close_matches(close))]
    ModelNotFound {
        /// What was asked for.
        model: String,
        /// The nearest names, best first.
        close: Vec<ModelId>,
    },
    /// The model was retired.
    #[error("model `{model}` was retired on {}{}", date(*at), successor_hint(successor.as_ref()))]
    ModelRetired {
        /// What was asked for.
        model: ModelId,
        /// When it went away.
        at: UnixMillis,
        /// What to use instead.
        successor: Option<ModelId>,
    },
    /// The model exists, but no endpoint of it can serve this request.
    #[error("no endpoint of model `{model}` can serve this request: {reason}")]
    NoEndpoints {
        /// What was asked for.
        model: ModelId,
        /// Why each group of endpoints was excluded.
        reason: String,
    },
    /// A budget on the tenant path is spent, or has too little left.
    #[error("the {level} budget `{budget}` {}{}", left_hint(*left), resets_hint(*resets_at))]
    BudgetExhausted {
        /// What it has left.
        left: Left,
        /// The level of the tenant path.
        level: &'static str,
        /// The budget's id.
        budget: String,
        /// When the next period starts, if one does.
        resets_at: Option<UnixMillis>,
    },
    /// A prepaid or postpaid organization has used up its credit, or has too little left.
    #[error("the credit of organization `{organization}` {}", left_of_credit_hint(*left))]
    InsufficientCredits {
        /// What it has left.
        left: Left,
        /// Whose.
        organization: String,
    },
    /// So many requests for free models were made already.
    #[error("the quota of {limit} requests for free models a {window} is used up; it starts again at {}", resets_at.rfc3339())]
    FreeQuota {
        /// How many there are.
        limit: i64,
        /// `minute` or `day`.
        window: &'static str,
        /// When it starts again.
        resets_at: UnixMillis,
    },
    /// A request could cost more than a budget allows for one.
    #[error(
        "this request could cost more than the {level} budget `{budget}` allows for one; lower its cap on the answer"
    )]
    RequestTooDear {
        /// The level of the tenant path.
        level: &'static str,
        /// The budget's id.
        budget: String,
    },
    /// No record of such a request that the key may read, or not yet.
    #[error(
        "there is no generation `{id}` in the project of this API key; one that has just ended may take some seconds to be counted"
    )]
    GenerationNotFound {
        /// What was asked for.
        id: String,
    },
    /// No such path.
    #[error("there is no route {method} {path}")]
    RouteNotFound {
        /// The HTTP method.
        method: String,
        /// The path.
        path: String,
    },
    /// The path is there for other methods.
    #[error("the route {path} takes {allow}, not {method}")]
    MethodNotAllowed {
        /// The HTTP method.
        method: String,
        /// The path.
        path: String,
        /// The method to use.
        allow: &'static str,
    },
    /// The provider refused the request itself.
    #[error("provider `{provider}` refused the request with status {status}: {message}")]
    UpstreamRejected {
        /// Who refused.
        provider: ProviderId,
        /// Its status.
        status: u16,
        /// Its message, shortened and stripped of control characters.
        message: String,
    },
    /// Every attempt failed, the last one with an error status of its provider.
    #[error("{}, with status {status}{}", attempts_failed(*tried, provider), said(self.upstream()))]
    UpstreamFailed {
        /// How many were made.
        tried: usize,
        /// Where the last one was.
        provider: ProviderId,
        /// Its status.
        status: u16,
        /// Its message, shortened and stripped of control characters.
        message: String,
        /// After how many seconds the first of the providers wants to be asked again, if one said so.
        retry_after: Option<u64>,
    },
    /// Every attempt failed, the last one without an answer.
    #[error("{}: {}", attempts_failed(*tried, provider), attempt_hint(*last))]
    AttemptsExhausted {
        /// How many were made.
        tried: usize,
        /// Where the last one was.
        provider: ProviderId,
        /// How the last one failed.
        last: AttemptFault,
    },
    /// The answer broke off after it had begun.
    #[error("the answer of provider `{provider}` broke off")]
    StreamBroken {
        /// Whose answer.
        provider: ProviderId,
    },
    /// The provider fell silent after its answer had begun.
    #[error("provider `{provider}` fell silent in the middle of its answer")]
    StreamStalled {
        /// Whose answer.
        provider: ProviderId,
    },
    /// The provider reported an error inside its answer.
    #[error("provider `{provider}` reported an error inside its answer: {message}")]
    StreamError {
        /// Whose answer.
        provider: ProviderId,
        /// The status it means, if it says one.
        status: Option<u16>,
        /// Its message, shortened and stripped of control characters.
        message: String,
    },
    /// This node has no snapshot yet.
    #[error("this node has not received its configuration yet; try again shortly")]
    NoSnapshot,
    /// This node's snapshot is older than `max_stale`.
    #[error("this node has not heard from the control plane for too long; try another node")]
    ControlPlaneStale,
    /// The control plane says that this node is not registered.
    #[error("this node was removed from its cluster; try another node")]
    NodeRemoved,
    /// Nobody can say what a budget has left.
    #[error("a budget of this API key cannot be checked right now; try again shortly")]
    BudgetUnavailable,
    /// Nobody can say what was used.
    #[error(
        "usage and credit cannot be read right now, as the control plane does not answer; requests to models are not affected"
    )]
    UsageUnavailable,
    /// Usage cannot be recorded, so paid traffic is shed.
    #[error("usage cannot be recorded on this node; try another node")]
    BillingUnavailable,
    /// Too many requests at once.
    #[error("this node is at its limit of concurrent requests; try again shortly")]
    Overloaded,
    /// The node is stopping.
    #[error("this node is shutting down; try another node")]
    Draining,
    /// A fault of ours.
    #[error("internal error")]
    Internal,
}

/// What callers may know of a provider's part in a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamNote<'a> {
    /// Who.
    pub provider: &'a ProviderId,
    /// The status it answered with, if it did.
    pub status: Option<u16>,
    /// What it said, unless that is about our credential there.
    pub message: Option<&'a str>,
}

impl Fault {
    /// Code, status, type, owner. No `_` arm: a new variant has to answer all of them.
    pub fn spec(&self) -> FaultSpec {
        use Owner::{Caller, Operator, Provider, Tenant};
        match self {
            Self::InvalidJson { .. } => spec("invalid_json", 400, "invalid_request_error", Caller, false),
            Self::InvalidField { .. } => spec("invalid_value", 400, "invalid_request_error", Caller, false),
            Self::DuplicateKey { .. } => spec("duplicate_key", 400, "invalid_request_error", Caller, false),
            Self::TooDeep { .. } => spec("json_too_deep", 400, "invalid_request_error", Caller, false),
            Self::TooLarge { .. } => spec("request_too_large", 413, "invalid_request_error", Caller, false),
            Self::SlowBody => spec("request_timeout", 408, "invalid_request_error", Caller, false),
            Self::MissingKey | Self::InvalidKey => {
                spec("invalid_api_key", 401, "invalid_request_error", Caller, false)
            }
            Self::RevokedKey => spec("revoked_api_key", 401, "invalid_request_error", Caller, false),
            Self::ExpiredKey => spec("expired_api_key", 401, "invalid_request_error", Caller, false),
            Self::TenantDisabled { .. } => spec("tenant_disabled", 403, "permission_error", Tenant, false),
            Self::ModelForbidden { .. } => spec("model_forbidden", 403, "permission_error", Tenant, false),
            Self::ModelNotFound { .. } => {
                spec("model_not_found", 404, "invalid_request_error", Caller, false)
            }
            Self::ModelRetired { .. } => spec("model_retired", 410, "invalid_request_error", Caller, false),
            Self::NoEndpoints { .. } => spec("no_endpoints", 404, "invalid_request_error", Operator, false),
            Self::BudgetExhausted { .. } => {
                spec("budget_exhausted", 403, "insufficient_quota", Tenant, false)
            }
            Self::InsufficientCredits { .. } => {
                spec("insufficient_credits", 402, "insufficient_quota", Tenant, false)
            }
            Self::FreeQuota { window, .. } => spec(
                "free_quota_exhausted",
                429,
                "rate_limit_error",
                Tenant,
                *window == "minute",
            ),
            Self::RequestTooDear { .. } => spec("request_too_dear", 403, "insufficient_quota", Tenant, false),
            Self::GenerationNotFound { .. } => spec(
                "generation_not_found",
                404,
                "invalid_request_error",
                Caller,
                false,
            ),
            Self::RouteNotFound { .. } => {
                spec("route_not_found", 404, "invalid_request_error", Caller, false)
            }
            Self::MethodNotAllowed { .. } => {
                spec("method_not_allowed", 405, "invalid_request_error", Caller, false)
            }
            Self::UpstreamRejected { .. } => {
                spec("upstream_rejected", 400, "invalid_request_error", Caller, false)
            }
            Self::UpstreamFailed { status: 429, .. } => {
                spec("upstream_failed", 429, "rate_limit_error", Provider, true)
            }
            // Every endpoint was tried already: only one that is busy for a while is worth another try by the caller.
            Self::UpstreamFailed { status, .. } => {
                let retry = matches!(status, 503 | 529);
                spec(
                    "upstream_failed",
                    shown_status(*status),
                    "server_error",
                    Provider,
                    retry,
                )
            }
            Self::AttemptsExhausted {
                last: AttemptFault::Timeout,
                ..
            } => spec("upstream_timeout", 504, "server_error", Provider, false),
            Self::AttemptsExhausted { .. } => {
                spec("attempts_exhausted", 502, "server_error", Provider, false)
            }
            Self::StreamBroken { .. } => spec("upstream_broken", 502, "server_error", Provider, false),
            Self::StreamStalled { .. } => spec("upstream_timeout", 504, "server_error", Provider, false),
            Self::StreamError { .. } => spec("upstream_error", 502, "server_error", Provider, false),
            Self::NoSnapshot => spec("no_snapshot", 503, "server_error", Operator, true),
            Self::ControlPlaneStale => spec("control_plane_stale", 503, "server_error", Operator, true),
            Self::NodeRemoved => spec("node_removed", 503, "server_error", Operator, true),
            Self::BudgetUnavailable => spec("budget_unavailable", 503, "server_error", Operator, true),
            Self::UsageUnavailable => spec("usage_unavailable", 503, "server_error", Operator, true),
            Self::BillingUnavailable => spec("billing_unavailable", 503, "server_error", Operator, true),
            Self::Overloaded => spec("overloaded", 503, "server_error", Operator, true),
            Self::Draining => spec("draining", 503, "server_error", Operator, true),
            Self::Internal => spec("internal", 500, "server_error", Operator, false),
        }
    }

    /// The HTTP status of this case. A provider's own is kept, so that a caller sees what it would see there, unless it is about our
    /// credential at that provider or no error status at all: those are 502, because nothing that the caller sent is at fault.
    pub fn status(&self) -> u16 {
        match self {
            Self::UpstreamRejected { status, .. } => *status,
            Self::StreamError {
                status: Some(status), ..
            } => shown_status(*status),
            _ => self.spec().status,
        }
    }

    /// What a provider had to do with it, for `error.metadata`.
    pub fn upstream(&self) -> Option<UpstreamNote<'_>> {
        let (provider, status, message) = match self {
            Self::UpstreamRejected {
                provider,
                status,
                message,
            }
            | Self::UpstreamFailed {
                provider,
                status,
                message,
                ..
            } => (provider, Some(*status), Some(message.as_str())),
            Self::StreamError {
                provider,
                status,
                message,
            } => (provider, *status, Some(message.as_str())),
            Self::AttemptsExhausted { provider, .. }
            | Self::StreamBroken { provider }
            | Self::StreamStalled { provider } => (provider, None, None),
            _ => return None,
        };
        let ours = status.is_some_and(of_credential);
        Some(UpstreamNote {
            provider,
            status,
            message: message.filter(|text| !ours && !text.is_empty()),
        })
    }

    /// After how many seconds a retry makes sense, when a provider said so.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::UpstreamFailed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The field that is wrong, for `error.param`.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::InvalidField { field, .. } | Self::DuplicateKey { field } => Some(field),
            Self::ModelNotFound { .. }
            | Self::ModelRetired { .. }
            | Self::NoEndpoints { .. }
            | Self::ModelForbidden { .. } => Some("model"),
            _ => None,
        }
    }
}

/// Whether a provider's status is about who we are to it.
fn of_credential(status: u16) -> bool {
    matches!(status, 401..=403 | 407)
}

/// The status that callers see for a provider's.
fn shown_status(status: u16) -> u16 {
    if (400..600).contains(&status) && !of_credential(status) {
        status
    } else {
        502
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_see_the_providers_status_unless_it_is_about_our_credential() {
        for (status, shown, retry) in [
            (500, 500, false),
            (503, 503, true),
            (529, 529, true),
            (429, 429, true),
            (408, 408, false),
            (401, 502, false),
            (403, 502, false),
            (302, 502, false),
        ] {
            let failed = Fault::UpstreamFailed {
                tried: 1,
                provider: ProviderId::trusted("p"),
                status,
                message: "no".into(),
                retry_after: None,
            };
            assert_eq!((failed.status(), failed.spec().retry), (shown, retry), "{status}");
            let about_us = matches!(status, 401 | 403);
            assert_eq!(failed.to_string().ends_with(": no"), !about_us, "{failed}");
            let begins = "the only attempt, at provider `p`, failed, with status ";
            assert!(failed.to_string().starts_with(begins), "{failed}");
        }
        let refused = Fault::UpstreamRejected {
            provider: ProviderId::trusted("p"),
            status: 422,
            message: "no".into(),
        };
        assert_eq!(refused.status(), 422);
    }
}
