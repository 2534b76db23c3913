//! What is asked about usage.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tollway_proto::admin::text::Textual;
use tollway_proto::admin::usage::UsageDimension;
use tollway_shared::ids::{
    ApiKeyId, EndpointId, ModelId, OrganizationId, PriceId, ProjectId, ProviderId, Region, TeamId,
};
use tollway_shared::labels;
use tollway_shared::time::{Day, UnixMillis};

use crate::admin::fault::Fault;
use crate::admin::params::{Params, Window, wrong_param};
use crate::billing::cell::Dimension;
use crate::billing::fold::HOUR_MS;
use crate::billing::query::{Field, Hours, Query, Value};

/// Most groups by key that an answer by label is made of.
pub(super) const KEYS_MAX: usize = 200_000;
/// What a label in `group_by` begins with.
const LABEL: &str = "label:";
/// Most labels in one `group_by`.
const LABELS_MAX: usize = 4;

/// One end of a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// A whole day.
    Day(Day),
    /// An hour, since 1970.
    Hour(i64),
}

impl Bound {
    fn hours(self) -> Hours {
        match self {
            Self::Day(day) => Hours::of_days(day, day),
            Self::Hour(hour) => Hours {
                from: hour,
                until: hour + 1,
            },
        }
    }
}

/// What is asked: which usage, by what it is grouped, and which page.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) from: Option<Bound>,
    pub(super) to: Option<Bound>,
    pub(super) equal: Vec<(UsageDimension, String)>,
    pub(super) by: Vec<UsageDimension>,
    /// Labels to group by, after the dimensions.
    pub(super) labels: Vec<String>,
    pub(super) window: Window,
}

impl Ask {
    /// Reads it from the query parameters.
    pub(super) fn take(params: &mut Params) -> Result<Self, Fault> {
        let (by, labels) = take_dimensions(params)?;
        let mut ask = Self {
            window: params.take_window()?,
            by,
            labels,
            from: take_bound(params, "from")?,
            to: take_bound(params, "to")?,
            equal: Vec::new(),
        };
        if let (Some(from), Some(to)) = (ask.from, ask.to)
            && from.hours().from >= to.hours().until
        {
            return Err(wrong_param("from", "is after `to`"));
        }
        for dimension in UsageDimension::ALL {
            if let Some(value) = params.take(dimension.as_str()) {
                if !matches!(field(*dimension), Field::Of(_))
                    && Hours::of_field(field(*dimension), &value).is_none()
                {
                    let example = match dimension {
                        UsageDimension::Hour => "2026-11-22T18:00:00Z",
                        UsageDimension::Day => "2026-11-22",
                        _ => "2026-11",
                    };
                    return Err(wrong_param(
                        dimension.as_str(),
                        format!("`{value}` is not one; write it as {example}"),
                    ));
                }
                must_fit(*dimension, &value).map_err(|why| wrong_param(dimension.as_str(), why))?;
                ask.equal.push((*dimension, value));
            }
        }
        Ok(ask)
    }

    /// Whether the replicated sums can answer it.
    pub(super) fn is_of_state(&self) -> bool {
        self.beyond_state().is_none()
    }

    /// The parameter that the replicated sums know nothing of, if there is one.
    pub(super) fn beyond_state(&self) -> Option<&'static str> {
        if matches!(self.from, Some(Bound::Hour(_))) {
            return Some("from");
        }
        if matches!(self.to, Some(Bound::Hour(_))) {
            return Some("to");
        }
        let beyond = |dimension: &UsageDimension| {
            use UsageDimension as By;
            !matches!(
                dimension,
                By::Organization
                    | By::Team
                    | By::Project
                    | By::Key
                    | By::Model
                    | By::Provider
                    | By::Day
                    | By::Month
            )
        };
        if self.by.iter().any(beyond) {
            return Some("group_by");
        }
        let mut equal = self.equal.iter().map(|(dimension, _)| dimension);
        equal
            .find(|dimension| beyond(dimension))
            .map(|dimension| dimension.as_str())
    }

    /// The wanted hours.
    pub(super) fn hours(&self) -> Hours {
        let mut hours = Hours {
            from: self.from.map_or(i64::MIN, |from| from.hours().from),
            until: self.to.map_or(i64::MAX, |to| to.hours().until),
        };
        for (dimension, text) in &self.equal {
            if let Some(of) = Hours::of_field(field(*dimension), text) {
                hours = hours.and(of);
            }
        }
        hours
    }

    /// The question to the billing store.
    pub(super) fn query(&self) -> Result<Query, Fault> {
        let by: Vec<Field> = self.by.iter().map(|dimension| field(*dimension)).collect();
        // What has labels is made of keys, and a page of that is cut afterwards.
        let after = self.after()?.filter(|_| self.labels.is_empty()).map(|after| {
            let values = by.iter().zip(after).map(|(field, text)| {
                let text = text.unwrap_or_default();
                field.value(&text).unwrap_or(Value::Text(text))
            });
            values.collect()
        });
        let equal = self
            .equal
            .iter()
            .filter_map(|(dimension, text)| match field(*dimension) {
                Field::Of(dimension) => Some((dimension, text.clone())),
                Field::Hour | Field::Day | Field::Week | Field::Month => None, // among the hours
            });
        let (by, limit) = if self.labels.is_empty() {
            (by, self.window.limit)
        } else {
            let of_key = super::label::OF_KEY.map(Field::Of);
            (by.into_iter().chain(of_key).collect(), KEYS_MAX)
        };
        Ok(Query {
            hours: self.hours(),
            equal: equal.collect(),
            among: Vec::new(),
            by,
            after,
            limit,
            latencies: true,
        })
    }

    /// The group after which the page begins.
    pub(super) fn after(&self) -> Result<Option<Vec<Option<String>>>, Fault> {
        let Some(cursor) = &self.window.after else {
            return Ok(None);
        };
        let group = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|json| serde_json::from_slice::<Vec<Option<String>>>(&json).ok())
            .filter(|group| group.len() == self.by.len() + self.labels.len());
        let wrong = || wrong_param("after", "is not the `next` of a page with the same `group_by`");
        group.map(Some).ok_or_else(wrong)
    }
}

