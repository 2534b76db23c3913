//! What budgets say, when their windows begin, and what is counted of them, entry by entry.

use tollway_proto::command::Outcome;
use tollway_shared::budget::terms::{Mode, Unit};
use tollway_shared::ids::Incarnation;
use tollway_shared::ids::{AdminId, ApiKeyId, NodeId, ProjectId};
use tollway_shared::lease::message::{Ask, Effect, Epoch, Line, Report, Verdict, Want};
use tollway_shared::time::{DAY_MS, Period};

use super::*;
use crate::state::lease_samples::{
    EU_1, ask, at, book, done, edited, enlist, of_key, report, say, with_nodes,
};
use crate::state::samples::{self, NOON};
use crate::state::view;

#[test]
fn a_window_begins_when_the_leader_says_so_and_what_is_out_stays_with_the_old_one() {
    let mut state = with_nodes();
    let put = edited(100, |budget| budget.terms.cycle = Period::Daily.into());
    done(&mut state, Command::PutBudget(put));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 60), Verdict::Granted);
    let idle = Command::RollBudgets(Vec::new());
    let midnight = NOON.plus_ms(DAY_MS / 2);
    assert_eq!(due(&state, &idle, midnight.plus_ms(-1)), []);
    let rolls = due(&state, &idle, midnight);
    assert_eq!(rolls.len(), 1);
    for _ in 0..2 {
        at(&mut state, midnight, Command::RollBudgets(rolls.clone()));
        assert_eq!(book(&state, "b"), (0, 0, 100), "a window begins once");
    }
    let account = state.books.accounts.get(&BudgetId::trusted("b")).unwrap();
    assert!(account.past[0].outstanding >= 60);
    assert_eq!(due(&state, &idle, midnight), []);
}

#[test]
fn the_windows_of_an_ask_come_first_however_many_are_due() {
    let mut state = with_nodes();
    for n in 0..ROLLS_MAX + 5 {
        let put = edited(100, |budget| {
            budget.id = BudgetId::trusted(format!("b{n:05}"));
            budget.terms.cycle = Period::Daily.into();
        });
        samples::run(&mut state, Command::PutBudget(put));
    }
    let last = format!("b{:05}", ROLLS_MAX + 4);
    let ask = Command::Lease {
        node: NodeId::trusted("eu-1"),
        call: LeaseCall::Ask(Ask {
            incarnation: EU_1,
            serial: 1,
            wants: vec![Want {
                budget: BudgetId::trusted(last.as_str()),
                epoch: Epoch(0),
                seen: 0,
                room: 0,
                amount: 1,
                least: 1,
                urgent: true,
                burn: 0,
            }],
        }),
    };
    let rolls = due(&state, &ask, NOON.plus_ms(DAY_MS));
    assert_eq!(rolls.len(), ROLLS_MAX);
    assert!(rolls.iter().any(|roll| roll.budget.as_str() == last));
}

#[test]
fn thresholds_are_announced_once_per_window_for_leased_and_soft_budgets() {
    let mut state = with_nodes();
    let thresholds = |budget: &mut Budget| budget.terms.thresholds_percent = vec![50, 80];
    done(&mut state, Command::PutBudget(edited(100, thresholds)));
    let soft = edited(100, |budget| {
        budget.id = BudgetId::trusted("soft");
        thresholds(budget);
        budget.terms.mode = Mode::Soft;
    });
    done(&mut state, Command::PutBudget(soft));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 100), Verdict::Granted);
    let percents = |effects: &[Effect]| -> Vec<u8> {
        let crossed = effects.iter().filter_map(|effect| match effect {
            Effect::Crossed { percent, .. } => Some(*percent),
            Effect::Recall(_) | Effect::LowBalance { .. } => None,
        });
        crossed.collect()
    };
    assert_eq!(percents(&report(&mut state, "b", EU_1, 49)), [0_u8; 0]);
    assert_eq!(percents(&report(&mut state, "b", EU_1, 79)), [50]);
    assert_eq!(percents(&report(&mut state, "b", EU_1, 79)), [0_u8; 0]);
    assert_eq!(percents(&report(&mut state, "b", EU_1, 80)), [80]);
    for (from, cost, told) in [(0, 49, vec![]), (1, 31, vec![80]), (2, 1, vec![])] {
        let spend = Command::RecordSpend(samples::spend(from, from + 1, cost));
        assert_eq!(percents(&done(&mut state, spend).effects), told, "{from}");
    }
    let noted = state
        .audit
        .iter()
        .filter(|record| record.action == "budget.threshold");
    assert_eq!(noted.count(), 3);
}

