//! `POST /v1/analytics/query` and `GET /v1/analytics/meta`: any sums of the key's project.
//!
//! Usage is kept by the hour, so a time range is widened to whole hours, which a warning says. Everything is of the key's project.
//!
//! | file | what |
//! |---|---|
//! | `body` | the request's body |
//! | [`names`] | what can be asked |
//! | [`rows`] | sums → rows |

mod body;
pub mod names;
pub mod rows;
#[cfg(test)]
mod tests;

use serde::Serialize;
use tollway_proto::push::v1::read_request::Question;
use tollway_proto::push::v1::{SumField, SumFilter, Sums, SumsQuestion};
use tollway_shared::fault::Fault;
use tollway_shared::time::UnixMillis;

use self::body::{OrderBody, filter, hours};
use self::names::{DIMENSIONS, GRANULARITIES, METRICS, Metric};
use self::rows::{Order, Row};
use super::params::wrong;
use super::shape::Data;

/// Largest body.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Most dimensions.
const DIMENSIONS_MAX: usize = 2;
/// Most filters.
const FILTERS_MAX: usize = 20;
/// Most groups that are read, and so most rows.
const GROUPS_MAX: u32 = 10_000;
/// Rows without a `limit`.
const ROWS: usize = 1_000;
/// The name of the time in rows.
const DATE: &str = "date";

/// What is asked for.
#[derive(Debug)]
pub struct Query {
    metrics: Vec<&'static Metric>,
    dimensions: Vec<(&'static str, SumField)>,
    granularity: Option<SumField>,
    hours: (i64, i64),
    filters: Vec<SumFilter>,
    order: Order,
    limit: usize,
    group_limit: Option<usize>,
    warnings: Vec<String>,
}

impl Query {
    /// Reads a body.
    pub fn read(body: &[u8], now: UnixMillis) -> Result<Self, Fault> {
        let body = body::read(body)?;
        for (field, is_there) in [
            ("classifier_dimensions", body.classifier_dimensions.is_some()),
            ("classifier_filters", body.classifier_filters.is_some()),
        ] {
            if is_there {
                return Err(wrong(
                    field,
                    "is not known: there are no classifiers; leave it out",
                ));
            }
        }
        let metrics = metrics(&body.metrics)?;
        if body.dimensions.len() > DIMENSIONS_MAX {
            return Err(wrong("dimensions", "must be at most two"));
        }
        let mut dimensions = Vec::new();
        for name in &body.dimensions {
            let found = dimension("dimensions", name)?;
            if dimensions.contains(&found) {
                return Err(wrong(
                    "dimensions",
                    &format!("`{name}` is given twice", name = short(name)),
                ));
            }
            dimensions.push(found);
        }
        let granularity = body.granularity.as_deref().map(granularity).transpose()?;
        let (hours, warning) = hours(body.time_range.as_ref(), now)?;
        if body.filters.len() > FILTERS_MAX {
            return Err(wrong("filters", &format!("must be at most {FILTERS_MAX}")));
        }
        let filters = body.filters.into_iter().map(filter).collect::<Result<_, _>>()?;
        let mut query = Self {
            metrics,
            dimensions,
            granularity,
            hours,
            filters,
            order: Order {
                field: String::new(),
                descends: false,
            },
            limit: bounded("limit", body.limit.as_ref())?.unwrap_or(ROWS),
            group_limit: bounded("group_limit", body.group_limit.as_ref())?,
            warnings: warning.into_iter().collect(),
        };
        query.order = query.ordered(body.order_by)?;
        Ok(query)
    }

