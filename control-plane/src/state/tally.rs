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
use tollway_shared::ids::{BudgetId, OrganizationId, Revision};
use tollway_shared::lease::account::PAST_MAX;
use tollway_shared::lease::former::HeldBefore;
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};
use tollway_shared::window::{Every, Span, Zone};

use super::budget::covers;
use super::view::key;
use super::{State, Step, usage};

/// Changes of one budget in one window of which it is known who held on it before: more make it refuse early, until the next window.
pub const BEFORE_MAX: usize = 16;

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
    /// Which requests hold on the leases of the current window.
    pub held: Held,
}

/// Which requests have held what they cost on a budget's leases: those of the others are charged when they are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Those admitted under this snapshot revision and later ones; none where the budget is soft.
    pub since: Option<Revision>,
    /// And these, from before it was changed or made again, newest first; at most [`BEFORE_MAX`].
    pub before: Vec<HeldBefore>,
}

impl Held {
    /// All of them: of a window that began with its leases.
    pub(super) const ALL: Self = Self {
        since: Some(Revision(0)),
        before: Vec::new(),
    };

    /// After the budget was made or has changed at a revision.
    ///
    /// - `before`: which requests held on it until then.
    pub(super) fn begun(at: Revision, before: Vec<HeldBefore>, leased: bool) -> Self {
        Self {
            since: leased.then_some(at),
            before,
        }
    }

    /// Which requests held on the budget until it changed or went at a revision.
    pub(super) fn ended(&self, at: Revision, budget: &Budget) -> Vec<HeldBefore> {
        let last = self.since.map(|since| HeldBefore {
            since,
            until: at,
            scope: budget.scope.clone(),
            model: budget.model.clone(),
        });
        let all = last.into_iter().chain(self.before.iter().cloned());
        all.take(BEFORE_MAX).collect()
    }

    fn has(&self, state: &State, spent: &Spent) -> bool {
        let revision = spent.revision;
        let before = |before: &HeldBefore| {
            (before.since..before.until).contains(&revision)
                && before
                    .model
                    .as_ref()
                    .is_none_or(|model| model.includes(&spent.cell.model))
                && covers(state, &before.scope, &spent.cell.path)
        };
        self.since.is_some_and(|since| revision >= since) || self.before.iter().any(before)
    }
}

impl Tally {
    /// The first window.
    pub(super) fn open(span: Span, amount: i64) -> Self {
        Self {
            current: Recorded { span, amount },
            past: Vec::new(),
            told: 0,
            held: Held::ALL,
        }
    }

