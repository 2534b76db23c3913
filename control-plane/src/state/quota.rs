//! The daily quota of free models: a hard budget of requests per organization and UTC day, kept by the cluster while its catalog has a
//! free model. Nodes lease it like any other; what they refuse by it is 429.
//!
//! A request that no provider served does not count.

use tollway_shared::budget::terms::{Terms, Unit};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::credit::quota_id;
use tollway_shared::ids::{ModelId, OrganizationId};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::Period;

use super::{State, Step, budget, tally};

/// After a model, an organization or the settings have changed: every organization's quota.
pub(super) fn follow_all(state: &mut State, step: &mut Step<'_>) {
    let organizations: Vec<OrganizationId> = state.organizations.keys().cloned().collect();
    let offered = offered(state);
    for id in organizations {
        follow_one(state, step, &id, offered);
    }
}

/// Whether the catalog has a free model. Looks at all of them.
fn offered(state: &State) -> bool {
    state.models.keys().any(ModelId::is_free)
}

/// The same of one organization.
pub(super) fn follow(state: &mut State, step: &mut Step<'_>, id: &OrganizationId) {
    let offered = offered(state);
    follow_one(state, step, id, offered);
}

fn follow_one(state: &mut State, step: &mut Step<'_>, id: &OrganizationId, offered: bool) {
    let budget = quota_id(id);
    let free = &state.fees.value.free;
    let bought = state
        .accounts
        .get(id)
        .map_or(NanoUsd::ZERO, |account| account.bought);
    let limit = if bought >= free.bought {
        free.per_day_bought
    } else {
        free.per_day
    };
    if !offered || limit == 0 || !state.organizations.contains_key(id) {
        budget::remove_kept(state, step, &budget);
        return;
    }
    let limit = i64::from(limit);
    if state
        .budgets
        .get(&budget)
        .is_some_and(|kept| kept.value.terms.limit == limit)
    {
        return;
    }
    let terms = Terms {
        unit: Unit::Requests,
        cycle: Period::Daily.into(),
        ..Terms::money(NanoUsd(limit))
    };
    // Days in UTC need no rules of time zones: every replica works out the same.
    let Ok(window) = terms.cycle.span(state.now) else {
        return;
    };
    let kept = Budget {
        id: budget,
        scope: BudgetScope::Organization(id.clone()),
        model: Some(ModelId::every_free()),
        terms,
    };
    // One that is back on the same day goes on where it was.
    let counted = tally::so_far(state, &kept, window, Some(id));
    budget::put_kept(state, step, &kept, window, counted);
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, MoveCredit, Outcome};
    use tollway_shared::catalog::Model;
    use tollway_shared::credit::{CreditMove, PayMethod};

    use super::*;
    use crate::state::samples::{self, NOON};
    use crate::state::{invariant, tally};

    fn organization() -> OrganizationId {
        OrganizationId::trusted("o")
    }

    fn model(id: &str) -> Model {
        Model {
            id: ModelId::trusted(id),
            name: id.into(),
            description: String::new(),
            context_tokens: 8192,
            created_at: NOON,
        }
    }

    fn done(state: &mut State, command: Command) {
        let outcome = samples::run(state, command);
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        assert_eq!(invariant::dangling(state), None);
    }

    fn limit(state: &State) -> Option<i64> {
        state
            .budgets
            .get(&quota_id(&organization()))
            .map(|kept| kept.value.terms.limit)
    }

    #[test]
    fn an_organization_has_a_quota_while_there_is_a_free_model_and_a_larger_one_once_it_has_bought() {
        let mut state = samples::catalog();
        assert_eq!(limit(&state), None);
        done(&mut state, Command::PutModel(model("a/m:free")));
        assert_eq!(limit(&state), Some(50));
        for (amount, method, expected) in [
            (9_999_999_999, PayMethod::Card, 50),
            (10_000_000_000, PayMethod::Promo, 50),
            (1, PayMethod::Crypto, 1_000),
        ] {
            let order = MoveCredit {
                organization: organization(),
                made: CreditMove::TopUp {
                    method,
                    amount: NanoUsd(amount),
                },
                reference: format!("{method:?}"),
                payment: None,
                reason: String::new(),
            };
            done(&mut state, Command::MoveCredit(order));
            assert_eq!(limit(&state), Some(expected), "{method:?}");
        }
        done(&mut state, Command::RemoveModel(ModelId::trusted("a/m:free")));
        assert_eq!(limit(&state), None);
    }

    #[test]
    fn what_went_back_is_not_bought() {
        let mut state = samples::catalog();
        done(&mut state, Command::PutModel(model("a/m:free")));
        let amount = NanoUsd(10_000_000_000);
        let top_up = |method| CreditMove::TopUp { method, amount };
        let moves = [
            (top_up(PayMethod::Card), amount, 1_000),
            (
                CreditMove::Refund { amount: NanoUsd(1) },
                NanoUsd(amount.0 - 1),
                50,
            ),
            (top_up(PayMethod::Promo), NanoUsd(amount.0 - 1), 50),
            (CreditMove::TakenBack { amount }, NanoUsd::ZERO, 50),
            (top_up(PayMethod::Card), amount, 1_000),
        ];
        for (number, (made, bought, expected)) in moves.into_iter().enumerate() {
            let order = MoveCredit {
                organization: organization(),
                made,
                reference: format!("move-{number}"),
                payment: None,
                reason: String::new(),
            };
            done(&mut state, Command::MoveCredit(order));
            let found = state.accounts[&organization()].bought;
            assert_eq!((found, limit(&state)), (bought, Some(expected)), "{number}");
        }
    }

    #[test]
    fn the_quota_counts_served_requests_of_free_models_until_the_day_ends() {
        let mut state = samples::catalog();
        done(&mut state, Command::PutModel(model("a/m:free")));
        for (n, name, served) in [
            (0, "a/m:free", 30),
            (1, "a/m", 30),
            (2, "a/m:free", 19),
            (3, "a/m:free", 1),
        ] {
            let before = tally::exhausted_window(&state, &quota_id(&organization()));
            assert_eq!(before, None, "before stretch {n}");
            let mut stretch = samples::spend(n, n + 1, 0);
            stretch.sums[0].cell.model = ModelId::trusted(name);
            (stretch.sums[0].sums.requests, stretch.sums[0].sums.served) = (100, served);
            done(&mut state, Command::RecordSpend(stretch));
        }
        let window = tally::exhausted_window(&state, &quota_id(&organization())).unwrap();
        assert_eq!(window.end, Some(NOON.plus_ms(12 * 3_600_000)), "midnight UTC");
        // The only free model goes and is back: the day is the same.
        done(&mut state, Command::RemoveModel(ModelId::trusted("a/m:free")));
        assert_eq!(tally::exhausted_window(&state, &quota_id(&organization())), None);
        done(&mut state, Command::PutModel(model("a/m:free")));
        let again = tally::exhausted_window(&state, &quota_id(&organization())).unwrap();
        assert_eq!(again, window);
    }
}
