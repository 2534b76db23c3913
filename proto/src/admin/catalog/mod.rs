//! Providers, credentials, models, endpoints, prices, notices.

mod disconnect;
mod notice;
mod price;

use serde::{Deserialize, Serialize};
use tollway_shared::catalog as stored;
use tollway_shared::ids;
use tollway_shared::ids::Revision;
use tollway_shared::seal::Sealed;
use tollway_shared::time::UnixMillis;
use utoipa::ToSchema;

pub use self::disconnect::OnDisconnect;
pub use self::notice::{Notice, NoticePut};
pub use self::price::{Price, PriceCreate, PriceTier, Prices};
use super::text::{self, SecretText, Text, mirror, noun};

/// TCP and TLS connect deadline when a body names none.
pub const CONNECT_TIMEOUT_MS: u32 = 5_000;
/// Deadline of the answer's first byte when a body names none.
pub const FIRST_BYTE_TIMEOUT_MS: u32 = 120_000;
/// Longest silence inside an answer when a body names none.
pub const IDLE_TIMEOUT_MS: u32 = 60_000;

fn yes() -> bool {
    true
}

fn connect_timeout() -> u32 {
    CONNECT_TIMEOUT_MS
}

fn first_byte_timeout() -> u32 {
    FIRST_BYTE_TIMEOUT_MS
}

fn idle_timeout() -> u32 {
    IDLE_TIMEOUT_MS
}

fn bearer() -> AuthScheme {
    AuthScheme::Bearer
}

mirror! {
    /// A provider's wire format.
    Dialect = stored::Dialect {
        /// OpenAI chat completions, which most self-hosted servers speak too.
        OpenAi "openai",
        /// Anthropic messages.
        Anthropic "anthropic",
    }
}

mirror! {
    /// The name under which the cap of an answer is sent.
    OutputCap = stored::OutputCap {
        /// The older name, which most self-hosted servers know.
        MaxTokens "max_tokens",
        /// The newer name, which OpenAI's reasoning models insist on.
        MaxCompletionTokens "max_completion_tokens",
    }
}

mirror! {
    /// Where a provider wants its credential.
    AuthScheme = stored::AuthScheme {
        /// `Authorization: Bearer …`.
        Bearer "bearer",
        /// `x-api-key: …`.
        XApiKey "x_api_key",
        /// No credential at all.
        None "none",
    }
}

noun! {
    /// What to make of a provider.
    put ProviderPut;
    /// A company or server that answers model requests.
    record Provider {
        /// Its id.
        id: text::ProviderId,
    }
    fields {
        /// For people; default: the id.
        #[serde(default)] name: String,
        /// Its wire format.
        dialect: Dialect,
        /// Scheme, host, port and path prefix up to and including the version, e.g. `https://api.openai.com/v1`.
        base_url: String,
        /// Where the credential goes; default: `bearer`.
        #[serde(default = "bearer")] auth: AuthScheme,
        /// Whether `base_url` may resolve to a loopback or private address; default: no.
        #[serde(default)] private_network: bool,
        /// Whether streamed requests may ask for a usage chunk; default: yes.
        #[serde(default = "yes")] stream_usage: bool,
        /// The name under which the cap of an answer is sent, whichever a caller used; default: `max_completion_tokens` on the hosts of
        /// OpenAI and Azure OpenAI, `max_tokens` elsewhere. Of the `openai` dialect only.
        #[serde(default)] output_cap: Option<OutputCap>,
        /// Whether the provider keeps generating, and billing, after a caller hangs up; default: no.
        #[serde(default)] bills_after_cancel: bool,
        /// What becomes of an answer whose caller hangs up; default: `drain_fully` with `bills_after_cancel`, `abort` without.
        #[serde(default)] on_disconnect: Option<OnDisconnect>,
        /// TCP and TLS connect deadline in milliseconds.
        #[serde(default = "connect_timeout", deserialize_with = "text::above_zero")] #[schema(minimum = 1)] connect_timeout_ms: u32,
        /// Deadline from the request's last byte to the answer's first, in milliseconds.
        #[serde(default = "first_byte_timeout", deserialize_with = "text::above_zero")] #[schema(minimum = 1)] first_byte_timeout_ms: u32,
        /// Longest silence inside an answer, streamed or whole, in milliseconds.
        #[serde(default = "idle_timeout", deserialize_with = "text::above_zero")] #[schema(minimum = 1)] idle_timeout_ms: u32,
        /// A disabled provider is never tried; default: enabled.
        #[serde(default = "yes")] enabled: bool,
    }
}

