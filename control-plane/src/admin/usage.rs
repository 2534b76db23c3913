//! What was used, by any dimensions, from the sums in the replicated state.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::{Freshness, Usage, UsageDimension, UsageRow, added};
use tollway_proto::command::{UsageCell, UsageSums};
use tollway_shared::time::Day;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::exchange::{Answer, Params, Read, Window, wrong_param};
use super::fault::Fault;
use crate::state::State;

/// The wanted cells.
#[derive(Debug, Default)]
struct Filter {
    from: Option<Day>,
    to: Option<Day>,
    equal: Vec<(UsageDimension, String)>,
}

impl Filter {
    fn take(params: &mut Params) -> Result<Self, Fault> {
        let mut filter = Self {
            from: params.take_text("from")?,
            to: params.take_text("to")?,
            equal: Vec::new(),
        };
        if let (Some(from), Some(to)) = (filter.from, filter.to)
            && from > to
        {
            return Err(wrong_param(
                "from",
                format!("{from} is after `to`, which is {to}"),
            ));
        }
        for dimension in UsageDimension::ALL {
            if let Some(value) = params.take(dimension.as_str()) {
                filter.equal.push((dimension, value));
            }
        }
        Ok(filter)
    }

    fn wants(&self, cell: &UsageCell) -> bool {
        self.from.is_none_or(|from| cell.day >= from)
            && self.to.is_none_or(|to| cell.day <= to)
            && self
                .equal
                .iter()
                .all(|(dimension, wanted)| value(cell, *dimension).as_deref() == Some(wanted))
    }
}

/// A cell's value in a dimension; a project without a team has none there.
fn value(cell: &UsageCell, dimension: UsageDimension) -> Option<String> {
    Some(match dimension {
        UsageDimension::Organization => cell.path.organization.to_string(),
        UsageDimension::Team => return cell.path.team.as_ref().map(ToString::to_string),
        UsageDimension::Project => cell.path.project.to_string(),
        UsageDimension::Key => cell.path.key.to_string(),
        UsageDimension::Model => cell.model.to_string(),
        UsageDimension::Provider => cell.provider.to_string(),
        UsageDimension::Day => cell.day.to_string(),
    })
}

type Group = Vec<Option<String>>;

/// Sums of the wanted cells by group, and over all of them. `None` beyond the range of money.
fn grouped(
    state: &State,
    filter: &Filter,
    by: &[UsageDimension],
) -> Option<(BTreeMap<Group, UsageSums>, UsageSums)> {
    let mut groups: BTreeMap<Group, UsageSums> = BTreeMap::new();
    let mut total = UsageSums::default();
    for (cell, sums) in state.usage.iter().filter(|(cell, _)| filter.wants(cell)) {
        let group = by.iter().map(|dimension| value(cell, *dimension)).collect();
        let entry = groups.entry(group).or_default();
        *entry = added(entry, sums)?;
        total = added(&total, sums)?;
    }
    Some((groups, total))
}

fn take_dimensions(params: &mut Params) -> Result<Vec<UsageDimension>, Fault> {
    let names = params.take("group_by").unwrap_or_default();
    let mut by = Vec::new();
    for name in names.split(',').filter(|name| !name.is_empty()) {
        let found = UsageDimension::ALL
            .into_iter()
            .find(|dimension| dimension.as_str() == name);
        let dimension = found.ok_or_else(|| {
            let known = UsageDimension::ALL.map(UsageDimension::as_str).join(", ");
            wrong_param("group_by", format!("`{name}` is not one of {known}"))
        })?;
        if by.contains(&dimension) {
            return Err(wrong_param("group_by", format!("`{name}` is given twice")));
        }
        by.push(dimension);
    }
    Ok(by)
}

fn row(by: &[UsageDimension], group: &Group, sums: UsageSums) -> UsageRow {
    let mut row = UsageRow {
        sums: sums.into(),
        ..UsageRow::default()
    };
    for (dimension, value) in by.iter().zip(group) {
        let value = value.clone();
        match dimension {
            UsageDimension::Organization => row.organization = value,
            UsageDimension::Team => row.team = value,
            UsageDimension::Project => row.project = value,
            UsageDimension::Key => row.key = value,
            UsageDimension::Model => row.model = value,
            UsageDimension::Provider => row.provider = value,
            UsageDimension::Day => row.day = value.and_then(|day| Day::parse(&day)).map(Text),
        }
    }
    row
}

/// A group as the `after` of the next page: its values, `,`-separated. Ids cannot contain a comma.
fn cursor(group: &Group) -> String {
    let values: Vec<&str> = group
        .iter()
        .map(|value| value.as_deref().unwrap_or_default())
        .collect();
    values.join(",")
}

