//! Which requests hold what they cost on a budget's leases, told by the snapshot revision that admitted them.
//!
//! What holds nothing is charged to the leases when the ledger records it: requests that were under way when the budget was made, when it
//! became hard, or when it came to be about more.

use serde::{Deserialize, Serialize};
use tollway_proto::command::Spent;
use tollway_shared::budget::Budget;
use tollway_shared::ids::Revision;
use tollway_shared::lease::former::HeldBefore;
use tollway_shared::window::Span;

use super::State;
use super::budget::covers;

/// Changes of one budget of which it is known who held on it before; what held earlier is charged again when it is recorded.
pub const BEFORE_MAX: usize = 16;

/// Which requests have held what they cost on a budget's leases: those of the others are charged when they are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Those admitted under this snapshot revision and later ones; none where the budget is soft.
    pub since: Option<Revision>,
    /// And these, from before it was changed or made again, newest first; at most [`BEFORE_MAX`].
    pub before: Vec<HeldBefore>,
}

impl Held {
    /// After the budget was made or has changed at a revision.
    ///
    /// - `before`: which requests held on what nodes still have of it.
    pub(super) fn begun(at: Revision, before: Vec<HeldBefore>, leased: bool) -> Self {
        Self {
            since: leased.then_some(at),
            before,
        }
    }

    /// Which requests held on the budget until it changed or went at a revision.
    ///
    /// - `window`: that of its leases then.
    pub(super) fn ended(&self, at: Revision, budget: &Budget, window: Span) -> Vec<HeldBefore> {
        let last = self.since.map(|since| HeldBefore {
            since,
            until: at,
            from: window.start.day(),
            scope: budget.scope.clone(),
            model: budget.model.clone(),
        });
        let all = last.into_iter().chain(self.before.iter().cloned());
        all.take(BEFORE_MAX).collect()
    }

