//! The body of a query as it comes, and the parts of it that are read alone.

use serde::Deserialize;
use tollway_proto::push::v1::SumFilter;
use tollway_shared::fault::Fault;
use tollway_shared::time::{DAY_MS, UnixMillis};
use tollway_shared::wording;

use super::{dimension, unknown};
use crate::api::account::params::wrong;

/// Most values of one filter.
const VALUES_MAX: usize = 200;
/// Days without a `time_range`.
const DAYS: i64 = 30;
const HOUR_MS: i64 = 3_600_000;

/// The request's body. What is not here is refused: a filter that is mistyped would otherwise be none, and the answer everything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) metrics: Vec<String>,
    #[serde(default)]
    pub(super) dimensions: Vec<String>,
    pub(super) granularity: Option<String>,
    pub(super) time_range: Option<TimeRange>,
    #[serde(default)]
    pub(super) filters: Vec<FilterBody>,
    pub(super) order_by: Option<OrderBody>,
    pub(super) limit: Option<serde_json::Value>,
    pub(super) group_limit: Option<serde_json::Value>,
    pub(super) classifier_dimensions: Option<serde::de::IgnoredAny>,
    pub(super) classifier_filters: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimeRange {
    pub(super) start: String,
    pub(super) end: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterBody {
    pub(super) field: String,
    pub(super) operator: String,
    pub(super) value: Values,
    pub(super) include_unset: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "must be a string, a number, or an array of those")]
pub(super) enum Values {
    One(Scalar),
    Many(Vec<Scalar>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Scalar {
    Text(String),
    Number(serde_json::Number),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderBody {
    pub(super) field: String,
    pub(super) direction: String,
}

/// Reads a body, naming the field that is wrong.
pub(super) fn read(bytes: &[u8]) -> Result<Body, Fault> {
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(bytes);
    json.map_err(|fault| Fault::InvalidJson {
        detail: fault.to_string(),
    })?;
    // A list would be read as the fields in their order.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(wrong("body", "must be a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|fault| {
        let path = fault.path().to_string();
        let text = fault.inner().to_string();
        misread(path.trim_matches('.'), wording::without_place(&text))
    })
}

/// - `path`: of the field, or of the object that it is in.
fn misread(path: &str, what: &str) -> Fault {
    for (start, why) in [
        ("unknown field `", "is not a field"),
        ("missing field `", "is missing"),
        ("duplicate field `", "is given twice"),
    ] {
        let Some(name) = what.strip_prefix(start).and_then(|rest| rest.split('`').next()) else {
            continue;
        };
        let field = match path {
            "" => name.to_owned(),
            path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
            path => format!("{path}.{name}"),
        };
        let known = what.split_once("expected ").map(|(_, known)| known);
        let known = known.map_or(String::new(), |known| format!("; known here: {known}"));
        return wrong(&field, &format!("{why}{known}"));
    }
    let field = if path.is_empty() { "body" } else { path };
    let plain = wording::must_be(what);
    wrong(field, plain.as_deref().unwrap_or(what))
}

/// Whole hours, and what is to be said where they are more than was asked for.
pub(super) fn hours(
    range: Option<&TimeRange>,
    now: UnixMillis,
) -> Result<((i64, i64), Option<String>), Fault> {
    let read = |param: &str, text: &str| {
        let at = UnixMillis::parse_rfc3339(text).map(|at| at.0);
        at.ok_or_else(|| wrong(param, "is not an instant such as 2026-11-22T18:00:00Z"))
    };
    let (start, end) = match range {
        None => (now.0 - DAYS * DAY_MS, now.0),
        Some(range) => (
            read("time_range.start", &range.start)?,
            read("time_range.end", &range.end)?,
        ),
    };
    if start >= end {
        return Err(wrong("time_range.end", "must be after `time_range.start`"));
    }
    let (from, until) = (start.div_euclid(HOUR_MS), (end - 1).div_euclid(HOUR_MS) + 1);
    let is_wider = (from * HOUR_MS, until * HOUR_MS) != (start, end);
    let warning = (range.is_some() && is_wider).then(|| {
        let at = |hour: i64| UnixMillis(hour * HOUR_MS).rfc3339();
        format!("sums are of whole hours: from {} to {}", at(from), at(until))
    });
    Ok(((from, until), warning))
}

pub(super) fn filter(body: FilterBody) -> Result<SumFilter, Fault> {
    let (_, field) = dimension("filters.field", &body.field)?;
    let text = |scalar| match scalar {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
    };
    let (none_of, is_many) = match body.operator.as_str() {
        "eq" => (false, false),
        "neq" => (true, false),
        "in" => (false, true),
        "not_in" => (true, true),
        other => {
            return Err(unknown(
                "filters.operator",
                other,
                ["eq", "neq", "in", "not_in"].into_iter(),
            ));
        }
    };
    let mut values: Vec<String> = match (body.value, is_many) {
        (Values::One(value), false) => vec![text(value)],
        (Values::Many(values), true) => values.into_iter().map(text).collect(),
        (_, true) => return Err(wrong("filters.value", "must be an array for `in` and `not_in`")),
        (_, false) => return Err(wrong("filters.value", "must be one value for `eq` and `neq`")),
    };
    if values.len() > VALUES_MAX {
        return Err(wrong(
            "filters.value",
            &format!("must have at most {VALUES_MAX} values"),
        ));
    }
    // Usage without a label has the empty one. It is left out by sets unless they say otherwise.
    let with_unset = body.include_unset.unwrap_or(false);
    if is_many && with_unset != none_of {
        values.push(String::new());
    }
    Ok(SumFilter {
        field: field.into(),
        values,
        none_of,
    })
}
