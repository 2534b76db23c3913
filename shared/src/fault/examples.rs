//! One of each, for the table that callers and operators read.

use super::{AttemptFault, Fault};
use crate::ids::{ModelId, ProviderId};
use crate::lease::hold::Left;
use crate::time::UnixMillis;

impl Fault {
    /// One example of every variant, in the table's order: what the README's error table is checked against.
    pub fn examples() -> Vec<Self> {
        let model = ModelId::trusted("author/slug");
        let provider = ProviderId::trusted("provider");
        let text = || "…".to_owned();
        let failed = |status| Self::UpstreamFailed {
            tried: 2,
            provider: ProviderId::trusted("provider"),
            status,
            message: text(),
            retry_after: None,
        };
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
                left: Left::Nothing,
                level: "project",
                budget: text(),
                resets_at: None,
            },
            Self::InsufficientCredits {
                left: Left::Nothing,
                organization: text(),
            },
            Self::FreeQuota {
                limit: 20,
                window: "minute",
                resets_at: UnixMillis(0),
            },
            Self::FreeQuota {
                limit: 50,
                window: "day",
                resets_at: UnixMillis(0),
            },
            Self::RequestTooDear {
                level: "project",
                budget: text(),
            },
            Self::GenerationNotFound { id: text() },
            Self::RouteNotFound {
                method: "GET".into(),
                path: "/".into(),
            },
            Self::MethodNotAllowed {
                method: "GET".into(),
                path: "/v1/chat/completions".into(),
                allow: "POST",
            },
            Self::UpstreamRejected {
                provider: provider.clone(),
                status: 400,
                message: text(),
            },
            failed(500),
            failed(503),
            failed(429),
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
            Self::StreamStalled {
                provider: provider.clone(),
            },
            Self::StreamError {
                provider,
                status: None,
                message: text(),
            },
            Self::NoSnapshot,
            Self::ControlPlaneStale,
            Self::NodeRemoved,
            Self::BudgetUnavailable,
            Self::UsageUnavailable,
            Self::BillingUnavailable,
            Self::Overloaded,
            Self::Draining,
            Self::Internal,
        ]
    }
}
