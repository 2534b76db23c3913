//! Recorded usage: what is kept of it, for how long, and how it is read.
//!
//! The state holds sums per day; they serve `GET /admin/v1/usage` and a new budget's current window. What is too old goes once per
//! day of the log's own time, with the first stretch recorded on it, so every replica forgets the same at the same entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tollway_proto::command::{UsageCell, UsageSums};
use tollway_shared::ids::{ApiKeyId, ModelId, OrganizationId, ProjectId, ProviderId, WriterId};
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::State;

/// Days for which sums are kept: a year and a month, so that a month can be compared with the same one a year before.
pub const DAYS_KEPT: i32 = 400;
/// Most sums kept, about half a gigabyte. Past it whole days go, the oldest first, but never the last two.
pub const CELLS_MAX: usize = 1_000_000;
/// How long a writer's marks are kept after the last event of that writer, in any partition.
///
/// Longer than Kafka keeps events by default (30 days): whatever the log may still bring is known for a repeat. What comes later
/// than that, from a spool that was away for longer, is told by its own age: see `LATE_MS` in the ledger's `judge`.
pub const WRITER_KEPT_MS: i64 = 45 * DAY_MS;

/// How far a writer has been counted in a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterMark {
    /// The highest sequence counted.
    pub sequence: u64,
    /// When that was, by the log's time.
    pub at: UnixMillis,
}

/// The sums of the days `from` to `to`, in order; of one organization, or of all. Costs what it gives, and a look-up per day.
pub fn cells<'a>(
    state: &'a State,
    from: Day,
    to: Day,
    organization: Option<&'a OrganizationId>,
) -> Box<dyn Iterator<Item = (&'a UsageCell, &'a UsageSums)> + 'a> {
    let Some(organization) = organization else {
        let every = state.usage.range(first(from, &OrganizationId::trusted(""))..);
        return Box::new(every.take_while(move |(cell, _)| cell.day <= to));
    };
    let days = std::iter::successors(next_day(state, from), move |day| {
        next_day(state, Day(day.0.checked_add(1)?))
    });
    Box::new(days.take_while(move |day| *day <= to).flat_map(move |day| {
        let of = state.usage.range(first(day, organization)..);
        of.take_while(move |(cell, _)| cell.day == day && cell.path.organization == *organization)
    }))
}

/// The first day from `day` on that has sums.
fn next_day(state: &State, day: Day) -> Option<Day> {
    let from = first(day, &OrganizationId::trusted(""));
    state.usage.range(from..).next().map(|(cell, _)| cell.day)
}

/// Sorts ahead of everything of an organization on a day.
fn first(day: Day, organization: &OrganizationId) -> UsageCell {
    UsageCell {
        day,
        path: TenantPath {
            organization: organization.clone(),
            team: None,
            project: ProjectId::trusted(""),
            key: ApiKeyId::trusted(""),
        },
        model: ModelId::trusted(""),
        provider: ProviderId::trusted(""),
    }
}

/// Forgets what is too old, once per day.
pub(super) fn forget_old(state: &mut State) {
    let today = state.now.day();
    if today <= state.usage_tidied {
        return;
    }
    state.usage_tidied = today;
    forget_cells(state, today);
    forget_writers(state);
}

fn forget_cells(state: &mut State, today: Day) {
    let mut oldest = Day(today.0.saturating_sub(DAYS_KEPT));
    let mut too_many = state.usage.len().saturating_sub(CELLS_MAX);
    for day in state.usage.keys().map(|cell| cell.day) {
        if too_many == 0 || day.0 >= today.0.saturating_sub(1) {
            break;
        }
        too_many -= 1;
        oldest = oldest.max(Day(day.0 + 1));
    }
    let bound = first(oldest, &OrganizationId::trusted(""));
    if state.usage.get_min().is_some_and(|(cell, _)| *cell < bound) {
        state.usage = state.usage.split(&bound).1;
        state.usage_since = state.usage_since.max(oldest);
    }
}

fn forget_writers(state: &mut State) {
    let mut newest: BTreeMap<WriterId, UnixMillis> = BTreeMap::new();
    for ((_, writer), mark) in &state.usage_writers {
        let at = newest.entry(*writer).or_insert(mark.at);
        *at = mark.at.max(*at);
    }
    let oldest = state.now.plus_ms(-WRITER_KEPT_MS);
    let silent = |writer: &WriterId| newest.get(writer).is_some_and(|at| *at < oldest);
    let old: Vec<_> = state
        .usage_writers
        .keys()
        .filter(|(_, writer)| silent(writer))
        .copied()
        .collect();
    for writer in old {
        state.usage_writers.remove(&writer);
    }
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, RecordSpend};
    use tollway_shared::time::Period;

    use super::*;
    use crate::state::samples::{self, NOON};

    /// Records a stretch of `writer` some days after [`NOON`].
    fn record(state: &mut State, days: i32, partition: i32, writer: u128) {
        let from = state.usage_offsets.get(&partition).copied().unwrap_or(0);
        let mut stretch = samples::spend(from, from + 1, 5);
        stretch.sums[0].cell.day = Day(NOON.day().0 + days);
        let stretch = RecordSpend {
            partition,
            writers: vec![(WriterId(writer), from.unsigned_abs() + 1)],
            ..stretch
        };
        samples::run_at(
            state,
            NOON.plus_ms(i64::from(days) * DAY_MS),
            Command::RecordSpend(stretch),
        );
    }

    fn marks(state: &State) -> Vec<(i32, u128)> {
        state
            .usage_writers
            .keys()
            .map(|(partition, writer)| (*partition, writer.0))
            .collect()
    }

    #[test]
    fn a_writer_is_forgotten_when_it_was_silent_everywhere_for_longer_than_the_log_lasts() {
        let mut state = samples::catalog();
        record(&mut state, 0, 0, 1);
        record(&mut state, 0, 0, 2);
        record(&mut state, 0, 1, 1);
        record(&mut state, 40, 1, 1); // writer 1 lives, if not in partition 0
        record(&mut state, 45, 2, 3);
        assert_eq!(marks(&state), [(0, 1), (0, 2), (1, 1), (2, 3)]);
        record(&mut state, 46, 2, 3);
        assert_eq!(marks(&state), [(0, 1), (1, 1), (2, 3)]);
    }

    #[test]
    fn sums_are_kept_for_their_days_and_a_lifetime_budget_remembers_more() {
        let mut state = samples::catalog();
        let lifetime = samples::budget_for(1000, Period::Lifetime);
        samples::run(&mut state, Command::PutBudget(lifetime));
        for days in [0, 1, DAYS_KEPT] {
            record(&mut state, days, 0, 1);
        }
        assert_eq!(state.usage.len(), 3);
        record(&mut state, DAYS_KEPT + 1, 0, 1);
        let days: Vec<i32> = state.usage.keys().map(|cell| cell.day.0 - NOON.day().0).collect();
        assert_eq!(days, [1, DAYS_KEPT, DAYS_KEPT + 1]);
        assert_eq!(state.usage_since, Day(NOON.day().0 + 1), "readers are told");
        let raised = samples::budget_for(2000, Period::Lifetime);
        samples::run(&mut state, Command::PutBudget(raised));
        let recorded: Vec<i64> = state.tallies.values().map(|tally| tally.current.amount).collect();
        assert_eq!(recorded, [20], "a raised limit counts what is forgotten, too");
    }
}
