//! Dry runs: a list of writes, and which of them would be refused.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::problem::Problem;

/// Writes to try, in order: each sees those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// The writes.
    pub writes: Vec<TriedWrite>,
}

/// One write as it would be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TriedWrite {
    /// `PUT`; `POST` for a price.
    pub method: String,
    /// The path below `/admin/v1/`, such as `models/acme%2Fsmall`.
    pub path: String,
    /// The body.
    pub body: Value,
}

/// What would be refused. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRunAnswer {
    /// The writes that would be refused, in order; empty: all would be done.
    pub refusals: Vec<TriedRefusal>,
    /// The revision of the state on which it was tried.
    pub revision: u64,
}

/// A write that would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TriedRefusal {
    /// Which of the writes, from 0.
    pub write: usize,
    /// Why.
    pub problem: Problem,
}
