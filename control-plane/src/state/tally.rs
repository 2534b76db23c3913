//! What the ledger has recorded of each budget, window by window.
//!
//! Usage is summed by UTC days, so a window counts the days whose noon lies in it: exact where windows begin at midnight UTC, off by
//! hours at their borders elsewhere. Soft budgets have only this. Hard and clamping ones are held by leases; their tally is what
//! leases are reconciled with, and a second line: a recorded window that is spent stops also nodes that hold no lease.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tollway_proto::command::{Spent, UsageSums};
use tollway_shared::budget::Budget;
use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::{BudgetId, OrganizationId};
use tollway_shared::lease::account::PAST_MAX;
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};
use tollway_shared::window::{Every, Span, Zone};

use super::budget::covers;
use super::held::Held;
use super::view::key;
use super::{State, Step, usage};

/// One window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its time.
    pub span: Span,
    /// What was used in it, in the budget's unit. Stays at the end of its range.
    pub amount: i64,
}

/// A budget's windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The current window.
    pub current: Recorded,
    /// Those before it, newest first; at most [`PAST_MAX`].
    pub past: Vec<Recorded>,
    /// The highest threshold that was told of the current window, percent; only of soft budgets.
    pub told: u8,
    /// Which requests hold on its leases.
    pub held: Held,
}

impl Tally {
    /// The first window.
    pub(super) fn open(span: Span, amount: i64, held: Held) -> Self {
        Self {
            current: Recorded { span, amount },
            past: Vec::new(),
            told: 0,
            held,
        }
    }

    /// Begins the next window.
    pub(super) fn roll(&mut self, span: Span) {
        self.past.insert(0, self.current);
        self.past.truncate(PAST_MAX);
        self.current = Recorded { span, amount: 0 };
        self.told = 0;
    }

    /// Every kept window, newest first.
    pub fn windows(&self) -> impl Iterator<Item = &Recorded> {
        std::iter::once(&self.current).chain(&self.past)
    }

    /// Adds what was used on a day. What is older than every kept window is not counted; what is newer, by the clock of a node that
    /// is ahead, counts for the current one.
    fn add(&mut self, day: Day, amount: i64) {
        let noon = noon(day);
        let ahead = self.current.span.over(noon);
        let mut windows = std::iter::once(&mut self.current).chain(&mut self.past);
        let found = windows.find(|window| ahead || window.span.covers(noon));
        if let Some(window) = found {
            window.amount = window.amount.saturating_add(amount);
        }
    }
}

fn noon(day: Day) -> UnixMillis {
    day.start().plus_ms(DAY_MS / 2)
}

/// The newest window in which everything was used, of a budget whose windows the ledger counts to the day. Raises count as if they
/// never expired: this line must not stop what a lease allows.
pub fn exhausted(budget: &Budget, tally: &Tally) -> Option<Span> {
    let cycle = &budget.terms.cycle;
    if cycle.every != Every::Lifetime && cycle.zone != Zone::utc() {
        return None;
    }
    let limit = budget.terms.limit_max();
    let mut windows = tally.windows();
    windows
        .find(|window| window.amount >= limit)
        .map(|window| window.span)
}

/// [`exhausted`], of a budget in the state.
pub(super) fn exhausted_window(state: &State, id: &BudgetId) -> Option<Span> {
    exhausted(&state.budgets.get(id)?.value, state.tallies.get(id)?)
}

/// Does something to one budget, and notes it for nodes if they see a difference.
pub(super) fn with<T>(
    state: &mut State,
    step: &mut Step<'_>,
    id: &BudgetId,
    work: impl FnOnce(&mut State, &mut Step<'_>) -> T,
) -> T {
    let before = exhausted_window(state, id);
    let done = work(state, step);
    if exhausted_window(state, id) != before {
        step.changed.push(key(ResourceKind::Budget, id.text()));
    }
    done
}

/// Counts usage for a budget that covers it.
pub(super) fn charge(state: &mut State, step: &mut Step<'_>, budget: &Budget, spent: &Spent) {
    let amount = used(budget.terms.unit, &spent.sums);
    let crossed = with(state, step, &budget.id, |state, _| {
        let now = state.now;
        let tally = Arc::make_mut(state.tallies.get_mut(&budget.id)?);
        tally.add(spent.cell.day, amount);
        crossed(budget, tally, now)
    });
    step.effects.extend(crossed);
    let unheld = |tally: &Arc<Tally>| {
        // What is of a window before the current one is of no leases that can still be granted.
        spent.cell.day >= tally.current.span.start.day() && !tally.held.has(state, spent)
    };
    if budget.leased() && state.tallies.get(&budget.id).is_some_and(unheld) {
        let effects = state.books.charge(&budget.id, amount, state.now);
        step.effects.extend(effects);
    }
}

/// Of a soft budget; the others tell by what is settled.
fn crossed(budget: &Budget, tally: &mut Tally, now: UnixMillis) -> Option<Effect> {
    if budget.leased() {
        return None;
    }
    let Recorded { span, amount } = tally.current;
    let limit = budget.terms.limit_at(now);
    let percent = budget.terms.threshold(i128::from(amount), limit)?;
    if percent <= tally.told {
        return None;
    }
    tally.told = percent;
    Some(Effect::Crossed {
        budget: budget.id.clone(),
        span,
        percent,
    })
}

/// What has been recorded of a window so far, as far back as sums are kept.
pub(super) fn so_far(state: &State, budget: &Budget, span: Span, of: Option<&OrganizationId>) -> i64 {
    let last = span.end.map_or(Day(i32::MAX), |end| end.plus_ms(-1).day());
    let mut amount: i64 = 0;
    for (cell, sums) in usage::cells(state, span.start.day(), last, of) {
        let counts = span.covers(noon(cell.day)) && budget.counts(&cell.model);
        if counts && covers(state, &budget.scope, &cell.path) {
            amount = amount.saturating_add(used(budget.terms.unit, sums));
        }
    }
    amount
}

fn used(unit: Unit, sums: &UsageSums) -> i64 {
    match unit {
        Unit::Money => sums.billed.0,
        Unit::Tokens => i64::try_from(sums.tokens.total()).unwrap_or(i64::MAX),
        Unit::Requests => i64::try_from(sums.served).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use tollway_shared::ids::Revision;

    use super::*;

    #[test]
    fn a_day_counts_for_the_window_that_has_its_noon() {
        let day = |days: i64| UnixMillis(days * DAY_MS);
        let span = |from: i64, to: i64| Span {
            start: day(from).plus_ms(-3_600_000), // Berlin in winter
            end: Some(day(to).plus_ms(-3_600_000)),
        };
        let mut tally = Tally::open(span(10, 11), 0, Held::begun(Revision(0), Vec::new(), true));
        tally.roll(span(11, 12));
        for (at, amount) in [(9, 1), (10, 2), (11, 4), (12, 8)] {
            tally.add(Day(at), amount);
        }
        let amounts: Vec<i64> = tally.windows().map(|window| window.amount).collect();
        // The 12th is ahead of everything that has begun; the 9th is behind what is kept.
        assert_eq!(amounts, [4 + 8, 2]);
    }
}
