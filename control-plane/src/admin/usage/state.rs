//! The answer of the sums in the replicated state.

use std::collections::BTreeMap;

use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::usage::{Total, UsageDimension, UsageRow, added};
use tollway_proto::command::{UsageCell, UsageSums};
use tollway_shared::ids::{ApiKeyId, OrganizationId};
use tollway_shared::time::Day;

use super::ask::{Ask, cursor};
use super::{Page, label, with_group};
use crate::admin::fault::Fault;
use crate::admin::params::wrong_param;
use crate::state::{State, usage};

/// Most sums that one query reads: they are in memory, and this is some tenths of a second.
const CELLS_READ_MAX: usize = 200_000;

/// Hours in a day.
const DAY_HOURS: i64 = 24;

/// The page that is asked for.
pub(super) fn page(state: &State, ask: &Ask) -> Result<Page, Fault> {
    if let Some(name) = ask.beyond_state() {
        return Err(wrong_param(
            name,
            "needs the billing store, and this replica has none (`billing.store`, `usage.source`); by day, the replicated sums can tell",
        ));
    }
    let (groups, total) = grouped(state, ask, CELLS_READ_MAX).map_err(|fault| match fault {
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
    let (data, next) = cut(&groups, ask)?;
    let total = Total {
        sums: total.into(),
        detail: None,
    };
    Ok(Page { data, next, total })
}

impl Ask {
    fn wants(&self, cell: &UsageCell) -> bool {
        self.equal
            .iter()
            .all(|(dimension, wanted)| is(cell, *dimension, wanted))
    }

    /// The organization that everything wanted belongs to, where that is certain. Teams and projects may have been made anew
    /// elsewhere under the same id.
    pub(super) fn organization(&self, state: &State) -> Option<OrganizationId> {
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
    pub(super) fn days(&self) -> (Day, Day) {
        let hours = self.hours();
        let day = |hour: i64| i32::try_from(hour.div_euclid(DAY_HOURS));
        let from = day(hours.from).unwrap_or(i32::MIN);
        let last = day(hours.until.saturating_sub(1)).unwrap_or(i32::MAX);
        (Day(from), Day(last))
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
        // Among the days already; of the rest nothing is known here.
        _ => true,
    }
}

/// A cell's value in a dimension; a project without a team has none there.
pub(super) fn value(cell: &UsageCell, dimension: UsageDimension) -> Option<String> {
    Some(match dimension {
        UsageDimension::Organization => cell.path.organization.to_string(),
        UsageDimension::Team => return cell.path.team.as_ref().map(ToString::to_string),
        UsageDimension::Project => cell.path.project.to_string(),
        UsageDimension::Key => cell.path.key.to_string(),
        UsageDimension::Model => cell.model.to_string(),
        UsageDimension::Provider => cell.provider.to_string(),
        UsageDimension::Day => cell.day.to_string(),
        UsageDimension::Month => cell.day.month_text(),
        _ => return None,
    })
}

/// A value for each dimension, or none.
pub(super) type Group = Vec<Option<String>>;

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
    ask: &Ask,
    cells_max: usize,
) -> Result<(BTreeMap<Group, UsageSums>, UsageSums), TooMuch> {
    let mut groups: BTreeMap<Group, UsageSums> = BTreeMap::new();
    let mut total = UsageSums::default();
    let (from, to) = ask.days();
    let organization = ask.organization(state);
    for (read, (cell, sums)) in usage::cells(state, from, to, organization.as_ref()).enumerate() {
        if read >= cells_max {
            return Err(TooMuch::Cells);
        }
        if !ask.wants(cell) {
            continue;
        }
        let mut group: Group = ask.by.iter().map(|dimension| value(cell, *dimension)).collect();
        group.extend(label::values(state, ask, label::of_key(&cell.path)));
        let entry = groups.entry(group).or_default();
        *entry = added(entry, sums).ok_or(TooMuch::Money)?;
        total = added(&total, sums).ok_or(TooMuch::Money)?;
    }
    Ok((groups, total))
}

fn cut(groups: &BTreeMap<Group, UsageSums>, ask: &Ask) -> Result<(Vec<UsageRow>, Option<String>), Fault> {
    let after = ask.after()?;
    let mut rows = groups
        .iter()
        .filter(|(group, _)| after.as_ref().is_none_or(|after| *group > after));
    let page: Vec<_> = rows.by_ref().take(ask.window.limit).collect();
    let more = rows.next().is_some();
    let next = page.last().map(|(group, _)| cursor(group)).filter(|_| more);
    Ok((
        page.into_iter()
            .map(|(group, sums)| UsageRow {
                sums: (*sums).into(),
                ..with_group(ask, group)
            })
            .collect(),
        next,
    ))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::Command;
    use tollway_shared::money::NanoUsd;

    use super::super::ask::Bound;
    use super::*;
    use crate::admin::params::Window;
    use crate::state::samples;

    #[test]
    fn sums_by_any_dimension_add_up_to_the_total() {
        let mut state = samples::catalog();
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 7)));
        samples::run(&mut state, Command::RecordSpend(samples::spend(10, 20, 5)));
        for dimension in UsageDimension::ALL {
            let ask = Ask {
                by: vec![*dimension],
                ..Ask::default()
            };
            let (groups, total) = grouped(&state, &ask, 1).unwrap();
            assert_eq!(groups.len(), 1, "{dimension:?}");
            assert_eq!(total.cost, NanoUsd(12));
            assert_eq!(groups.values().next().unwrap(), &total);
        }
    }

    /// Five days with three organizations of four keys each.
    fn many() -> State {
        let mut state = samples::catalog();
        let mut stretch = samples::spend(0, 10, 7);
        let first = stretch.sums.remove(0);
        for (day, organization, key) in (0..60).map(|n| (n / 12, n / 4 % 3, n % 4)) {
            let mut spent = first.clone();
            spent.cell.day = Day(first.cell.day.0 - day);
            spent.cell.path.organization = OrganizationId::trusted(format!("o{organization}"));
            spent.cell.path.key = ApiKeyId::trusted(format!("k{key}"));
            stretch.sums.push(spent);
        }
        samples::run(&mut state, Command::RecordSpend(stretch));
        state
    }

    #[test]
    fn a_query_reads_the_wanted_days_of_the_wanted_organization_and_nothing_else() {
        let state = many();
        let today = samples::NOON.day();
        let equal = |dimension, value: &str| vec![(dimension, value.to_owned())];
        let day = |back| Some(Bound::Day(Day(today.0 - back)));
        let days = |from, to| (day(from), day(to));
        let filter = |(from, to), equal| Ask {
            from,
            to,
            equal,
            ..Ask::default()
        };
        for (wanted, reads, requests) in [
            (Ask::default(), 60, 60),
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
            let (_, total) = grouped(&state, &wanted, reads).unwrap();
            assert_eq!(total.requests, requests, "{wanted:?}");
            if reads > 0 {
                assert_eq!(
                    grouped(&state, &wanted, reads - 1),
                    Err(TooMuch::Cells),
                    "{wanted:?}"
                );
            }
        }
    }

    #[test]
    fn a_page_ends_where_the_next_one_starts() {
        let by = vec![UsageDimension::Team, UsageDimension::Model];
        let group = |team: Option<&str>, model: &str| vec![team.map(str::to_owned), Some(model.to_owned())];
        let groups: BTreeMap<Group, UsageSums> =
            [group(None, "a/b"), group(None, "a/c"), group(Some("t"), "a/b")]
                .into_iter()
                .map(|group| (group, UsageSums::default()))
                .collect();
        let mut after = None;
        let mut found = Vec::new();
        loop {
            let ask = Ask {
                by: by.clone(),
                window: Window { limit: 1, after },
                ..Ask::default()
            };
            let (rows, next) = cut(&groups, &ask).unwrap();
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