    /// Whether what was spent was held.
    pub(super) fn has(&self, state: &State, spent: &Spent) -> bool {
        let (revision, cell) = (spent.revision, &spent.cell);
        let before = |before: &HeldBefore| {
            (before.since..before.until).contains(&revision)
                && cell.day >= before.from
                && before
                    .model
                    .as_ref()
                    .is_none_or(|model| model.includes(&cell.model))
                && covers(state, &before.scope, &cell.path)
        };
        self.since.is_some_and(|since| revision >= since) || self.before.iter().any(before)
    }
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, PutBilling};
    use tollway_shared::budget::terms::Mode;
    use tollway_shared::catalog::Model;
    use tollway_shared::credit::{Billing, BillingMode};
    use tollway_shared::ids::{BudgetId, ModelId, OrganizationId};
    use tollway_shared::lease::message::Verdict;
    use tollway_shared::money::NanoUsd;
    use tollway_shared::time::{DAY_MS, Period, UnixMillis};

    use super::*;
    use crate::state::lease_samples::{EU_1, ask, at, book, done, edited, enlist, report, with_nodes};
    use crate::state::samples::{self, NOON};

    const MIDNIGHT: UnixMillis = UnixMillis(NOON.0 + DAY_MS / 2);

    /// Counts what a request of noon's day cost, by the revision that admitted it, at a time.
    fn spend_at(state: &mut State, now: UnixMillis, revision: Revision, model: &str, cost: i64) {
        let from = state.usage_offsets.get(&0).copied().unwrap_or(0);
        let mut stretch = samples::spend(from, from + 1, cost);
        (stretch.sums[0].revision, stretch.sums[0].cell.model) = (revision, ModelId::trusted(model));
        at(state, now, Command::RecordSpend(stretch));
    }

    fn spend(state: &mut State, revision: Revision, model: &str, cost: i64) {
        spend_at(state, NOON, revision, model, cost);
    }

    /// The revisions before and of a change of the sample budget.
    fn put(state: &mut State, edit: impl FnOnce(&mut Budget)) -> (Revision, Revision) {
        let before = state.revision;
        done(state, Command::PutBudget(edited(100, edit)));
        (before, state.revision)
    }

    fn daily(budget: &mut Budget) {
        budget.terms.cycle = Period::Daily.into();
    }

    /// A node has some of the budget: how much.
    fn leased(state: &mut State) -> i128 {
        assert!(enlist(state, "eu-1", EU_1));
        assert_eq!(ask(state, "eu-1", EU_1, &["b"], 40), Verdict::Granted);
        book(state, "b").1
    }

    fn midnight(state: &mut State) {
        let rolls = super::super::budget::due(state, &Command::RollBudgets(Vec::new()), MIDNIGHT);
        assert_eq!(rolls.len(), 1);
        at(state, MIDNIGHT, Command::RollBudgets(rolls));
    }

    fn two_models() -> State {
        let mut state = with_nodes();
        let other = Model {
            id: ModelId::trusted("a/n"),
            ..state.models.values().next().unwrap().value.clone()
        };
        done(&mut state, Command::PutModel(other));
        state
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
        let mut state = with_nodes();
        let (_, hard) = put(&mut state, |_| {});
        let out = leased(&mut state);
        let (_, soft) = put(&mut state, |budget| budget.terms.mode = Mode::Soft);
        spend(&mut state, soft, "a/m", 3);
        let (_, since) = put(&mut state, |_| {});
        for (revision, cost) in [(hard, 10), (soft, 20), (since, 40)] {
            spend(&mut state, revision, "a/m", cost);
        }
        assert_eq!(book(&state, "b").0, out + 3 + 20);
    }

    #[test]
    fn a_budget_of_more_than_before_is_charged_for_what_held_on_less_of_it() {
        let mut state = two_models();
        let (_, narrow) = put(&mut state, |budget| budget.model = Some(ModelId::trusted("a/m")));
        let out = leased(&mut state);
        put(&mut state, |_| {});
        for (model, cost) in [("a/m", 10), ("a/n", 20)] {
            spend(&mut state, narrow, model, cost);
        }
        assert_eq!(book(&state, "b").0, out + 20);
    }

    #[test]
    fn what_was_admitted_before_the_last_window_is_charged_to_no_lease_of_this_one() {
        let mut state = samples::catalog();
        let (before, _) = put(&mut state, daily);
        midnight(&mut state);
        spend_at(&mut state, MIDNIGHT, before, "a/m", 7);
        assert_eq!(book(&state, "b"), (0, 0, 100));
    }

    #[test]
    fn what_held_on_a_day_is_charged_to_the_month_that_takes_its_place_after_it() {
        let mut state = with_nodes();
        let (_, day) = put(&mut state, daily);
        leased(&mut state);
        report(&mut state, "b", EU_1, 30);
        midnight(&mut state);
        assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 40), Verdict::Granted);
        let (_, out, _) = book(&state, "b");
        put(&mut state, |_| {});
        assert_eq!(book(&state, "b"), (out, 0, 100 - out));
        spend_at(&mut state, MIDNIGHT, day, "a/m", 30);
        assert_eq!(book(&state, "b"), (out + 30, 0, 70 - out));
    }

    #[test]
    fn a_budget_that_is_made_again_after_its_window_has_what_its_own_recorded() {
        let mut state = with_nodes();
        let (_, day) = put(&mut state, daily);
        leased(&mut state);
        let removed = Command::RemoveBudget(BudgetId::trusted("b"));
        done(&mut state, removed);
        at(&mut state, MIDNIGHT, Command::PutBudget(samples::budget(100)));
        spend_at(&mut state, MIDNIGHT, day, "a/m", 30);
        assert_eq!(book(&state, "b"), (30, 0, 70));
    }

    #[test]
    fn what_held_on_another_model_of_a_longer_window_is_charged_once_after_a_midnight() {
        let mut state = two_models();
        let (_, had) = put(&mut state, |budget| budget.model = Some(ModelId::trusted("a/m")));
        let out = leased(&mut state);
        put(&mut state, |budget| {
            daily(budget);
            budget.model = Some(ModelId::trusted("a/n"));
        });
        midnight(&mut state);
        at(&mut state, MIDNIGHT, Command::PutBudget(samples::budget(100)));
        assert_eq!(book(&state, "b"), (out, 0, 100 - out));
        spend_at(&mut state, MIDNIGHT, had, "a/m", 7);
        assert_eq!(book(&state, "b"), (out, 0, 100 - out));
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
    fn a_budget_that_is_made_again_is_charged_for_what_was_admitted_while_it_was_gone() {
        let mut state = with_nodes();
        put(&mut state, |_| {});
        let out = leased(&mut state);
        let mut lives = Vec::new();
        for _ in 0..3 {
            let had = state.revision;
            done(&mut state, Command::RemoveBudget(BudgetId::trusted("b")));
            let (gone, _) = put(&mut state, |_| {});
            assert!(had < gone);
            lives.push((had, gone));
        }
        assert_eq!(book(&state, "b"), (out, 0, 100 - out));
        for (life, (had, gone)) in (1..).zip(lives) {
            spend(&mut state, had, "a/m", 5); // what nodes still have has it
            spend(&mut state, gone, "a/m", 3);
            assert_eq!(book(&state, "b"), (out + 3 * life, 0, 100 - out - 3 * life));
        }
    }

    #[test]
    fn what_nodes_have_of_a_budget_is_charged_once_although_it_was_soft_over_a_midnight() {
        let mut state = with_nodes();
        let (_, had) = put(&mut state, |_| {});
        let out = leased(&mut state);
        put(&mut state, |budget| {
            daily(budget);
            budget.terms.mode = Mode::Soft;
        });
        midnight(&mut state);
        let removed = Command::RemoveBudget(BudgetId::trusted("b"));
        at(&mut state, MIDNIGHT, removed);
        at(&mut state, MIDNIGHT, Command::PutBudget(samples::budget(100)));
        spend_at(&mut state, MIDNIGHT, had, "a/m", 7);
        assert_eq!(book(&state, "b"), (out, 0, 100 - out));
    }
}