#[test]
fn a_raise_counts_until_its_end_and_survives_a_put() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    let raise = |amount, until| Command::RaiseBudget {
        budget: BudgetId::trusted("b"),
        raise: Raise {
            amount,
            until,
            author: AdminId::trusted("root"),
            reason: "launch".into(),
        },
    };
    let late = at(&mut state, NOON, raise(50, NOON)).outcome;
    assert!(matches!(late, Outcome::Refused(_)), "{late:?}");
    done(&mut state, raise(50, NOON.plus_ms(1_000)));
    assert_eq!(book(&state, "b"), (0, 0, 150));
    done(&mut state, Command::PutBudget(samples::budget(200)));
    assert_eq!(book(&state, "b"), (0, 0, 250));
    let seen = view::budget(&state, &state.budgets.get(&BudgetId::trusted("b")).unwrap().value);
    assert_eq!(seen.budget.terms.raises, [], "nodes need not know");
    done(&mut state, Command::ClearRaises(BudgetId::trusted("b")));
    assert_eq!(book(&state, "b"), (0, 0, 200));
}

#[test]
fn what_is_out_on_a_raise_that_is_over_is_asked_back() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    let until = NOON.plus_ms(4_000);
    let raise = Raise {
        amount: 1_000,
        until,
        author: AdminId::trusted("root"),
        reason: "launch".into(),
    };
    let budget = BudgetId::trusted("b");
    done(&mut state, Command::RaiseBudget { budget, raise });
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 800), Verdict::Granted);
    assert!(!has_expired_raise(&state, until.plus_ms(-1)) && has_expired_raise(&state, until));
    let idle = || Command::RollBudgets(Vec::new());
    let early = at(&mut state, until.plus_ms(-1), idle());
    assert_eq!((early.effects, book(&state, "b").2), (Vec::new(), 300));
    let ended = at(&mut state, until, idle());
    let recalls = ended.effects.iter().filter_map(|effect| match effect {
        Effect::Recall(recall) => Some(recall.amount),
        _ => None,
    });
    assert_eq!(recalls.collect::<Vec<_>>(), [700], "all that is above the limit");
    assert!(!has_expired_raise(&state, until.plus_ms(DAY_MS)));
    let kept = &state.budgets.get(&BudgetId::trusted("b")).unwrap().value;
    assert_eq!((kept.terms.raises.len(), state.raise_ends.len()), (0, 0));
}

#[test]
fn a_new_limit_keeps_what_is_leased_and_another_scope_is_charged_for_it() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 7)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 60), Verdict::Granted);
    report(&mut state, "b", EU_1, 20);
    let (settled, leased, _) = book(&state, "b");
    done(&mut state, Command::PutBudget(samples::budget(500)));
    assert_eq!(book(&state, "b"), (settled, leased, 500 - settled - leased));
    let project = edited(500, |budget| {
        budget.scope = BudgetScope::Project(ProjectId::trusted("j"))
    });
    done(&mut state, Command::PutBudget(project));
    // With what the ledger has recorded, the 13 that nodes have reported beyond that, and what they may still spend.
    let carried = 7 + 13 + leased;
    assert_eq!(book(&state, "b"), (carried, 0, 500 - carried));
}

/// Says that a life has spent and given back so much of an epoch.
fn tell(state: &mut State, life: Incarnation, epoch: Epoch, spent: i64, returned: i64) {
    let line = Line {
        budget: BudgetId::trusted("b"),
        epoch,
        spent,
        returned,
        seen: spent + returned,
        held: 0,
        recall: 0,
    };
    let report = Report {
        incarnation: life,
        serial: 9,
        lines: vec![line],
    };
    say(state, "eu-1", LeaseCall::Report(report));
}