    /// Begins the next window.
    pub(super) fn roll(&mut self, span: Span) {
        self.past.insert(0, self.current);
        self.past.truncate(PAST_MAX);
        self.current = Recorded { span, amount: 0 };
        self.told = 0;
        // A soft one has leases of no window: what is out of it as it was before may be of a longer one.
        if self.held.since.is_some() {
            self.held = Held::ALL;
        }
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
    let unheld = state.tallies.get(&budget.id).is_some_and(|tally| {
        // What is of a window before the current one is of no leases that can still be granted.
        spent.cell.day >= tally.current.span.start.day() && !tally.held.has(state, spent)
    });
    if budget.leased() && unheld {
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
    use tollway_proto::command::{Command, PutBilling};
    use tollway_shared::budget::terms::Mode;
    use tollway_shared::catalog::Model;
    use tollway_shared::credit::{Billing, BillingMode};
    use tollway_shared::ids::ModelId;
    use tollway_shared::money::NanoUsd;
    use tollway_shared::time::Period;

    use super::*;
    use crate::state::lease_samples::{at, book, done, edited};
    use crate::state::samples::{self, NOON};

    fn spend(state: &mut State, revision: Revision, model: &str, cost: i64) {
        let from = state.usage_offsets.get(&0).copied().unwrap_or(0);
        let mut stretch = samples::spend(from, from + 1, cost);
        (stretch.sums[0].revision, stretch.sums[0].cell.model) = (revision, ModelId::trusted(model));
        done(state, Command::RecordSpend(stretch));
    }

    fn put(state: &mut State, edit: impl FnOnce(&mut Budget)) -> (Revision, Revision) {
        let before = state.revision;
        done(state, Command::PutBudget(edited(100, edit)));
        (before, state.revision)
    }

    #[test]
    fn what_was_admitted_before_a_budget_is_charged_when_it_is_recorded() {
        let mut state = samples::catalog();
        let first = state.revision;
        spend(&mut state, first, "a/m", 1);
        let (before, since) = put(&mut state, |_| {});
        assert!(before < since);
        spend(&mut state, before, "a/m", 7);
        assert_eq!(book(&state, "b"), (1 + 7, 0, 92));
        spend(&mut state, since, "a/m", 50);
        assert_eq!(book(&state, "b"), (8, 0, 92), "its lease will say so");
        // Another limit changes nothing about that.
        done(&mut state, Command::PutBudget(samples::budget(200)));
        spend(&mut state, since, "a/m", 50);
        assert_eq!(book(&state, "b"), (8, 0, 192));
    }

    #[test]
    fn a_soft_budget_that_becomes_hard_is_charged_for_what_held_nothing_on_it() {
        let mut state = samples::catalog();
        let (_, hard) = put(&mut state, |_| {});
        let (_, soft) = put(&mut state, |budget| budget.terms.mode = Mode::Soft);
        spend(&mut state, soft, "a/m", 3);
        let (_, since) = put(&mut state, |_| {});
        for (revision, cost) in [(hard, 10), (soft, 20), (since, 40)] {
            spend(&mut state, revision, "a/m", cost);
        }
        assert_eq!(book(&state, "b").0, 3 + 20);
    }

    #[test]
    fn a_budget_of_more_than_before_is_charged_for_what_held_on_less_of_it() {
        let mut state = samples::catalog();
        let other = Model {
            id: ModelId::trusted("a/n"),
            ..state.models.values().next().unwrap().value.clone()
        };
        done(&mut state, Command::PutModel(other));
        let (_, narrow) = put(&mut state, |budget| budget.model = Some(ModelId::trusted("a/m")));
        put(&mut state, |_| {});
        for (model, cost) in [("a/m", 10), ("a/n", 20)] {
            spend(&mut state, narrow, model, cost);
        }
        assert_eq!(book(&state, "b").0, 20);
    }

    #[test]
    fn what_was_admitted_before_the_last_window_is_charged_to_no_lease_of_this_one() {
        let mut state = samples::catalog();
        let daily = |budget: &mut Budget| budget.terms.cycle = Period::Daily.into();
        let (before, _) = put(&mut state, daily);
        let midnight = NOON.plus_ms(DAY_MS / 2);
        let idle = Command::RollBudgets(Vec::new());
        let rolls = super::super::budget::due(&state, &idle, midnight);
        at(&mut state, midnight, Command::RollBudgets(rolls));
        let mut stretch = samples::spend(0, 1, 7);
        stretch.sums[0].revision = before;
        at(&mut state, midnight, Command::RecordSpend(stretch));
        assert_eq!(book(&state, "b"), (0, 0, 100));
    }

    #[test]
    fn credit_is_charged_for_what_was_admitted_before_an_organization_was_held_to_it() {
        let mut state = samples::catalog();
        let before = state.revision;
        done(
            &mut state,
            Command::PutBilling(PutBilling {
                organization: OrganizationId::trusted("o"),
                billing: Billing {
                    mode: BillingMode::Postpaid {
                        credit_line: NanoUsd(100),
                    },
                    ..Billing::default()
                },
            }),
        );
        let budget = tollway_shared::credit::budget_id(&OrganizationId::trusted("o"));
        spend(&mut state, before, "a/m", 7);
        assert_eq!(book(&state, budget.as_str()), (7, 0, 93));
        assert_eq!(state.accounts.values().next().unwrap().available(), -7);
    }

    #[test]
    fn a_day_counts_for_the_window_that_has_its_noon() {
        let day = |days: i64| UnixMillis(days * DAY_MS);
        let span = |from: i64, to: i64| Span {
            start: day(from).plus_ms(-3_600_000), // Berlin in winter
            end: Some(day(to).plus_ms(-3_600_000)),
        };
        let mut tally = Tally::open(span(10, 11), 0);
        tally.roll(span(11, 12));
        for (at, amount) in [(9, 1), (10, 2), (11, 4), (12, 8)] {
            tally.add(Day(at), amount);
        }
        let amounts: Vec<i64> = tally.windows().map(|window| window.amount).collect();
        // The 12th is ahead of everything that has begun; the 9th is behind what is kept.
        assert_eq!(amounts, [4 + 8, 2]);
    }
}
