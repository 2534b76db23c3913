//! What was used, by any dimensions, from the sums in the replicated state.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::{Freshness, Usage, UsageDimension, UsageRow, added};
use tollway_proto::command::{UsageCell, UsageSums};
use tollway_shared::ids::{ApiKeyId, OrganizationId};
use tollway_shared::time::Day;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::exchange::{Answer, Read};
use super::fault::Fault;
use super::params::{Params, Window, wrong_param};
use crate::state::{State, usage};

/// Most sums that one query reads: they are in memory, and this is some tenths of a second.
const CELLS_READ_MAX: usize = 200_000;

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
                .all(|(dimension, wanted)| is(cell, *dimension, wanted))
    }

    /// The organization that everything wanted belongs to, where that is certain. Teams and projects may have been made anew
    /// elsewhere under the same id.
    fn organization(&self, state: &State) -> Option<OrganizationId> {
        self.equal.iter().find_map(|(dimension, wanted)| match dimension {
            UsageDimension::Organization => OrganizationId::parse(wanted).ok(),
            UsageDimension::Key => {
                let key = state.keys.get(&ApiKeyId::parse(wanted).ok()?)?;
                let project = state.projects.get(&key.value.project)?;
                Some(project.value.organization.clone())
            }
            _ => None,
        })
    }

    /// The wanted days.
    fn days(&self) -> (Day, Day) {
        let day = self
            .equal
            .iter()
            .find(|(dimension, _)| *dimension == UsageDimension::Day);
        let day = day.and_then(|(_, text)| Day::parse(text));
        let from = self.from.max(day).unwrap_or(Day(i32::MIN));
        let to = [self.to, day].into_iter().flatten().min();
        (from, to.unwrap_or(Day(i32::MAX)))
    }
}

fn is(cell: &UsageCell, dimension: UsageDimension, wanted: &str) -> bool {
    match dimension {
        UsageDimension::Organization => cell.path.organization.as_str() == wanted,
        UsageDimension::Team => cell
            .path
            .team
            .as_ref()
            .is_some_and(|team| team.as_str() == wanted),
        UsageDimension::Project => cell.path.project.as_str() == wanted,
        UsageDimension::Key => cell.path.key.as_str() == wanted,
        UsageDimension::Model => cell.model.as_str() == wanted,
        UsageDimension::Provider => cell.provider.as_str() == wanted,
        UsageDimension::Day => cell.day.to_string() == wanted,
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

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
enum TooMuch {
    /// More sums than one query may read.
    Cells,
    /// A sum beyond the range of money.
    Money,
}

/// Sums of the wanted cells by group, and over all of them. Reads the wanted days of the wanted organization and nothing else.
fn grouped(
    state: &State,
    filter: &Filter,
    by: &[UsageDimension],
    cells_max: usize,
) -> Result<(BTreeMap<Group, UsageSums>, UsageSums), TooMuch> {
    let mut groups: BTreeMap<Group, UsageSums> = BTreeMap::new();
    let mut total = UsageSums::default();
    let (from, to) = filter.days();
    let organization = filter.organization(state);
    for (read, (cell, sums)) in usage::cells(state, from, to, organization.as_ref()).enumerate() {
        if read >= cells_max {
            return Err(TooMuch::Cells);
        }
        if !filter.wants(cell) {
            continue;
        }
        let group = by.iter().map(|dimension| value(cell, *dimension)).collect();
        let entry = groups.entry(group).or_default();
        *entry = added(entry, sums).ok_or(TooMuch::Money)?;
        total = added(&total, sums).ok_or(TooMuch::Money)?;
    }
    Ok((groups, total))
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

/// Sums usage of the last 400 days. Without `group_by`, one row. A query that would read more than 200,000 sums (one is a day,
/// key, model and provider) is refused: name fewer days, or an organization. `freshness` says how far each partition of the usage log has been counted.
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
    let (groups, total) = grouped(&seen.state, &filter, &by, CELLS_READ_MAX).map_err(|fault| match fault {
        TooMuch::Cells => wrong_param(
            "from",
            format!(
                "the days from `from` to `to` have more than {CELLS_READ_MAX} sums; ask for fewer days, or for one `organization`"
            ),
        ),
        TooMuch::Money => Fault::new(
            ProblemCode::Internal,
            "a sum is beyond the range of money; ask for fewer days at once",
        ),
    })?;
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
            let (groups, total) = grouped(&state, &Filter::default(), &[dimension], 1).unwrap();
            assert_eq!(groups.len(), 1, "{dimension:?}");
            assert_eq!(total.cost, NanoUsd(12));
            assert_eq!(groups.values().next().unwrap(), &total);
        }
    }

    /// Five days with three organizations of four keys each.
    fn many() -> State {
        let mut state = samples::catalog();
        let mut stretch = samples::spend(0, 10, 7);
        let (first, sums) = stretch.sums.remove(0);
        for (day, organization, key) in (0..60).map(|n| (n / 12, n / 4 % 3, n % 4)) {
            let mut cell = first.clone();
            cell.day = Day(first.day.0 - day);
            cell.path.organization = OrganizationId::trusted(format!("o{organization}"));
            cell.path.key = ApiKeyId::trusted(format!("k{key}"));
            stretch.sums.push((cell, sums));
        }
        samples::run(&mut state, Command::RecordSpend(stretch));
        state
    }

    #[test]
    fn a_query_reads_the_wanted_days_of_the_wanted_organization_and_nothing_else() {
        let state = many();
        let today = samples::NOON.day();
        let equal = |dimension, value: &str| vec![(dimension, value.to_owned())];
        let days = |from, to| (Some(Day(today.0 - from)), Some(Day(today.0 - to)));
        let filter = |(from, to), equal| Filter { from, to, equal };
        for (wanted, reads, requests) in [
            (Filter::default(), 60, 60),
            (filter(days(1, 0), vec![]), 24, 24),
            (
                filter(days(1, 1), equal(UsageDimension::Organization, "o1")),
                4,
                4,
            ),
            (
                filter((None, None), equal(UsageDimension::Organization, "o2")),
                20,
                20,
            ),
            (filter(days(2, 0), equal(UsageDimension::Key, "k3")), 36, 9),
            (
                filter((None, None), equal(UsageDimension::Day, &today.to_string())),
                12,
                12,
            ),
            (filter(days(9, 8), vec![]), 0, 0),
        ] {
            let (_, total) = grouped(&state, &wanted, &[], reads).unwrap();
            assert_eq!(total.requests, requests, "{wanted:?}");
            if reads > 0 {
                assert_eq!(
                    grouped(&state, &wanted, &[], reads - 1),
                    Err(TooMuch::Cells),
                    "{wanted:?}"
                );
            }
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