#[test]
fn what_is_out_of_a_budget_is_not_granted_again_when_it_is_made_again() {
    type Edit = fn(&mut Budget);
    let removed = |state: &mut State| drop(done(state, Command::RemoveBudget(BudgetId::trusted("b"))));
    let put = |edit: Edit| move |state: &mut State| drop(done(state, Command::PutBudget(edited(100, edit))));
    type Way = Box<dyn Fn(&mut State)>;
    let ways: [(&str, Way); 4] = [
        ("removed", Box::new(removed)),
        ("soft", Box::new(put(|budget| budget.terms.mode = Mode::Soft))),
        (
            "another scope",
            Box::new(put(|budget| {
                budget.scope = BudgetScope::Project(ProjectId::trusted("j"));
            })),
        ),
        (
            "another cycle",
            Box::new(put(|budget| budget.terms.cycle = Period::Daily.into())),
        ),
    ];
    for (name, way) in ways {
        let mut state = with_nodes();
        done(&mut state, Command::PutBudget(samples::budget(100)));
        assert!(enlist(&mut state, "eu-1", EU_1));
        assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 60), Verdict::Granted);
        let granted = book(&state, "b").1;
        let epoch = state
            .books
            .accounts
            .get(&BudgetId::trusted("b"))
            .unwrap()
            .book
            .epoch;
        tell(&mut state, EU_1, epoch, 10, 0);
        way(&mut state);
        done(&mut state, Command::PutBudget(samples::budget(100)));
        assert_eq!(book(&state, "b"), (granted, 0, 100 - granted), "{name}");
        let life = Incarnation(2);
        assert!(enlist(&mut state, "eu-2", life));
        assert!(
            matches!(ask(&mut state, "eu-2", life, &["b"], 60), Verdict::Exhausted(_)),
            "{name}"
        );
        // It spends 20 more of the old slice, and gives the rest back.
        let rest = i64::try_from(granted).unwrap() - 30;
        tell(&mut state, EU_1, epoch, 30, rest);
        assert_eq!(book(&state, "b"), (30, 0, 70), "{name}");
        assert_eq!(
            ask(&mut state, "eu-2", life, &["b"], 60),
            Verdict::Granted,
            "{name}"
        );
        assert_eq!(State::decode(&state.encode()).unwrap(), state, "{name}");
    }
}

#[test]
fn what_is_out_of_a_longer_window_is_charged_to_each_shorter_one_until_it_comes_back() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 60), Verdict::Granted);
    let granted = book(&state, "b").1;
    let epoch = state.books.accounts[&BudgetId::trusted("b")].book.epoch;
    tell(&mut state, EU_1, epoch, 10, 0);
    let daily = edited(100, |budget| budget.terms.cycle = Period::Daily.into());
    done(&mut state, Command::PutBudget(daily));
    assert_eq!(book(&state, "b"), (granted, 0, 100 - granted));
    for day in 1..=4 {
        let now = NOON.plus_ms(day * DAY_MS);
        let rolls = due(&state, &Command::RollBudgets(Vec::new()), now);
        at(&mut state, now, Command::RollBudgets(rolls));
        let has = granted - 10;
        assert_eq!(book(&state, "b"), (has, 0, 100 - has), "day {day}");
    }
    tell(&mut state, EU_1, epoch, 30, i64::try_from(granted).unwrap() - 30);
    assert_eq!(book(&state, "b"), (20, 0, 80));
}

