//! Bodies of prices.

use serde::{Deserialize, Serialize};
use tollway_shared::catalog as stored;
use tollway_shared::ids::Revision;
use tollway_shared::time::UnixMillis;
use tollway_shared::{cost, ids, money};
use utoipa::ToSchema;

use crate::admin::text::{self, Text};

/// What an endpoint charges, in dollars per million tokens, at most 10000. A kind without its own price costs what its parent kind costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Prompt tokens.
    pub input: text::UsdPerMillion,
    /// Completion tokens.
    pub output: text::UsdPerMillion,
    /// Prompt tokens read from the provider's cache; default: `input`.
    #[serde(default)]
    pub input_cache_read: Option<text::UsdPerMillion>,
    /// Prompt tokens written to the provider's cache; default: `input`.
    #[serde(default)]
    pub input_cache_write: Option<text::UsdPerMillion>,
    /// Hidden reasoning tokens; default: `output`.
    #[serde(default)]
    pub output_reasoning: Option<text::UsdPerMillion>,
    /// A fixed part per request, US dollars, at most 1000; default: none.
    #[serde(default)]
    pub request: Option<text::Usd>,
}

impl From<Prices> for cost::Prices {
    fn from(prices: Prices) -> Self {
        let Prices {
            input,
            output,
            input_cache_read,
            input_cache_write,
            output_reasoning,
            request,
        } = prices;
        let price = |price: Option<text::UsdPerMillion>| -> Option<money::Price> { price.map(|p| p.0) };
        Self {
            input: input.0,
            output: output.0,
            input_cache_read: price(input_cache_read),
            input_cache_write: price(input_cache_write),
            output_reasoning: price(output_reasoning),
            request: request.map(|amount| amount.0),
        }
    }
}

impl From<cost::Prices> for Prices {
    fn from(prices: cost::Prices) -> Self {
        let cost::Prices {
            input,
            output,
            input_cache_read,
            input_cache_write,
            output_reasoning,
            request,
        } = prices;
        Self {
            input: Text(input),
            output: Text(output),
            input_cache_read: input_cache_read.map(Text),
            input_cache_write: input_cache_write.map(Text),
            output_reasoning: output_reasoning.map(Text),
            request: request.map(Text),
        }
    }
}

/// A new set of prices. Prices never change: an edit is a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceCreate {
    /// What it prices.
    pub endpoint: text::EndpointId,
    /// When it starts to apply, never in the past; default: at once.
    #[serde(default)]
    pub effective_from: Option<text::Instant>,
    /// The prices.
    pub prices: Prices,
}

impl PriceCreate {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::PriceId) -> stored::PriceVersion {
        let Self {
            endpoint,
            effective_from,
            prices,
        } = self;
        stored::PriceVersion {
            id,
            endpoint: endpoint.0,
            effective_from: effective_from.map_or(UnixMillis(0), |at| at.0),
            prices: prices.into(),
        }
    }
}

/// One immutable set of prices of an endpoint, in force from `effective_from` until the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Price {
    /// Its id.
    pub id: text::PriceId,
    /// What it prices.
    pub endpoint: text::EndpointId,
    /// When it starts to apply. An endpoint's first prices apply since 1970.
    pub effective_from: text::Instant,
    /// The prices.
    pub prices: Prices,
    /// The revision at which it was added.
    pub revision: u64,
}

impl Price {
    /// The JSON form of a stored price version.
    pub fn of(version: &stored::PriceVersion, revision: Revision) -> Self {
        let stored::PriceVersion {
            id,
            endpoint,
            effective_from,
            prices,
        } = version.clone();
        Self {
            id: Text(id),
            endpoint: Text(endpoint),
            effective_from: Text(effective_from),
            prices: prices.into(),
            revision: revision.0,
        }
    }
}