impl ProviderPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::ProviderId) -> stored::Provider {
        let Self {
            name,
            dialect,
            base_url,
            auth,
            private_network,
            stream_usage,
            output_cap,
            bills_after_cancel,
            on_disconnect,
            connect_timeout_ms,
            first_byte_timeout_ms,
            idle_timeout_ms,
            enabled,
        } = self;
        stored::Provider {
            name: named(name, &id),
            id,
            dialect: dialect.into(),
            base_url,
            auth: auth.into(),
            private_network,
            stream_usage,
            output_cap: output_cap.map(Into::into),
            bills_after_cancel,
            on_disconnect: on_disconnect.map(Into::into),
            connect_timeout_ms,
            first_byte_timeout_ms,
            idle_timeout_ms,
            enabled,
        }
    }
}

impl Provider {
    /// The JSON form of a stored provider.
    pub fn of(provider: &stored::Provider, revision: Revision) -> Self {
        let stored::Provider {
            id,
            name,
            dialect,
            base_url,
            auth,
            private_network,
            stream_usage,
            output_cap,
            bills_after_cancel,
            on_disconnect,
            connect_timeout_ms,
            first_byte_timeout_ms,
            idle_timeout_ms,
            enabled,
        } = provider.clone();
        Self {
            id: Text(id),
            name,
            dialect: dialect.into(),
            base_url,
            auth: auth.into(),
            private_network,
            stream_usage,
            output_cap: output_cap.map(Into::into),
            bills_after_cancel,
            on_disconnect: on_disconnect.map(Into::into),
            connect_timeout_ms,
            first_byte_timeout_ms,
            idle_timeout_ms,
            enabled,
            revision: revision.0,
        }
    }
}

/// A provider's secret, on its way in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialPut {
    /// The secret. It is sealed at once and never answered.
    pub secret: SecretText,
    /// The organization whose own it is, which then uses it for its requests alone; default: everybody's. Fixed once made.
    #[serde(default)]
    pub organization: Option<text::OrganizationId>,
    /// Tried after everybody's credentials, not before; only of an organization's own.
    #[serde(default)]
    pub is_fallback: bool,
    /// Regions whose nodes may hold it; default: all.
    #[serde(default)]
    pub regions: Vec<text::Region>,
}

impl CredentialPut {
    /// The stored form, with the secret sealed by the caller.
    pub fn into_stored(
        self,
        id: ids::CredentialId,
        provider: ids::ProviderId,
        version: u32,
        sealed: Sealed,
        now: UnixMillis,
    ) -> stored::Credential {
        let Self {
            secret: _,
            organization,
            is_fallback,
            regions,
        } = self;
        stored::Credential {
            id,
            provider,
            version,
            owner: organization.map(|organization| stored::CredentialOwner {
                organization: organization.0,
                is_fallback,
            }),
            regions: regions.into_iter().map(|region| region.0).collect(),
            sealed,
            created_at: now,
        }
    }
}

/// A provider's secret as it may be shown: everything but the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// Its id among its provider's.
    pub id: text::CredentialId,
    /// The provider it opens.
    pub provider: text::ProviderId,
    /// Counts rewrites of this id.
    pub version: u32,
    /// The organization whose own it is; null: everybody's.
    pub organization: Option<text::OrganizationId>,
    /// Tried after everybody's credentials, not before.
    pub is_fallback: bool,
    /// Regions whose nodes may hold it; empty = all.
    pub regions: Vec<text::Region>,
    /// When this version was written.
    pub created_at: text::Instant,
    /// The revision of the last change of this record; what `if_revision` is compared with.
    pub revision: u64,
}