    /// By what sums are grouped, as rows name it: time first.
    fn by(&self) -> impl Iterator<Item = (&'static str, SumField)> + '_ {
        let time = self.granularity.map(|field| (DATE, field));
        time.into_iter().chain(self.dimensions.iter().copied())
    }

    /// What was asked for, or what is most useful: along the time, or by the first metric from its largest on.
    fn ordered(&self, asked: Option<OrderBody>) -> Result<Order, Fault> {
        let Some(OrderBody { field, direction }) = asked else {
            let first = self.metrics.first().map_or("request_count", |metric| metric.name);
            let (field, descends) = if self.granularity.is_some() {
                (DATE, false)
            } else {
                (first, true)
            };
            return Ok(Order {
                field: field.into(),
                descends,
            });
        };
        let descends = match direction.as_str() {
            "asc" => false,
            "desc" => true,
            _ => return Err(wrong("order_by.direction", "must be `asc` or `desc`")),
        };
        let known = field == "request_count"
            || self.metrics.iter().any(|metric| metric.name == field)
            || self.by().any(|(name, _)| name == field);
        if !known {
            let detail = "must be `request_count`, or one of the metrics and dimensions that are asked for, or with a granularity `date`";
            return Err(wrong("order_by.field", detail));
        }
        Ok(Order { field, descends })
    }

    /// The question to the control plane.
    pub fn question(&self) -> Question {
        Question::Sums(SumsQuestion {
            from_hour: self.hours.0,
            until_hour: self.hours.1,
            by: self.by().map(|(_, field)| field.into()).collect(),
            filters: self.filters.clone(),
            groups_max: GROUPS_MAX,
            latencies: self.metrics.iter().any(|metric| metric.is_latency),
            own_credentials: self.metrics.iter().any(|metric| metric.is_own),
        })
    }

    /// The answer's body. `None`: the control plane has answered another question.
    pub fn body(&self, sums: &Sums, took_ms: u64) -> Option<Data<Found<'_>>> {
        let (data, truncated) = rows::rows(self, sums)?;
        let metadata = Metadata {
            query_time_ms: took_ms,
            row_count: data.len(),
            truncated,
        };
        let warnings = &self.warnings;
        Some(Data {
            data: Found {
                data,
                warnings,
                metadata,
            },
        })
    }
}

/// The inner part of the answer.
#[derive(Debug, Serialize)]
pub struct Found<'a> {
    data: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: &'a Vec<String>,
    metadata: Metadata,
}

#[derive(Debug, Serialize)]
struct Metadata {
    query_time_ms: u64,
    row_count: usize,
    truncated: bool,
}

/// Why a question that the control plane finds too large has no answer.
pub fn too_much() -> Fault {
    wrong("time_range", "has more usage than one answer holds; ask for less")
}

fn metrics(names: &[String]) -> Result<Vec<&'static Metric>, Fault> {
    if names.is_empty() {
        return Err(wrong("metrics", "must name at least one"));
    }
    let mut found: Vec<&'static Metric> = Vec::new();
    for name in names {
        let metric = METRICS.iter().find(|metric| metric.name == name);
        let metric =
            metric.ok_or_else(|| unknown("metrics", name, METRICS.iter().map(|metric| metric.name)))?;
        if found.iter().any(|other| other.name == metric.name) {
            return Err(wrong("metrics", &format!("`{name}` is given twice")));
        }
        found.push(metric);
    }
    Ok(found)
}

fn dimension(param: &str, name: &str) -> Result<(&'static str, SumField), Fault> {
    let found = DIMENSIONS.iter().find(|(known, ..)| *known == name);
    let found = found.map(|(name, _, field)| (*name, *field));
    found.ok_or_else(|| unknown(param, name, DIMENSIONS.iter().map(|(name, ..)| *name)))
}

fn granularity(name: &str) -> Result<SumField, Fault> {
    let found = GRANULARITIES.iter().find(|(known, ..)| *known == name);
    let found = found.map(|(.., field)| *field);
    found.ok_or_else(|| unknown("granularity", name, GRANULARITIES.iter().map(|(name, ..)| *name)))
}

fn unknown(param: &str, name: &str, known: impl Iterator<Item = &'static str>) -> Fault {
    let known: Vec<&str> = known.collect();
    wrong(
        param,
        &format!("`{}` is not one of {}", short(name), known.join(", ")),
    )
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

fn bounded(param: &str, asked: Option<&serde_json::Value>) -> Result<Option<usize>, Fault> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    let rows = asked.as_u64().and_then(|rows| usize::try_from(rows).ok());
    match rows.filter(|rows| (1..=GROUPS_MAX as usize).contains(rows)) {
        Some(rows) => Ok(Some(rows)),
        None => Err(wrong(
            param,
            &format!("must be a whole number from 1 to {GROUPS_MAX}"),
        )),
    }
}
