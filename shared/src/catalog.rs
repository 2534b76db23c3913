//! What can be asked for and who answers: providers, credentials, models, endpoints, prices.

use serde::{Deserialize, Serialize};

use crate::cost::Prices;
use crate::ids::{CredentialId, EndpointId, ModelId, OrganizationId, PriceId, ProviderId, Region};
use crate::seal::Sealed;
use crate::time::UnixMillis;

/// A wire format of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// OpenAI chat completions, which most self-hosted servers speak too.
    OpenAi,
    /// Anthropic messages.
    Anthropic,
}

impl Dialect {
    /// The name used in JSON, metrics and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

/// Where a provider wants its credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthScheme {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `x-api-key: …`.
    XApiKey,
    /// No credential at all: a server on the operator's own network.
    None,
}

/// The member of an OpenAI request that caps its answer. Servers know one of the two names or both, and may ignore the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputCap {
    /// `max_tokens`, the older name.
    MaxTokens,
    /// `max_completion_tokens`.
    MaxCompletionTokens,
}

impl OutputCap {
    /// The member's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// What becomes of an answer whose caller hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// The request is cancelled at once.
    Abort,
    /// It is read on, for the provider's own counts, and cancelled where it does not end within either bound.
    Drain {
        /// Milliseconds since the caller left.
        cap_ms: u32,
        /// Completion tokens since then; none: as many as come in that time.
        cap_tokens: Option<u32>,
    },
    /// It is read to its end.
    DrainFully,
}

/// What becomes of an answer of this endpoint at its provider when the caller hangs up.
pub fn on_disconnect(endpoint: &Endpoint, provider: &Provider) -> OnDisconnect {
    let told = endpoint.on_disconnect.or(provider.on_disconnect);
    told.unwrap_or(if provider.bills_after_cancel {
        OnDisconnect::DrainFully
    } else {
        OnDisconnect::Abort
    })
}

/// The name under which a provider of the OpenAI dialect is sent the cap of an answer: its own setting, or else by its host. OpenAI's
/// own models refuse the older name where they reason; many other servers know only that.
pub fn output_cap(provider: &Provider) -> OutputCap {
    let by_host = || {
        let host = provider.base_url.split("//").nth(1).unwrap_or_default();
        let host = host.split(['/', ':']).next().unwrap_or_default();
        if host.ends_with(".openai.com") || host.ends_with(".openai.azure.com") {
            OutputCap::MaxCompletionTokens
        } else {
            OutputCap::MaxTokens
        }
    };
    provider.output_cap.unwrap_or_else(by_host)
}

/// A company or server that answers model requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Its id, also what callers name in routing preferences.
    pub id: ProviderId,
    /// For people.
    pub name: String,
    /// Its wire format.
    pub dialect: Dialect,
    /// Scheme, host, port and path prefix up to and including the version, e.g. `https://api.openai.com/v1`.
    pub base_url: String,
    /// Where the credential goes.
    pub auth: AuthScheme,
    /// Whether `base_url` may resolve to a loopback or private address. Off for everything on the public internet.
    pub private_network: bool,
    /// Whether streamed requests may carry `stream_options.include_usage`.
    pub stream_usage: bool,
    /// The name that it knows for the cap of an answer. None: by its host, see [`output_cap`].
    pub output_cap: Option<OutputCap>,
    /// Whether the provider keeps generating, and billing, after a request is cancelled.
    pub bills_after_cancel: bool,
    /// What becomes of an answer whose caller hangs up, unless the endpoint says so itself. None: it is read on where the provider
    /// bills all of it anyway, and cancelled elsewhere.
    pub on_disconnect: Option<OnDisconnect>,
    /// TCP and TLS connect deadline in milliseconds.
    pub connect_timeout_ms: u32,
    /// Deadline from the request's last byte to the answer's first, in milliseconds.
    pub first_byte_timeout_ms: u32,
    /// Longest silence inside an answer, streamed or whole, in milliseconds.
    pub idle_timeout_ms: u32,
    /// A disabled provider is never tried.
    pub enabled: bool,
}

