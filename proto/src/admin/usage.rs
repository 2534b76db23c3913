//! What was used, summed.

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
            output,
            output_reasoning,
        } = counts;
        Self {
            input,
            input_cache_read,
            input_cache_write,
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
            estimated,
            tokens,
            cost,
            billed,
        } = sums;
        Self {
            requests,
            estimated,
            tokens: tokens.into(),
            cost: Text(cost),
            billed: Text(billed),
        }
    }
}

/// What usage can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageDimension {
    /// By organization.
    Organization,
    /// By team; requests of projects without a team are one row with `team` null.
    Team,
    /// By project.
    Project,
    /// By API key.
    Key,
    /// By model.
    Model,
    /// By provider.
    Provider,
    /// By UTC day on which the request started.
    Day,
}

impl UsageDimension {
    /// Every dimension.
    pub const ALL: [Self; 7] = [
        Self::Organization,
        Self::Team,
        Self::Project,
        Self::Key,
        Self::Model,
        Self::Provider,
        Self::Day,
    ];

    /// The name used in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Team => "team",
            Self::Project => "project",
            Self::Key => "key",
            Self::Model => "model",
            Self::Provider => "provider",
            Self::Day => "day",
        }
    }
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
    /// The UTC day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<text::Day>,
    /// What it used.
    #[serde(flatten)]
    pub sums: Sums,
}

/// How far one partition of the usage log has been counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Freshness {
    /// The partition.
    pub partition: i32,
    /// The offset of the next record to count.
    pub offset: i64,
}

/// Usage by the asked dimensions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The groups, in order of their dimensions.
    pub data: Vec<UsageRow>,
    /// Pass as `after` to read on; `null` on the last page.
    pub next: Option<String>,
    /// The sum of every group, those on other pages included.
    pub total: Sums,
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
        estimated: a.estimated.saturating_add(b.estimated),
        tokens,
        cost,
        billed,
    })
}
