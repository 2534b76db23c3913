//! Groups of sums → rows: values by the names that were asked for, in the wanted order, and not more than wanted.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tollway_proto::push::v1::{SumGroup, Sums};

use super::{DATE, Query};
use crate::api::account::shape::Usd;

/// One value. Within a column all are of one kind, or none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// Nothing was measured.
    None,
    /// A whole number.
    Count(u64),
    /// Billionths: of a dollar, or of one.
    Nano(i64),
    /// Text.
    Text(String),
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            Self::Count(count) => serializer.serialize_u64(*count),
            Self::Nano(nano) => Usd(*nano).serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// A row: the date if there is one, dimensions, metrics.
#[derive(Debug, PartialEq, Eq)]
pub struct Row(Vec<(&'static str, Cell)>);

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, cell) in &self.0 {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

/// The rows, and whether some of them are left out. `None`: the control plane has answered another question.
pub fn rows(query: &Query, sums: &Sums) -> Option<(Vec<Row>, bool)> {
    let mut found: Vec<(Cell, Row)> = sums
        .groups
        .iter()
        .map(|group| Some((order(query, group)?, row(query, group)?)))
        .collect::<Option<_>>()?;
    // Groups come in the order of their values, which stays where the order by something else says nothing.
    found.sort_by(|(left, _), (right, _)| match query.order.descends {
        true => right.cmp(left),
        false => left.cmp(right),
    });
    let all = found.len();
    let mut rows: Vec<Row> = found.into_iter().map(|(_, row)| row).collect();
    if let Some(most) = query.group_limit.filter(|_| !query.dimensions.is_empty()) {
        keep_of_each(query, &mut rows, most);
    }
    rows.truncate(query.limit);
    let is_cut = sums.has_more || rows.len() < all;
    Some((rows, is_cut))
}

/// Leaves at most so many rows of each combination of dimensions.
fn keep_of_each(query: &Query, rows: &mut Vec<Row>, most: usize) {
    let first = usize::from(query.granularity.is_some());
    let mut kept: BTreeMap<Vec<Cell>, usize> = BTreeMap::new();
    rows.retain(|row| {
        let dimensions = &row.0[first..first + query.dimensions.len()];
        let of = dimensions.iter().map(|(_, cell)| cell.clone()).collect();
        let count = kept.entry(of).or_default();
        *count += 1;
        *count <= most
    });
}

/// By what a group is sorted.
fn order(query: &Query, group: &SumGroup) -> Option<Cell> {
    let name = query.order.field.as_str();
    if name == "request_count" {
        return Some(Cell::Count(group.requests));
    }
    if let Some(metric) = query.metrics.iter().find(|metric| metric.name == name) {
        return Some((metric.of)(group));
    }
    let place = query.by().position(|(of, _)| of == name)?;
    group.values.get(place).cloned().map(Cell::Text)
}

fn row(query: &Query, group: &SumGroup) -> Option<Row> {
    if group.values.len() != query.by().count() {
        return None;
    }
    let values = query.by().zip(&group.values).map(|((name, _), value)| {
        let cell = match (name, value.as_str()) {
            (DATE, month) if month.len() == "2026-11".len() => Cell::Text(format!("{month}-01")),
            (_, "") => Cell::None, // of a label that the caller left out
            (_, value) => Cell::Text(value.to_owned()),
        };
        (name, cell)
    });
    let metrics = query
        .metrics
        .iter()
        .map(|metric| (metric.name, (metric.of)(group)));
    Some(Row(values.chain(metrics).collect()))
}

/// How rows are sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A metric, a dimension, or `date`.
    pub field: String,
    /// The largest first.
    pub descends: bool,
}