/// A group as the `after` of the next page. Labels of end users may have any characters.
pub(super) fn cursor(group: &[Option<String>]) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(group).unwrap_or_default()) // texts always are JSON
}

/// A dimension as the store has it.
pub(super) fn field(dimension: UsageDimension) -> Field {
    Field::Of(match dimension {
        UsageDimension::Organization => Dimension::Organization,
        UsageDimension::Team => Dimension::Team,
        UsageDimension::Project => Dimension::Project,
        UsageDimension::Key => Dimension::Key,
        UsageDimension::User => Dimension::User,
        UsageDimension::Model => Dimension::Model,
        UsageDimension::Endpoint => Dimension::Endpoint,
        UsageDimension::Provider => Dimension::Provider,
        UsageDimension::Region => Dimension::Region,
        UsageDimension::PriceVersion => Dimension::PriceVersion,
        UsageDimension::Byok => Dimension::Byok,
        UsageDimension::Hour => return Field::Hour,
        UsageDimension::Day => return Field::Day,
        UsageDimension::Month => return Field::Month,
    })
}

/// What is wrong with a value that no usage can have, if anything. A filter is no look-up: of what does not exist there is no usage.
fn must_fit(dimension: UsageDimension, value: &str) -> Result<(), String> {
    fn read<T: Textual>(text: &str) -> Result<(), String> {
        T::read(text).map(|_| ())
    }
    use UsageDimension as By;
    match dimension {
        By::Byok if !matches!(value, "true" | "false") => {
            Err(format!("`{value}` is neither `true` nor `false`"))
        }
        By::Organization => read::<OrganizationId>(value),
        By::Team if value.is_empty() => Ok(()), // usage without one
        By::Team => read::<TeamId>(value),
        By::Project => read::<ProjectId>(value),
        By::Key => read::<ApiKeyId>(value),
        By::Model => read::<ModelId>(value),
        By::Endpoint => read::<EndpointId>(value),
        By::Provider => read::<ProviderId>(value),
        By::Region => read::<Region>(value),
        By::PriceVersion => read::<PriceId>(value),
        By::Byok | By::User | By::Hour | By::Day | By::Month => Ok(()),
    }
}

fn take_bound(params: &mut Params, name: &str) -> Result<Option<Bound>, Fault> {
    let Some(text) = params.take(name) else {
        return Ok(None);
    };
    if let Some(at) = UnixMillis::parse_rfc3339(&text) {
        return Ok(Some(Bound::Hour(at.0.div_euclid(HOUR_MS))));
    }
    let day = Day::parse(&text)
        .filter(|day| day.to_string() == text)
        .map(Bound::Day);
    let wrong = || {
        wrong_param(
            name,
            format!(
                "`{text}` is neither a day such as 2026-11-22 nor an instant such as 2026-11-22T18:00:00Z"
            ),
        )
    };
    day.map(Some).ok_or_else(wrong)
}

fn take_dimensions(params: &mut Params) -> Result<(Vec<UsageDimension>, Vec<String>), Fault> {
    let names = params.take("group_by").unwrap_or_default();
    let (mut by, mut asked) = (Vec::new(), Vec::new());
    for name in names.split(',').filter(|name| !name.is_empty()) {
        if let Some(label) = name.strip_prefix(LABEL) {
            take_label(label, &mut asked)?;
            continue;
        }
        let found = UsageDimension::ALL
            .iter()
            .find(|dimension| dimension.as_str() == name);
        let dimension = *found.ok_or_else(|| {
            let known: Vec<&str> = UsageDimension::ALL
                .iter()
                .map(|dimension| dimension.as_str())
                .collect();
            let known = known.join(", ");
            wrong_param("group_by", format!("`{name}` is not one of {known}, label:NAME"))
        })?;
        if by.contains(&dimension) {
            return Err(wrong_param("group_by", format!("`{name}` is given twice")));
        }
        by.push(dimension);
    }
    Ok((by, asked))
}

fn take_label(label: &str, asked: &mut Vec<String>) -> Result<(), Fault> {
    if !labels::is_name(label) {
        return Err(wrong_param(
            "group_by",
            format!("`{label}` is not the name of a label"),
        ));
    }
    if asked.iter().any(|known| known == label) {
        return Err(wrong_param(
            "group_by",
            format!("`{LABEL}{label}` is given twice"),
        ));
    }
    if asked.len() == LABELS_MAX {
        return Err(wrong_param(
            "group_by",
            format!("must have at most {LABELS_MAX} labels"),
        ));
    }
    asked.push(label.to_owned());
    Ok(())
}
