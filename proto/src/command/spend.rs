//! What the ledger records of the usage log.

use serde::{Deserialize, Serialize};
use tollway_shared::ids::{ModelId, ProviderId, Revision, WriterId};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::Day;
use tollway_shared::tokens::TokenCounts;

/// Where one usage sum belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UsageCell {
    /// The UTC day on which the request started.
    pub day: Day,
    /// Who pays.
    pub path: TenantPath,
    /// What was asked for, after aliases.
    pub model: ModelId,
    /// Who served it.
    pub provider: ProviderId,
}

/// What was used in a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSums {
    /// Requests that reached a provider.
    pub requests: u64,
    /// Those among them that a provider served.
    pub served: u64,
    /// Those among them whose counts are estimates.
    pub estimated: u64,
    /// Tokens by kind.
    pub tokens: TokenCounts,
    /// What they cost at list price.
    pub cost: NanoUsd,
    /// What is owed for them: with markups and discounts, and nothing for own credentials and free models.
    pub billed: NanoUsd,
    /// Those served with the organization's own credential.
    pub byok_requests: u64,
    /// What those cost at list price; in `cost`, too.
    pub byok_cost: NanoUsd,
    /// The fee on those; not in `billed`.
    pub fee: NanoUsd,
}

/// What a stretch adds to a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// The cell.
    pub cell: UsageCell,
    /// The snapshot revision under which these requests were admitted: it tells which budgets they held on.
    pub revision: Revision,
    /// Their sums.
    pub sums: UsageSums,
}

/// A folded stretch of one partition of the usage log. Applied only when `from` is the offset the state has reached, so a
/// stretch that comes twice changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSpend {
    /// The partition.
    pub partition: i32,
    /// The first offset of the stretch.
    pub from: i64,
    /// The offset after its last record.
    pub to: i64,
    /// What to add, one entry per cell and revision.
    pub sums: Vec<Spent>,
    /// The highest sequence seen per writer, for writers that occur in the stretch.
    pub writers: Vec<(WriterId, u64)>,
}
