//! JSON bodies of the admin API: what a request may say, and what an answer says.
//!
//! Separate from the stored types, with exhaustive conversions: a field added to one does not compile until the other knows of
//! it. Requests refuse unknown fields by name. Amounts are decimal strings, instants RFC 3339.
//!
//! | file | what |
//! |---|---|
//! | [`catalog`] | providers, credentials, models, endpoints, prices, notices |
//! | [`tenant`] | organizations, teams, projects, API keys |
//! | [`budget`] | budgets and their raises |
//! | [`account`] | accounts of organizations, transfers, fees, payments |
//! | [`incarnation`] | lives of nodes, and what each holds of budgets |
//! | [`cluster`] | admins, join tokens, nodes, replicas, audit records |
//! | [`usage`], [`reconciliation`] | sums of usage; whether both places that keep them agree |
//! | [`report`] | invoices and other reports on usage |
//! | [`dry_run`] | writes that are only tried |
//! | [`problem`] | refusals |
//! | [`text`] | values that travel as text |

pub mod account;
pub mod budget;
pub mod catalog;
pub mod cluster;
pub mod dry_run;
pub mod incarnation;
pub mod problem;
pub mod reconciliation;
pub mod report;
pub mod tenant;
pub mod text;
pub mod usage;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rows per page when a request names no limit.
pub const PAGE_ROWS: usize = 100;
/// Most rows per page.
pub const PAGE_ROWS_MAX: usize = 1_000;

/// One page of a list, in order of ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The records.
    pub data: Vec<T>,
    /// Pass as `after` to read on; `null` on the last page.
    pub next: Option<String>,
    /// The revision that was read.
    pub revision: u64,
}

/// The answer to a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// What was removed.
    pub id: String,
    /// The revision at which it took effect.
    pub revision: u64,
}