fn group_of(cursor: &str, by: &[UsageDimension]) -> Result<Group, Fault> {
    let group: Group = cursor
        .split(',')
        .map(|value| (!value.is_empty()).then(|| value.to_owned()))
        .collect();
    if group.len() == by.len() {
        Ok(group)
    } else {
        Err(wrong_param(
            "after",
            "is not the `next` of a page with the same `group_by`",
        ))
    }
}

fn cut(
    groups: &BTreeMap<Group, UsageSums>,
    by: &[UsageDimension],
    window: &Window,
) -> Result<(Vec<UsageRow>, Option<String>), Fault> {
    let after = window
        .after
        .as_deref()
        .map(|after| group_of(after, by))
        .transpose()?;
    let mut rows = groups
        .iter()
        .filter(|(group, _)| after.as_ref().is_none_or(|after| *group > after));
    let page: Vec<_> = rows.by_ref().take(window.limit).collect();
    let more = rows.next().is_some();
    let next = page.last().map(|(group, _)| cursor(group)).filter(|_| more);
    Ok((
        page.into_iter()
            .map(|(group, sums)| row(by, group, *sums))
            .collect(),
        next,
    ))
}

/// Sums usage. Without `group_by`, one row. `freshness` says how far each partition of the usage log has been counted.
#[utoipa::path(get, path = "/usage", tag = "usage",
    params(
        ("group_by" = Option<String>, Query,
            description = "Any of organization, team, project, key, model, provider, day; comma-separated."),
        ("from" = Option<String>, Query, description = "The first UTC day."),
        ("to" = Option<String>, Query, description = "The last UTC day."),
        ("organization" = Option<String>, Query), ("team" = Option<String>, Query), ("project" = Option<String>, Query),
        ("key" = Option<String>, Query), ("model" = Option<String>, Query), ("provider" = Option<String>, Query),
        ("day" = Option<String>, Query),
    ),
    responses((status = 200, body = Usage)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_usage(Shared(api): Shared<Arc<Api>>, mut read: Read) -> Result<Answer<Usage>, Fault> {
    let window = read.params.take_window()?;
    let by = take_dimensions(&mut read.params)?;
    let filter = Filter::take(&mut read.params)?;
    let seen = read.seen(&api).await?;
    let range = || {
        Fault::new(
            ProblemCode::Internal,
            "a sum is beyond the range of money; ask for fewer days at once",
        )
    };
    let (groups, total) = grouped(&seen.state, &filter, &by).ok_or_else(range)?;
    let (data, next) = cut(&groups, &by, &window)?;
    let body = Usage {
        data,
        next,
        total: total.into(),
        freshness: seen
            .state
            .usage_offsets
            .iter()
            .map(|(partition, offset)| Freshness {
                partition: *partition,
                offset: *offset,
            })
            .collect(),
        applied: seen.state.applied,
    };
    Ok(seen.answer(body))
}

/// The routes of usage.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(get_usage))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::Command;
    use tollway_shared::money::NanoUsd;

    use super::*;
    use crate::state::samples;

    #[test]
    fn sums_by_any_dimension_add_up_to_the_total() {
        let mut state = samples::catalog();
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 7)));
        samples::run(&mut state, Command::RecordSpend(samples::spend(10, 20, 5)));
        for dimension in UsageDimension::ALL {
            let (groups, total) = grouped(&state, &Filter::default(), &[dimension]).unwrap();
            assert_eq!(groups.len(), 1, "{dimension:?}");
            assert_eq!(total.cost, NanoUsd(12));
            assert_eq!(groups.values().next().unwrap(), &total);
        }
    }

    #[test]
    fn a_page_ends_where_the_next_one_starts() {
        let by = [UsageDimension::Team, UsageDimension::Model];
        let group = |team: Option<&str>, model: &str| vec![team.map(str::to_owned), Some(model.to_owned())];
        let groups: BTreeMap<Group, UsageSums> =
            [group(None, "a/b"), group(None, "a/c"), group(Some("t"), "a/b")]
                .into_iter()
                .map(|group| (group, UsageSums::default()))
                .collect();
        let mut after = None;
        let mut found = Vec::new();
        loop {
            let window = Window { limit: 1, after };
            let (rows, next) = cut(&groups, &by, &window).unwrap();
            found.extend(rows.into_iter().map(|row| (row.team, row.model.unwrap())));
            after = next;
            if after.is_none() {
                break;
            }
        }
        let team = |team: Option<&str>, model: &str| (team.map(str::to_owned), model.to_owned());
        assert_eq!(
            found,
            [team(None, "a/b"), team(None, "a/c"), team(Some("t"), "a/b")]
        );
    }
}