/// A provider's secret, sealed. In the log and in checkpoints it is sealed under the cluster's key; in a pushed
/// snapshot under the key of the node's region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id among its provider's; see [`Credential::key`].
    pub id: CredentialId,
    /// The provider it opens.
    pub provider: ProviderId,
    /// Counts rewrites of this id; part of what the seal binds.
    pub version: u32,
    /// Whose own it is; none: everybody's.
    pub owner: Option<CredentialOwner>,
    /// Regions whose nodes may hold it; empty = all.
    pub regions: Vec<Region>,
    /// The ciphertext.
    pub sealed: Sealed,
    /// When this version was written.
    pub created_at: UnixMillis,
}

/// Whose own a credential is: used for its requests and no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialOwner {
    /// Who.
    pub organization: OrganizationId,
    /// Tried after everybody's, not before.
    pub is_fallback: bool,
}

/// When a credential is tried: own ones first, everybody's then, own fallbacks last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Own.
    Own,
    /// Everybody's.
    Shared,
    /// Own, as a fallback.
    Fallback,
}

impl Turn {
    /// In their order.
    pub const ALL: [Self; 3] = [Self::Own, Self::Shared, Self::Fallback];
}

impl Credential {
    /// What its seal binds, besides the secret.
    pub fn aad(&self) -> Vec<u8> {
        let owner = self.owner.as_ref().map(|owner| &owner.organization);
        credential_aad(&self.provider, &self.id, self.version, owner)
    }

    /// When it is tried for a request of an organization; `None` where it is another one's own.
    pub fn turn(&self, organization: &OrganizationId) -> Option<Turn> {
        match &self.owner {
            None => Some(Turn::Shared),
            Some(owner) if owner.organization != *organization => None,
            Some(owner) if owner.is_fallback => Some(Turn::Fallback),
            Some(_) => Some(Turn::Own),
        }
    }

    /// What tells it from every other one, those of other providers too: `provider/id`.
    pub fn key(&self) -> CredentialId {
        credential_key(&self.provider, &self.id)
    }
}

/// A credential's id among those of all providers: `provider/id`. Neither part may have a `/`, so no two are alike.
pub fn credential_key(provider: &ProviderId, id: &CredentialId) -> CredentialId {
    CredentialId::trusted(format!("{provider}/{id}"))
}

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// `author/slug`.
    pub id: ModelId,
    /// For people.
    pub name: String,
    /// One or two sentences.
    pub description: String,
    /// Most prompt and completion tokens together.
    pub context_tokens: u32,
    /// When it entered the catalog.
    pub created_at: UnixMillis,
}

/// A model at one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id, by default `provider/author/slug`.
    pub id: EndpointId,
    /// What it serves.
    pub model: ModelId,
    /// Who serves it.
    pub provider: ProviderId,
    /// The provider's own name for the model.
    pub upstream_model: String,
    /// Where inference runs, when known.
    pub region: Option<Region>,
    /// Most completion tokens per request, when the provider caps them.
    pub max_output_tokens: Option<u32>,
    /// What becomes of an answer whose caller hangs up; none: as the provider has it.
    pub on_disconnect: Option<OnDisconnect>,
    /// Lower goes first; endpoints of equal rank share traffic by price.
    pub rank: u32,
    /// A disabled endpoint is never tried.
    pub enabled: bool,
}

/// One immutable set of prices of an endpoint, in force from `effective_from` until the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceVersion {
    /// Its id, minted by the control plane.
    pub id: PriceId,
    /// What it prices.
    pub endpoint: EndpointId,
    /// When it starts to apply.
    pub effective_from: UnixMillis,
    /// The prices.
    pub prices: Prices,
}

/// What a seal of a provider credential binds, besides the secret: provider, id, version, and whose own it is.
pub fn credential_aad(
    provider: &ProviderId,
    id: &CredentialId,
    version: u32,
    owner: Option<&OrganizationId>,
) -> Vec<u8> {
    match owner {
        None => format!("credential\n{provider}\n{id}\n{version}").into_bytes(),
        Some(owner) => format!("credential\n{provider}\n{id}\n{version}\n{owner}").into_bytes(),
    }
}