#[test]
fn credit_that_nodes_have_is_not_granted_again_when_an_organization_is_held_to_it_again() {
    use tollway_shared::credit::{Billing, BillingMode, CreditMove, PayMethod, budget_id};
    let mut state = with_nodes();
    let organization = OrganizationId::trusted("o");
    let top_up = tollway_proto::command::MoveCredit {
        organization: organization.clone(),
        made: CreditMove::TopUp {
            method: PayMethod::Promo,
            amount: tollway_shared::money::NanoUsd(100),
        },
        reference: "gift".into(),
        payment: None,
        reason: String::new(),
    };
    done(&mut state, Command::MoveCredit(top_up));
    let pays = |mode| {
        let billing = Billing {
            mode,
            ..Billing::default()
        };
        let organization = organization.clone();
        Command::PutBilling(tollway_proto::command::PutBilling {
            organization,
            billing,
        })
    };
    done(&mut state, pays(BillingMode::Prepaid));
    assert!(enlist(&mut state, "eu-1", EU_1));
    let id = budget_id(&organization);
    assert_eq!(
        ask(&mut state, "eu-1", EU_1, &[id.as_str()], 50),
        Verdict::Granted
    );
    let out = book(&state, id.as_str()).1;
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 5)));
    done(&mut state, pays(BillingMode::Unlimited));
    done(&mut state, pays(BillingMode::Prepaid));
    assert_eq!(book(&state, id.as_str()), (out, 0, 95 - out));
}

#[test]
fn the_unit_of_a_budget_does_not_change_while_nodes_may_have_some_of_it() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    let tokens = || Command::PutBudget(edited(100, |budget| budget.terms.unit = Unit::Tokens));
    let refused = |state: &mut State| match at(state, NOON, tokens()).outcome {
        Outcome::Refused(refusal) => refusal.field.clone(),
        Outcome::Done(_) => panic!("taken"),
    };
    assert_eq!(refused(&mut state).as_deref(), Some("unit"));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 60), Verdict::Granted);
    done(&mut state, Command::RemoveBudget(BudgetId::trusted("b")));
    assert_eq!(refused(&mut state).as_deref(), Some("unit"));
    done(&mut state, Command::PutBudget(samples::budget(100)));
}

#[test]
fn only_the_budgets_of_the_path_and_the_model_are_charged_in_their_unit() {
    let mut state = with_nodes();
    done(&mut state, Command::CreateKey(samples::api_key("k2", 2)));
    type Edit = fn(&mut Budget);
    let budgets: [(&str, Edit, i64); 5] = [
        ("org", |_| (), 11),
        (
            "key",
            |budget| budget.scope = BudgetScope::Key(ApiKeyId::trusted("k")),
            11,
        ),
        (
            "other",
            |budget| budget.scope = BudgetScope::Key(ApiKeyId::trusted("k2")),
            0,
        ),
        ("model", |budget| budget.model = Some(ModelId::trusted("a/m")), 11),
        (
            "tokens",
            |budget| {
                budget.terms = Terms {
                    unit: Unit::Tokens,
                    ..budget.terms.clone()
                }
            },
            7,
        ),
    ];
    for (id, edit, _) in &budgets {
        let put = edited(100, |budget| {
            edit(budget);
            budget.id = BudgetId::trusted(*id);
        });
        done(&mut state, Command::PutBudget(put));
    }
    let mut spend = samples::spend(0, 10, 11);
    let mut other = spend.sums[0].clone();
    other.cell.model = ModelId::trusted("a/other");
    done(&mut state, Command::RecordSpend(spend.clone()));
    let recorded =
        |state: &State, id: &str| state.tallies.get(&BudgetId::trusted(id)).unwrap().current.amount;
    for (id, _, expected) in &budgets {
        assert_eq!(recorded(&state, id), *expected, "{id}");
    }
    (spend.from, spend.to, spend.sums) = (10, 20, vec![other]);
    done(&mut state, Command::RecordSpend(spend));
    assert_eq!((recorded(&state, "org"), recorded(&state, "model")), (22, 11));
    // One that moves to another scope counts what was recorded there.
    let moved = edited(100, |budget| budget.id = BudgetId::trusted("other"));
    done(&mut state, Command::PutBudget(moved));
    assert_eq!(recorded(&state, "other"), 22);
    done(&mut state, Command::RemoveBudget(BudgetId::trusted("org")));
    assert!(!state.tallies.contains_key(&BudgetId::trusted("org")));
}

