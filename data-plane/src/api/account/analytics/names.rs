//! What can be asked: metrics, dimensions, granularities and operators by OpenRouter's names, as far as usage is kept here. Other
//! names are refused with the ones that there are.

use serde::Serialize;
use tollway_proto::push::v1::{SumField, SumGroup};

use super::rows::Cell;
use crate::api::account::generation::{completion, prompt};

/// A sum, or what follows from sums.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    label: &'static str,
    format: &'static str,
    is_rate: bool,
    /// Whether percentiles are needed for it.
    pub is_latency: bool,
    /// Whether it tells own credentials from others.
    pub is_own: bool,
    /// Its value in a group.
    pub of: fn(&SumGroup) -> Cell,
}

const fn metric(
    name: &'static str,
    label: &'static str,
    format: &'static str,
    of: fn(&SumGroup) -> Cell,
) -> Metric {
    Metric {
        name,
        label,
        format,
        is_rate: false,
        is_latency: false,
        is_own: false,
        of,
    }
}

const fn own(metric: Metric) -> Metric {
    Metric {
        is_own: true,
        ..metric
    }
}

const fn latency(metric: Metric) -> Metric {
    Metric {
        is_rate: true,
        is_latency: true,
        ..metric
    }
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    metric("request_count", "Requests", "number", |group| {
        Cell::Count(group.requests)
    }),
    own(metric(
        "total_usage",
        "Spend, also of own credentials",
        "currency",
        |group| Cell::Nano(group.billed.saturating_add(group.byok_charge)),
    )),
    metric("credits_usage", "Spend of credit", "currency", |group| {
        Cell::Nano(group.billed)
    }),
    own(metric(
        "byok_usage",
        "Spend of own credentials, at list price",
        "currency",
        |group| Cell::Nano(group.byok_charge),
    )),
    metric("usage_upstream", "List price", "currency", |group| {
        Cell::Nano(group.charge)
    }),
    metric("usage_cache", "Saved by caches", "currency", |group| {
        Cell::Nano(group.cache_savings)
    }),
    metric("tokens_total", "Tokens", "number", |group| {
        let tokens = group.tokens.unwrap_or_default();
        Cell::Count(prompt(&tokens).saturating_add(completion(&tokens)))
    }),
    metric("tokens_prompt", "Prompt tokens", "number", |group| {
        Cell::Count(prompt(&group.tokens.unwrap_or_default()))
    }),
    metric("tokens_completion", "Completion tokens", "number", |group| {
        Cell::Count(completion(&group.tokens.unwrap_or_default()))
    }),
    metric("reasoning_tokens", "Reasoning tokens", "number", |group| {
        Cell::Count(group.tokens.unwrap_or_default().output_reasoning)
    }),
    metric(
        "cached_tokens",
        "Prompt tokens out of caches",
        "number",
        |group| Cell::Count(group.tokens.unwrap_or_default().input_cache_read),
    ),
    Metric {
        is_rate: true,
        ..metric(
            "cache_hit_rate",
            "Share of prompt tokens out of caches",
            "percent",
            |group| {
                let tokens = group.tokens.unwrap_or_default();
                ratio(tokens.input_cache_read, prompt(&tokens))
            },
        )
    },
    Metric {
        is_rate: true,
        ..metric(
            "error_rate",
            "Share of requests that failed",
            "percent",
            |group| ratio(group.failed.saturating_add(group.interrupted), group.requests),
        )
    },
    latency(metric(
        "p50_latency",
        "Median latency of whole answers",
        "latency",
        |group| millis(group.total_ms.and_then(|total| total.p50)),
    )),
    latency(metric(
        "p90_latency",
        "90th percentile of the latency of whole answers",
        "latency",
        |group| millis(group.total_ms.and_then(|total| total.p90)),
    )),
    latency(metric(
        "p99_latency",
        "99th percentile of the latency of whole answers",
        "latency",
        |group| millis(group.total_ms.and_then(|total| total.p99)),
    )),
];

/// A share of a whole, to nine digits; of nothing there is none.
fn ratio(part: u64, whole: u64) -> Cell {
    let parts = (u128::from(part) * 1_000_000_000).checked_div(u128::from(whole));
    parts.map_or(Cell::None, |nano| {
        Cell::Nano(i64::try_from(nano).unwrap_or(i64::MAX))
    })
}

fn millis(found: Option<u64>) -> Cell {
    found.map_or(Cell::None, Cell::Count)
}

/// Dimensions: name, label, what they are in the control plane.
pub const DIMENSIONS: &[(&str, &str, SumField)] = &[
    ("model", "Model", SumField::Model),
    ("provider", "Provider", SumField::Provider),
    ("endpoint_id", "Endpoint", SumField::Endpoint),
    ("api_key_id", "API key", SumField::Key),
    (
        "external_user",
        "End user, as the caller labels it",
        SumField::User,
    ),
    ("data_region", "Region of the node", SumField::Region),
];

/// Granularities: name, label, what they are in the control plane.
pub const GRANULARITIES: &[(&str, &str, SumField)] = &[
    ("hour", "Hour", SumField::Hour),
    ("day", "Day", SumField::Day),
    ("week", "Week, from Monday", SumField::Week),
    ("month", "Month", SumField::Month),
];

/// What `GET /v1/analytics/meta` says.
#[derive(Debug, Serialize)]
pub struct Meta {
    metrics: Vec<MetricOut>,
    dimensions: Vec<Named>,
    granularities: Vec<Named>,
    operators: [Operator; 4],
}

#[derive(Debug, Serialize)]
struct MetricOut {
    name: &'static str,
    display_label: &'static str,
    display_format: &'static str,
    is_rate: bool,
}

#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
    display_label: &'static str,
}

#[derive(Debug, Serialize)]
struct Operator {
    name: &'static str,
    value_type: &'static str,
}

/// All that can be asked.
pub fn meta() -> Meta {
    let named = |list: &[(&'static str, &'static str, SumField)]| {
        let named = list.iter().map(|(name, label, _)| Named {
            name,
            display_label: label,
        });
        named.collect()
    };
    let metrics = METRICS.iter().map(|metric| MetricOut {
        name: metric.name,
        display_label: metric.label,
        display_format: metric.format,
        is_rate: metric.is_rate,
    });
    let operator = |(name, value_type)| Operator { name, value_type };
    Meta {
        metrics: metrics.collect(),
        dimensions: named(DIMENSIONS),
        granularities: named(GRANULARITIES),
        operators: [
            ("eq", "scalar"),
            ("neq", "scalar"),
            ("in", "array"),
            ("not_in", "array"),
        ]
        .map(operator),
    }
}
