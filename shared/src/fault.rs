//! The error table of the public API: one variant per cause, one stable code each.
//!
//! `Display` is what callers read. Causes from inside (addresses, provider bodies, credentials) never get into it.
//! 401, 403, 404 and 410 are raised only from positive knowledge in a valid snapshot (invariant I21): a fault of ours is 5xx.

use crate::ids::{ModelId, ProviderId};
use crate::time::UnixMillis;

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever sent the request.
    Caller,
    /// Whoever administers the tenant: budgets, keys, policies.
    Tenant,
    /// A provider.
    Provider,
    /// Whoever runs this cluster.
    Operator,
}

impl Owner {
    /// The name used in the README's table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Tenant => "tenant",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// What went wrong with one attempt at a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptFault {
    /// No connection: refused, unreachable, name not found, TLS refused.
    Connect,
    /// The address is one that this provider may not have (loopback or private without permission).
    Address,
    /// A deadline passed before the first byte.
    Timeout,
    /// The connection broke before the first byte.
    Broken,
    /// The provider answered with an error status.
    Status(u16),
    /// The provider answered with something that is not its dialect.
    Garbled,
    /// The provider's credential is missing or does not open.
    Credential,
}

impl AttemptFault {
    /// The closed name used in events, metrics and decision records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Address => "address",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status(_) => "status",
            Self::Garbled => "garbled",
            Self::Credential => "credential",
        }
    }

    /// Whether another endpoint may be tried. A provider's 400, 404, 413 or 422 says the request is wrong, so trying elsewhere
    /// would only repeat it; 401, 402 and 403 say our credential there is wrong, so elsewhere may work.
    pub fn another_may_work(self) -> bool {
        match self {
            Self::Status(status) => !matches!(status, 400 | 404 | 405 | 409 | 411..=418 | 422),
            Self::Connect
            | Self::Address
            | Self::Timeout
            | Self::Broken
            | Self::Garbled
            | Self::Credential => true,
        }
    }

    /// Whether the provider had the request and may have worked on it, and will then bill for it, although its answer never came or
    /// cannot be used. One that could not be reached, or that turned the request away, has done nothing.
    pub fn may_have_worked(self) -> bool {
        match self {
            Self::Timeout | Self::Broken | Self::Garbled => true,
            Self::Connect | Self::Address | Self::Credential | Self::Status(_) => false,
        }
    }
}

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
    /// A budget on the tenant path is spent.
    #[error("the {level} budget `{budget}` is spent{}", resets_hint(*resets_at))]
    BudgetExhausted {
        /// The level of the tenant path.
        level: &'static str,
        /// The budget's id.
        budget: String,
        /// When the next period starts, if one does.
        resets_at: Option<UnixMillis>,
    },
    /// No such path.
    #[error("there is no route {method} {path}")]
    RouteNotFound {
        /// The HTTP method.
        method: String,
        /// The path.
        path: String,
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
    /// Every attempt failed.
    #[error("all {tried} attempts failed; the last one at provider `{provider}`: {}", attempt_hint(*last))]
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
    /// The provider reported an error inside its answer.
    #[error("provider `{provider}` reported an error inside its answer: {message}")]
    StreamError {
        /// Whose answer.
        provider: ProviderId,
        /// Its message, shortened and stripped of control characters.
        message: String,
    },
    /// This node has no snapshot yet.
    #[error("this node has not received its configuration yet; try again shortly")]
    NoSnapshot,
    /// This node's snapshot is older than `max_stale`.
    #[error("this node has not heard from the control plane for too long; try another node")]
    ControlPlaneStale,
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

/// The public facts of a fault that do not depend on the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSpec {
    /// Stable code, `error.code` in the OpenAI shape.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// `error.type` in the OpenAI shape.
    pub kind: &'static str,
    /// Who must act.
    pub owner: Owner,
    /// Whether the official clients should retry by themselves (`x-should-retry`).
    pub retry: bool,
}