#[test]
fn a_budget_is_spent_once_its_window_has_recorded_the_limit() {
    let mut state = samples::catalog();
    samples::run(&mut state, Command::PutBudget(samples::budget(12)));
    let id = BudgetId::trusted("b");
    let spent = |state: &State| {
        let budget = &state.budgets.get(&id).unwrap().value;
        view::budget(state, budget).stops(NOON).is_some()
    };
    let before = state.revision;
    samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 11)));
    assert!(!spent(&state));
    assert_eq!(state.revision, before, "nodes see no difference");
    samples::run(&mut state, Command::RecordSpend(samples::spend(10, 20, 1)));
    assert!(spent(&state));
    assert!(state.revision > before, "nodes must hear of it");
    samples::run(&mut state, Command::PutBudget(samples::budget(13)));
    assert!(
        !spent(&state),
        "a raised limit lets requests through again, and the 12 already spent still count"
    );
    samples::run(&mut state, Command::RecordSpend(samples::spend(20, 30, 1)));
    assert!(spent(&state));
    // The window ends; after two more, nodes hear that the spent one is forgotten.
    let mut noticed = Vec::new();
    for months in 1..=3 {
        let now = NOON.plus_ms(months * 31 * DAY_MS);
        let rolls = due(&state, &Command::RollBudgets(Vec::new()), now);
        noticed.push(at(&mut state, now, Command::RollBudgets(rolls)).changed.len());
        let budget = &state.budgets.get(&id).unwrap().value;
        assert_eq!(view::budget(&state, budget).stops(now), None);
    }
    assert_eq!(noticed, [0, 0, 1]);
}

#[test]
fn terms_that_are_not_sound_are_refused_by_field() {
    let state = samples::catalog();
    type Edit = fn(&mut PutBudget);
    let cases: [(&str, Edit); 5] = [
        ("limit", |put| put.budget.terms.limit = 0),
        ("scope", |put| {
            put.budget.scope = BudgetScope::Key(ApiKeyId::trusted("nobody"))
        }),
        ("model", |put| {
            put.budget.model = Some(ModelId::trusted("no/body"))
        }),
        ("thresholds_percent", |put| {
            put.budget.terms.thresholds_percent = vec![50, 50]
        }),
        ("time_zone", |put| put.window = None),
    ];
    for (field, edit) in cases {
        let mut put = samples::budget(5);
        edit(&mut put);
        let outcome = samples::run(&mut state.clone(), Command::PutBudget(put));
        let Outcome::Refused(refusal) = outcome else {
            panic!("{field} was taken");
        };
        assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
    }
}

/// A key `k` with a budget of 100 is rotated, then its successor. What all three spend counts, in the window that has begun.
#[test]
fn the_budget_of_a_key_holds_for_those_that_replace_it() {
    let mut state = samples::catalog();
    done(&mut state, Command::PutBudget(of_key("key", 100)));
    done(&mut state, Command::RecordSpend(samples::spend(0, 10, 40)));
    for (old, new, digest) in [("k", "k2", 2), ("k2", "k3", 3)] {
        let rotate = Command::RotateKey {
            old: ApiKeyId::trusted(old),
            old_expires_at: NOON.plus_ms(1_000),
            new: samples::api_key(new, digest),
        };
        done(&mut state, rotate);
    }
    for (from, key, cost) in [(10, "k2", 20), (20, "k3", 39), (30, "k", 1)] {
        let mut stretch = samples::spend(from, from + 10, cost);
        stretch.sums[0].cell.path.key = ApiKeyId::trusted(key);
        done(&mut state, Command::RecordSpend(stretch));
    }
    let id = BudgetId::trusted("key");
    let seen = |state: &State| {
        let stops = view::budget(state, &state.budgets.get(&id).unwrap().value).stops(NOON);
        let recorded = state.tallies.get(&id).unwrap().current.amount;
        (recorded, stops.is_some())
    };
    assert_eq!(seen(&state), (100, true));
    // One that is put on a successor counts that one and what came after it, as far back as its window goes.
    let mut later = of_key("key", 100);
    later.budget.scope = BudgetScope::Key(ApiKeyId::trusted("k2"));
    done(&mut state, Command::PutBudget(later));
    assert_eq!(seen(&state), (59, false));
}