impl Credential {
    /// The JSON form of a stored credential.
    pub fn of(credential: &stored::Credential, revision: Revision) -> Self {
        let stored::Credential {
            id,
            provider,
            version,
            owner,
            regions,
            sealed: _,
            created_at,
        } = credential.clone();
        Self {
            id: Text(id),
            provider: Text(provider),
            version,
            is_fallback: owner.as_ref().is_some_and(|owner| owner.is_fallback),
            organization: owner.map(|owner| Text(owner.organization)),
            regions: regions.into_iter().map(Text).collect(),
            created_at: Text(created_at),
            revision: revision.0,
        }
    }
}

noun! {
    /// What to make of a model.
    put ModelPut;
    /// What a caller asks for.
    record Model {
        /// `author/slug`.
        id: text::ModelId,
        /// When it entered the catalog.
        created_at: text::Instant,
    }
    fields {
        /// For people; default: the id.
        #[serde(default)] name: String,
        /// One or two sentences.
        #[serde(default)] description: String,
        /// Most prompt and completion tokens together.
        #[serde(deserialize_with = "text::above_zero")] #[schema(minimum = 1)] context_tokens: u32,
    }
}

impl ModelPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::ModelId, created_at: UnixMillis) -> stored::Model {
        let Self {
            name,
            description,
            context_tokens,
        } = self;
        stored::Model {
            name: named(name, &id),
            id,
            description,
            context_tokens,
            created_at,
        }
    }
}

impl Model {
    /// The JSON form of a stored model.
    pub fn of(model: &stored::Model, revision: Revision) -> Self {
        let stored::Model {
            id,
            name,
            description,
            context_tokens,
            created_at,
        } = model.clone();
        Self {
            id: Text(id),
            created_at: Text(created_at),
            name,
            description,
            context_tokens,
            revision: revision.0,
        }
    }
}

noun! {
    /// What to make of an endpoint.
    put EndpointPut;
    /// A model at one provider.
    record Endpoint {
        /// Its id.
        id: text::EndpointId,
    }
    fields {
        /// What it serves.
        model: text::ModelId,
        /// Who serves it.
        provider: text::ProviderId,
        /// The provider's own name for the model.
        upstream_model: String,
        /// Where inference runs, when known.
        #[serde(default)] region: Option<text::Region>,
        /// Most completion tokens per request, when the provider caps them.
        #[serde(default)] max_output_tokens: Option<u32>,
        /// What becomes of an answer whose caller hangs up; default: as the provider has it.
        #[serde(default)] on_disconnect: Option<OnDisconnect>,
        /// Lower goes first; endpoints of equal rank share traffic by price. Default: 0.
        #[serde(default)] rank: u32,
        /// A disabled endpoint is never tried; default: enabled.
        #[serde(default = "yes")] enabled: bool,
    }
}

impl EndpointPut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::EndpointId) -> stored::Endpoint {
        let Self {
            model,
            provider,
            upstream_model,
            region,
            max_output_tokens,
            on_disconnect,
            rank,
            enabled,
        } = self;
        stored::Endpoint {
            id,
            model: model.0,
            provider: provider.0,
            upstream_model,
            region: region.map(|region| region.0),
            max_output_tokens,
            on_disconnect: on_disconnect.map(Into::into),
            rank,
            enabled,
        }
    }
}

impl Endpoint {
    /// The JSON form of a stored endpoint.
    pub fn of(endpoint: &stored::Endpoint, revision: Revision) -> Self {
        let stored::Endpoint {
            id,
            model,
            provider,
            upstream_model,
            region,
            max_output_tokens,
            on_disconnect,
            rank,
            enabled,
        } = endpoint.clone();
        Self {
            id: Text(id),
            model: Text(model),
            provider: Text(provider),
            upstream_model,
            region: region.map(Text),
            max_output_tokens,
            on_disconnect: on_disconnect.map(Into::into),
            rank,
            enabled,
            revision: revision.0,
        }
    }
}

/// The name for people: the id when the body names none.
pub(super) fn named(name: String, id: &impl ToString) -> String {
    if name.is_empty() { id.to_string() } else { name }
}
