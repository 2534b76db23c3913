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
    /// Sums of organizations' accounts that are not what usage says they should be: what was taken for usage and as fees, of all time and
    /// by month. There must be none. At most a hundred.
    pub accounts: Vec<AccountDifference>,
    /// Where in the usage log both were.
    pub freshness: Vec<Freshness>,
    /// The log index of the replicated sums.
    pub applied: u64,
}

/// What of an account is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccountSum {
    /// Taken for usage, as `billed`.
    Billed,
    /// Fees: on own credentials, and of all time on credits, too.
    Fee,
}

/// A sum of an account that is not what usage says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountDifference {
    /// The organization.
    pub organization: String,
    /// Which sum.
    pub sum: AccountSum,
    /// The month, `2026-11`; absent: all time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month: Option<String>,
    /// What the account was charged, US dollars.
    pub account: text::Usd,
    /// What usage and purchases come to, US dollars.
    pub usage: text::Usd,
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
