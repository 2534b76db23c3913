//! Whether the billing store of this replica has all of some days.
//!
//! A store that was made anew from a usage log whose beginning is gone, or that still reads it, is short, and its sums do not show that.
//! What people pay by is refused then, rather than made of less than there was.

use std::collections::BTreeMap;

use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::usage::Freshness;
use tollway_shared::ids::OrganizationId;
use tollway_shared::time::{Day, UnixMillis};

use super::{has_counted, store};
use crate::admin::fault::Fault;
use crate::billing::progress::Progress;
use crate::billing::{self, Billing, StoreFault};
use crate::state::{State, usage};

/// Why a store does not do for what is asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lack {
    /// The usage log had lost something before it was read, and there was usage until then.
    #[error(
        "the billing store of this replica has everything from {0} on and not before, as the usage log had lost what was before when the store read it; ask another replica, or for days from {0} on"
    )]
    Young(Day),
    /// It has not read all that has been counted.
    #[error(
        "the billing store of this replica is behind: of partition {partition} it has {has} of {counted}; ask again later, or another replica"
    )]
    Behind {
        /// The partition.
        partition: i32,
        /// Up to where it is in the store.
        has: i64,
        /// Up to where it is in the replicated state.
        counted: i64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

impl From<Lack> for Fault {
    fn from(lack: Lack) -> Self {
        if let Lack::Store(fault) = &lack {
            tracing::warn!(error = %fault, "the billing store cannot be read");
            return Self::new(
                ProblemCode::Unavailable,
                "the billing store cannot be read right now",
            );
        }
        Self::new(ProblemCode::Unavailable, lack.to_string())
    }
}

/// How far a store is that has all that the replicated state has counted.
#[derive(Debug, Clone)]
pub(crate) struct Stand {
    progress: Vec<Progress>,
    known: BTreeMap<i32, billing::Freshness>,
}

impl Stand {
    /// Waits a little for a store that is behind.
    pub(crate) async fn of(billing: &Billing, state: &State) -> Result<Self, Lack> {
        let mut progress = billing.progress().await?;
        if behind(&progress, state).is_some() {
            has_counted(billing, state).await;
            progress = billing.progress().await?;
        }
        let known = billing.freshness();
        behind(&progress, state).map_or(Ok(Self { progress, known }), Err)
    }

    /// Refuses where usage of these days, of one organization or of all, is missing in the store.
    pub(crate) fn must_have(
        &self,
        state: &State,
        days: (Day, Day),
        organization: Option<&OrganizationId>,
    ) -> Result<(), Lack> {
        young(&self.progress, state, days, organization).map_or(Ok(()), |day| Err(Lack::Young(day)))
    }

    /// How far each partition is.
    pub(crate) fn freshness(&self) -> Vec<Freshness> {
        store::freshness(&self.progress, &self.known)
    }

    /// The instant as of which months become final: that of which everything that was in the log is in the store, as far as is known, and
    /// at most now. A month's last events are taken to be in the log when it has been over for as long as a month takes to become final.
    pub(crate) fn as_of(&self, now: UnixMillis) -> UnixMillis {
        let read = |progress: &Progress| {
            let known = self.known.get(&progress.partition);
            let measured = known.and_then(|known| known.measured_at);
            measured.map_or(progress.newest, |at| at.max(progress.newest))
        };
        self.progress.iter().map(read).fold(now, UnixMillis::min)
    }
}

fn behind(progress: &[Progress], state: &State) -> Option<Lack> {
    let reached: BTreeMap<i32, i64> = progress.iter().map(|of| (of.partition, of.next)).collect();
    state.usage_offsets.iter().find_map(|(partition, counted)| {
        let has = reached.get(partition).copied().unwrap_or(0);
        (has < *counted).then_some(Lack::Behind {
            partition: *partition,
            has,
            counted: *counted,
        })
    })
}

/// The first day that a store has whole, where there was usage on some of these days, both ends included, before that. The replicated sums
/// tell, as far back as they are kept.
pub(crate) fn young(
    progress: &[Progress],
    state: &State,
    (from, to): (Day, Day),
    organization: Option<&OrganizationId>,
) -> Option<Day> {
    let whole = progress.iter().filter_map(Progress::whole_from).max()?;
    let last = to.min(Day(whole.0.saturating_sub(1)));
    let is_missing =
        || from < state.usage_since || usage::cells(state, from, last, organization).next().is_some();
    (from < whole && is_missing()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::Command;

    use super::*;
    use crate::state::samples::{self, NOON};

    fn progress(first: i64, days: i32) -> Progress {
        let end = NOON.plus_ms(i64::from(days) * tollway_shared::time::DAY_MS);
        Progress {
            partition: 0,
            first,
            next: first + 10,
            begins: Some(end),
            newest: end,
        }
    }

    #[test]
    fn a_store_is_too_young_only_for_days_with_usage_before_it() {
        let mut state = samples::catalog();
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 7)));
        let today = NOON.day();
        let whole = Day(today.0 + 3);
        let (young_one, whole_one) = (vec![progress(5, 1)], vec![progress(0, 1)]);
        for (progress, from, organization, expected) in [
            (&young_one, today, None, Some(whole)),
            (&young_one, Day(today.0 + 1), None, None),
            (&young_one, whole, None, None),
            (&young_one, today, Some("o"), Some(whole)),
            (&young_one, today, Some("other"), None),
            (&whole_one, today, None, None),
        ] {
            let organization = organization.map(OrganizationId::trusted);
            let found = young(progress, &state, (from, Day(i32::MAX)), organization.as_ref());
            assert_eq!(found, expected, "{from} {organization:?}");
        }
        let before = (Day(today.0 - 9), Day(today.0 - 1));
        assert_eq!(young(&young_one, &state, before, None), None);
        state.usage_since = Day(today.0 + 2);
        assert_eq!(
            young(&young_one, &state, (Day(today.0 + 1), Day(today.0 + 1)), None),
            Some(whole),
            "of days that are forgotten nothing is known"
        );
    }

    #[test]
    fn a_month_is_not_final_while_the_log_has_more_than_was_read() {
        let mut stand = Stand {
            progress: vec![progress(0, 0)],
            known: BTreeMap::new(),
        };
        let day = |day: i64| NOON.plus_ms(day * tollway_shared::time::DAY_MS);
        let newest = stand.progress[0].newest;
        for (lag, measured_at, expected) in [
            (None, None, newest),
            (Some(0), None, newest), // some of what was read is not written
            (Some(1), None, newest),
            (Some(1), Some(day(38)), day(38)), // what came since does not undo what was known
            (Some(0), Some(day(39)), day(39)), // and the log was away since
            (Some(0), Some(day(41)), day(40)),
        ] {
            let fresh = billing::Freshness {
                progress: stand.progress[0],
                lag,
                measured_at,
            };
            stand.known.insert(0, fresh);
            assert_eq!(stand.as_of(day(40)), expected, "{lag:?} {measured_at:?}");
        }
    }
}