const fn spec(code: &'static str, status: u16, kind: &'static str, owner: Owner, retry: bool) -> FaultSpec {
    FaultSpec {
        code,
        status,
        kind,
        owner,
        retry,
    }
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
            Self::RouteNotFound { .. } => {
                spec("route_not_found", 404, "invalid_request_error", Caller, false)
            }
            Self::UpstreamRejected { .. } => {
                spec("upstream_rejected", 400, "invalid_request_error", Caller, false)
            }
            Self::AttemptsExhausted {
                last: AttemptFault::Timeout,
                ..
            } => spec("upstream_timeout", 504, "server_error", Provider, false),
            Self::AttemptsExhausted { .. } => {
                spec("attempts_exhausted", 502, "server_error", Provider, false)
            }
            Self::StreamBroken { .. } => spec("upstream_broken", 502, "server_error", Provider, false),
            Self::StreamError { .. } => spec("upstream_error", 502, "server_error", Provider, false),
            Self::NoSnapshot => spec("no_snapshot", 503, "server_error", Operator, true),
            Self::ControlPlaneStale => spec("control_plane_stale", 503, "server_error", Operator, true),
            Self::BillingUnavailable => spec("billing_unavailable", 503, "server_error", Operator, true),
            Self::Overloaded => spec("overloaded", 503, "server_error", Operator, true),
            Self::Draining => spec("draining", 503, "server_error", Operator, true),
            Self::Internal => spec("internal", 500, "server_error", Operator, false),
        }
    }

    /// The HTTP status of this case: a provider's own status where it refused the request or was the only cause.
    pub fn status(&self) -> u16 {
        match self {
            Self::UpstreamRejected { status, .. } => *status,
            Self::AttemptsExhausted {
                last: AttemptFault::Status(status @ (429 | 503 | 529)),
                ..
            } => *status,
            _ => self.spec().status,
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

    /// One example of every variant, in the table's order: what the README's error table is checked against.
    pub fn examples() -> Vec<Self> {
        let model = ModelId::trusted("author/slug");
        let provider = ProviderId::trusted("provider");
        let text = || "…".to_owned();
        vec![
            Self::InvalidJson { detail: text() },
            Self::InvalidField {
                field: "model".into(),
                detail: text(),
            },
            Self::DuplicateKey {
                field: "model".into(),
            },
            Self::TooDeep { max: 128 },
            Self::TooLarge { max: 33_554_432 },
            Self::SlowBody,
            Self::MissingKey,
            Self::InvalidKey,
            Self::RevokedKey,
            Self::ExpiredKey,
            Self::TenantDisabled { level: "project" },
            Self::ModelForbidden { model: model.clone() },
            Self::ModelNotFound {
                model: text(),
                close: vec![model.clone()],
            },
            Self::ModelRetired {
                model: model.clone(),
                at: UnixMillis(0),
                successor: Some(model.clone()),
            },
            Self::NoEndpoints {
                model,
                reason: text(),
            },
            Self::BudgetExhausted {
                level: "project",
                budget: text(),
                resets_at: None,
            },
            Self::RouteNotFound {
                method: "GET".into(),
                path: "/".into(),
            },
            Self::UpstreamRejected {
                provider: provider.clone(),
                status: 400,
                message: text(),
            },
            Self::AttemptsExhausted {
                tried: 2,
                provider: provider.clone(),
                last: AttemptFault::Connect,
            },
            Self::AttemptsExhausted {
                tried: 2,
                provider: provider.clone(),
                last: AttemptFault::Timeout,
            },
            Self::StreamBroken {
                provider: provider.clone(),
            },
            Self::StreamError {
                provider,
                message: text(),
            },
            Self::NoSnapshot,
            Self::ControlPlaneStale,
            Self::BillingUnavailable,
            Self::Overloaded,
            Self::Draining,
            Self::Internal,
        ]
    }
}

fn date(at: UnixMillis) -> String {
    at.day().to_string()
}

fn successor_hint(successor: Option<&ModelId>) -> String {
    successor.map_or_else(String::new, |model| format!("; use `{model}`"))
}

fn resets_hint(at: Option<UnixMillis>) -> String {
    at.map_or_else(String::new, |at| format!("; it starts again at {}", at.rfc3339()))
}

fn close_matches(close: &[ModelId]) -> String {
    if close.is_empty() {
        return String::new();
    }
    let names: Vec<String> = close.iter().map(|model| format!("`{model}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

fn attempt_hint(fault: AttemptFault) -> String {
    match fault {
        AttemptFault::Connect => "it could not be reached".into(),
        AttemptFault::Address => "its address is not allowed".into(),
        AttemptFault::Timeout => "it did not answer in time".into(),
        AttemptFault::Broken => "it closed the connection before answering".into(),
        AttemptFault::Status(status) => format!("it answered with status {status}"),
        AttemptFault::Garbled => "its answer was not understood".into(),
        AttemptFault::Credential => "no usable credential for it on this node".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_thing_and_say_what_to_do() {
        let fault = Fault::ModelNotFound {
            model: "gpt".into(),
            close: vec![ModelId::trusted("openai/gpt-5")],
        };
        assert_eq!(
            fault.to_string(),
            "model `gpt` does not exist; did you mean `openai/gpt-5`?"
        );
        assert_eq!(fault.status(), 404);
    }

    #[test]
    fn a_provider_keeps_its_own_status_when_it_refuses_or_is_saturated() {
        let provider = ProviderId::trusted("p");
        let refused = Fault::UpstreamRejected {
            provider: provider.clone(),
            status: 422,
            message: "no".into(),
        };
        assert_eq!(refused.status(), 422);
        let busy = Fault::AttemptsExhausted {
            tried: 1,
            provider: provider.clone(),
            last: AttemptFault::Status(429),
        };
        assert_eq!(busy.status(), 429);
        let broken = Fault::AttemptsExhausted {
            tried: 1,
            provider,
            last: AttemptFault::Status(500),
        };
        assert_eq!(broken.status(), 502);
    }
}
