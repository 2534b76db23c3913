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
    /// Those of them that the cache keeps for an hour; default: `input_cache_write`.
    #[serde(default)]
    pub input_cache_write_1h: Option<text::UsdPerMillion>,
    /// Hidden reasoning tokens; default: `output`.
    #[serde(default)]
    pub output_reasoning: Option<text::UsdPerMillion>,
    /// A fixed part per request, US dollars, at most 1000; default: none.
    #[serde(default)]
    pub request: Option<text::Usd>,
    /// Other prices for longer prompts, shorter ones first, at most 8; the last one that a prompt is long enough for prices every token
    /// of its request. Default: none.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub tiers: Vec<PriceTier>,
}

/// Prices of requests with more than so many prompt tokens. A kind without its own price costs what the tier's parent kind costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceTier {
    /// Begins above this many prompt tokens, those of the cache included; each tier above more than the one before.
    #[schema(minimum = 1)]
    pub above_prompt_tokens: u64,
    /// Prompt tokens.
    pub input: text::UsdPerMillion,
    /// Completion tokens.
    pub output: text::UsdPerMillion,
    /// Prompt tokens read from the provider's cache; default: this tier's `input`.
    #[serde(default)]
    pub input_cache_read: Option<text::UsdPerMillion>,
    /// Prompt tokens written to the provider's cache; default: this tier's `input`.
    #[serde(default)]
    pub input_cache_write: Option<text::UsdPerMillion>,
    /// Those of them that the cache keeps for an hour; default: this tier's `input_cache_write`.
    #[serde(default)]
    pub input_cache_write_1h: Option<text::UsdPerMillion>,
    /// Hidden reasoning tokens; default: this tier's `output`.
    #[serde(default)]
    pub output_reasoning: Option<text::UsdPerMillion>,
}

fn price(price: Option<text::UsdPerMillion>) -> Option<money::Price> {
    price.map(|price| price.0)
}

impl From<PriceTier> for cost::Tier {
    fn from(tier: PriceTier) -> Self {
        Self {
            above_prompt_tokens: tier.above_prompt_tokens,
            input: tier.input.0,
            output: tier.output.0,
            input_cache_read: price(tier.input_cache_read),
            input_cache_write: price(tier.input_cache_write),
            input_cache_write_1h: price(tier.input_cache_write_1h),
            output_reasoning: price(tier.output_reasoning),
        }
    }
}

impl From<cost::Tier> for PriceTier {
    fn from(tier: cost::Tier) -> Self {
        Self {
            above_prompt_tokens: tier.above_prompt_tokens,
            input: Text(tier.input),
            output: Text(tier.output),
            input_cache_read: tier.input_cache_read.map(Text),
            input_cache_write: tier.input_cache_write.map(Text),
            input_cache_write_1h: tier.input_cache_write_1h.map(Text),
            output_reasoning: tier.output_reasoning.map(Text),
        }
    }
}

impl From<Prices> for cost::Prices {
    fn from(prices: Prices) -> Self {
        let Prices {
            input,
            output,
            input_cache_read,
            input_cache_write,
            input_cache_write_1h,
            output_reasoning,
            request,
            tiers,
        } = prices;
        Self {
            input: input.0,
            output: output.0,
            input_cache_read: price(input_cache_read),
            input_cache_write: price(input_cache_write),
            input_cache_write_1h: price(input_cache_write_1h),
            output_reasoning: price(output_reasoning),
            request: request.map(|amount| amount.0),
            tiers: tiers.into_iter().map(Into::into).collect(),
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
            input_cache_write_1h,
            output_reasoning,
            request,
            tiers,
        } = prices;
        Self {
            input: Text(input),
            output: Text(output),
            input_cache_read: input_cache_read.map(Text),
            input_cache_write: input_cache_write.map(Text),
            input_cache_write_1h: input_cache_write_1h.map(Text),
            output_reasoning: output_reasoning.map(Text),
            request: request.map(Text),
            tiers: tiers.into_iter().map(Into::into).collect(),
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
