//! Whether the billing store and the replicated sums say the same.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text;
use super::usage::{Freshness, Sums};

/// A comparison of the billing store with the replicated sums, at the same offsets of the usage log. They must be equal: `differing` is
/// 0 and so is `drift`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reconciliation {
    /// The first day that was compared.
    pub from: text::Day,
    /// The last day that was compared.
    pub to: text::Day,
    /// Cells that were compared: a cell is a day, tenant path, model and provider.
    pub cells: u64,
    /// Cells that differ in anything.
    pub differing: u64,
    /// US dollars by which they differ, `cost` and `billed`, added up without signs.
    pub drift: text::Usd,
    /// The first hundred of them.
    pub differences: Vec<Difference>,
    /// Where in the usage log both were.
    pub freshness: Vec<Freshness>,
    /// The log index of the replicated sums.
    pub applied: u64,
}

/// A cell on which they differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The UTC day.
    pub day: text::Day,
    /// The organization.
    pub organization: String,
    /// The team, if any.
    pub team: Option<String>,
    /// The project.
    pub project: String,
    /// The API key's id.
    pub key: String,
    /// The model.
    pub model: String,
    /// The provider.
    pub provider: String,
    /// What the replicated sums say, which budgets go by.
    pub state: Sums,
    /// What the billing store says.
    pub billing: Sums,
}
