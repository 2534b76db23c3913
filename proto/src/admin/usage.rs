//! What was used, summed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens;
use utoipa::ToSchema;

use super::text::{self, Text};
use crate::command::UsageSums;

/// Token counts by kind; the kinds are disjoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    /// Prompt tokens read at full price.
    pub input: u64,
    /// Prompt tokens read from the provider's cache.
    pub input_cache_read: u64,
    /// Prompt tokens written to the provider's cache.
    pub input_cache_write: u64,
    /// Prompt tokens written to the provider's cache to be kept for an hour.
    pub input_cache_write_1h: u64,
    /// Completion tokens the caller can see.
    pub output: u64,
    /// Completion tokens spent on hidden reasoning.
    pub output_reasoning: u64,
}

impl From<tokens::TokenCounts> for Tokens {
    fn from(counts: tokens::TokenCounts) -> Self {
        let tokens::TokenCounts {
            input,
            input_cache_read,
            input_cache_write,
            input_cache_write_1h,
            output,
            output_reasoning,
        } = counts;
        Self {
            input,
            input_cache_read,
            input_cache_write,
            input_cache_write_1h,
            output,
            output_reasoning,
        }
    }
}

/// Sums over requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sums {
    /// Requests that reached a provider.
    pub requests: u64,
    /// Those among them whose counts are estimates.
    pub estimated: u64,
    /// Tokens by kind.
    pub tokens: Tokens,
    /// What they cost at list price, US dollars.
    pub cost: text::Usd,
    /// What is owed for them, US dollars: with the organization's markup or discount, and nothing for own credentials and free models.
    pub billed: text::Usd,
    /// The fee on those served with the organization's own credential, US dollars; not in `billed`. Absent where it is not known: it is
    /// counted by organization, team, project, key, model, provider and day, and by nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee: Option<text::Usd>,
}

impl Default for Sums {
    fn default() -> Self {
        UsageSums::default().into()
    }
}

impl From<UsageSums> for Sums {
    fn from(sums: UsageSums) -> Self {
        let UsageSums {
            requests,
            served: _, // what budgets of requests count; the billing store has no such sum
            estimated,
            tokens,
            cost,
            billed,
            // Grouped by `byok` the billing store tells these.
            byok_requests: _,
            byok_cost: _,
            fee,
        } = sums;
        Self {
            requests,
            estimated,
            tokens: tokens.into(),
            cost: Text(cost),
            billed: Text(billed),
            fee: Some(Text(fee)),
        }
    }
}

macro_rules! dimensions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What usage can be grouped by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum UsageDimension {
            $($(#[$doc])* $variant,)*
        }

        impl UsageDimension {
            /// Every dimension.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in queries.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

dimensions! {
    /// By organization.
    Organization = "organization",
    /// By team; requests of projects without a team are one row with `team` null.
    Team = "team",
    /// By project.
    Project = "project",
    /// By API key.
    Key = "key",
    /// By the callers' labels of their end users; requests without one are one row with `user` null.
    User = "user",
    /// By model.
    Model = "model",
    /// By endpoint.
    Endpoint = "endpoint",
    /// By provider.
    Provider = "provider",
    /// By the node's region.
    Region = "region",
    /// By price version.
    PriceVersion = "price_version",
    /// By whether the organization's own credential served.
    Byok = "byok",
    /// By UTC hour in which the request started.
    Hour = "hour",
    /// By UTC day on which the request started.
    Day = "day",
    /// By UTC month in which the request started.
    Month = "month",
}

/// One group. A dimension that was not asked for is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// The organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// The team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The API key's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The end user's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The node's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The price version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_version: Option<String>,
    /// `true` or `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byok: Option<String>,
    /// The UTC hour, by its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<text::Instant>,
    /// The UTC day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<text::Day>,
    /// The UTC month, `2026-11`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month: Option<String>,
    /// The asked labels: `unlabelled` where neither the key nor its project has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What it used.
    #[serde(flatten)]
    pub sums: Sums,
    /// What only the billing store knows of it.
    #[serde(flatten)]
    pub detail: Option<Detail>,
}

/// What the billing store knows of a group beyond its sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    /// Requests that were answered whole.
    pub completed: u64,
    /// Requests that their callers left.
    pub cancelled: u64,
    /// Requests that no attempt answered, or whose answer broke off.
    pub failed: u64,
    /// Requests that were on a node that died.
    pub interrupted: u64,
    /// List price, line by line.
    pub charge: ChargeLines,
    /// What cached tokens would have cost at the full price of a prompt, less what they cost. Negative where writing to the cache
    /// cost more than reading from it saved.
    pub cache_savings: text::Usd,
    /// Markups less discounts.
    pub adjustment: text::Usd,
    /// How long it took, milliseconds, within 6 %.
    pub latency: Latency,
}

/// The list price, line by line; `cost` is their sum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChargeLines {
    /// Prompt tokens at full price.
    pub input: text::Usd,
    /// Cache reads.
    pub input_cache_read: text::Usd,
    /// Cache writes.
    pub input_cache_write: text::Usd,
    /// Cache writes that are kept for an hour.
    pub input_cache_write_1h: text::Usd,
    /// Visible completion tokens.
    pub output: text::Usd,
    /// Hidden reasoning tokens.
    pub output_reasoning: text::Usd,
    /// The fixed parts per request.
    pub request: text::Usd,
}

