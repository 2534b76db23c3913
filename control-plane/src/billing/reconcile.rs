//! Whether the store and the replicated sums say the same. Pure.
//!
//! Both fold the same log by the same rule, so at the same offsets they must agree to the nano-dollar in every cell that the replicated
//! sums tell apart: day, tenant path, model, provider. Days of which either does not have everything are left out.

use std::collections::BTreeMap;

use tollway_shared::time::Day;
use tollway_shared::tokens::TokenCounts;

use super::cell::{Dimension, Sum};
use super::query::{Field, Groups, Hours, Query, Value};
use super::read;
use crate::state::{State, usage};

/// Differences that are told one by one; the rest are only counted.
pub const ROWS_MAX: usize = 100;

/// What both can tell of a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Side {
    /// Requests.
    pub requests: u64,
    /// Those whose counts are estimates.
    pub estimated: u64,
    /// Tokens by kind.
    pub tokens: TokenCounts,
    /// List price, nano-dollars.
    pub cost: i128,
    /// What is owed, nano-dollars.
    pub billed: i128,
}

/// A cell: day, organization, team (or empty), project, key, model, provider.
pub type Key = (Day, [String; 6]);

/// A cell on which they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The cell.
    pub cell: Key,
    /// What the replicated sums say.
    pub state: Side,
    /// What the store says.
    pub store: Side,
}

/// What a comparison came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Cells that were compared.
    pub cells: usize,
    /// Cells that differ.
    pub differing: usize,
    /// Nano-dollars by which they differ, list prices and what is owed, added up without their signs.
    pub drift: i128,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// The question that the store answers for this.
pub fn question(from: Day, to: Day) -> Query {
    let dimensions = [
        Dimension::Organization,
        Dimension::Team,
        Dimension::Project,
        Dimension::Key,
        Dimension::Model,
        Dimension::Provider,
    ];
    let fields = dimensions.into_iter().map(Field::Of);
    Query {
        hours: Hours::of_days(from, to),
        equal: Vec::new(),
        among: Vec::new(),
        by: std::iter::once(Field::Day).chain(fields).collect(),
        after: None,
        limit: read::ROWS_MAX, // more is an error, never a part
        latencies: false,
    }
}

/// Compares the replicated sums of some days with the store's answer to [`question`].
pub fn compare(state: &State, from: Day, to: Day, groups: &Groups) -> Reconciliation {
    let mut cells: BTreeMap<Key, (Side, Side)> = BTreeMap::new();
    for (cell, sums) in usage::cells(state, from, to, None) {
        let path = &cell.path;
        let team = path.team.as_ref().map_or("", |team| team.as_str());
        let names = [
            path.organization.as_str(),
            team,
            path.project.as_str(),
            path.key.as_str(),
            cell.model.as_str(),
            cell.provider.as_str(),
        ];
        let side = Side {
            requests: sums.requests,
            estimated: sums.estimated,
            tokens: sums.tokens,
            cost: sums.cost.0.into(),
            billed: sums.billed.0.into(),
        };
        cells.entry((cell.day, names.map(str::to_owned))).or_default().0 = side;
    }
    for (group, summed) in groups {
        let [Value::Int(day), names @ ..] = group.as_slice() else {
            continue;
        };
        let names: Vec<String> = names
            .iter()
            .map(|name| match name {
                Value::Text(text) => text.clone(),
                Value::Int(number) => number.to_string(),
                Value::None => String::new(),
            })
            .collect();
        let (Ok(day), Ok(names)) = (i32::try_from(*day), <[String; 6]>::try_from(names)) else {
            continue;
        };
        let count = |sum| u64::try_from(summed.get(sum)).unwrap_or(u64::MAX);
        cells.entry((Day(day), names)).or_default().1 = Side {
            requests: count(Sum::Requests),
            estimated: count(Sum::Estimated),
            tokens: TokenCounts {
                input: count(Sum::TokensInput),
                input_cache_read: count(Sum::TokensCacheRead),
                input_cache_write: count(Sum::TokensCacheWrite),
                input_cache_write_1h: count(Sum::TokensCacheWrite1h),
                output: count(Sum::TokensOutput),
                output_reasoning: count(Sum::TokensReasoning),
            },
            cost: summed.get(Sum::Charge),
            billed: summed.get(Sum::Billed),
        };
    }
    let mut found = Reconciliation {
        cells: cells.len(),
        ..Reconciliation::default()
    };
    for (cell, (state, store)) in cells {
        if state == store {
            continue;
        }
        found.differing += 1;
        let apart = (state.cost - store.cost).abs() + (state.billed - store.billed).abs();
        found.drift = found.drift.saturating_add(apart);
        if found.differences.len() < ROWS_MAX {
            found.differences.push(Difference { cell, state, store });
        }
    }
    found
}