/// How long requests took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// To the answer's first byte, of requests that had one.
    pub first_byte_ms: Percentiles,
    /// To the end, of requests that were answered whole.
    pub total_ms: Percentiles,
}

/// Percentiles; `null` where nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Percentiles {
    /// Half are not above it.
    pub p50: Option<u64>,
    /// Nine in ten are not above it.
    pub p90: Option<u64>,
    /// 99 in 100 are not above it.
    pub p99: Option<u64>,
}

/// Everything wanted, in one sum.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Total {
    /// What was used.
    #[serde(flatten)]
    pub sums: Sums,
    /// What only the billing store knows of it.
    #[serde(flatten)]
    pub detail: Option<Detail>,
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerSource {
    /// The billing store of the replica that answers: every dimension.
    Billing,
    /// The replicated sums by day: there is no billing store, or it is behind them.
    State,
}

/// How far one partition of the usage log has been counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Freshness {
    /// The partition.
    pub partition: i32,
    /// The offset of the next record to count.
    pub offset: i64,
    /// When the newest request in it ended; only from the billing store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_at: Option<text::Instant>,
    /// What the usage log has beyond it, as measured every few seconds: events on Kafka, bytes in the embedded log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// Only when the usage log had lost its beginning when the billing store was made: the end of the first request there was. Of the
    /// replicated sums, the first instant of the first day that is kept whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_since: Option<text::Instant>,
}

/// Usage by the asked dimensions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The groups, in order of their dimensions.
    pub data: Vec<UsageRow>,
    /// Pass as `after` to read on; `null` on the last page.
    pub next: Option<String>,
    /// The sum of every group, those on other pages included.
    pub total: Total,
    /// Where the answer comes from.
    pub source: AnswerSource,
    /// How far each partition has been counted.
    pub freshness: Vec<Freshness>,
    /// The log index that was read.
    pub applied: u64,
}

/// The exact sum of two costs, or `None` beyond ±9.2 billion dollars.
pub fn added(a: &UsageSums, b: &UsageSums) -> Option<UsageSums> {
    let mut tokens = a.tokens;
    tokens.add(&b.tokens);
    let cost: NanoUsd = a.cost.plus(b.cost).ok()?;
    let billed: NanoUsd = a.billed.plus(b.billed).ok()?;
    Some(UsageSums {
        requests: a.requests.saturating_add(b.requests),
        served: a.served.saturating_add(b.served),
        estimated: a.estimated.saturating_add(b.estimated),
        tokens,
        cost,
        billed,
        byok_requests: a.byok_requests.saturating_add(b.byok_requests),
        byok_cost: a.byok_cost.plus(b.byok_cost).ok()?,
        fee: a.fee.plus(b.fee).ok()?,
    })
}
