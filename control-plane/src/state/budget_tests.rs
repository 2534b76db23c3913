//! What budgets say, when their windows begin, and what is leased of them, entry by entry.

use tollway_proto::command::{Command, Entry, JoinKind, JoinToken, NodeRecord, Outcome, PutBudget};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::budget::terms::{Mode, Raise, Terms, Unit};
use tollway_shared::ids::{AdminId, ApiKeyId, Incarnation, ModelId, NodeId, ProjectId, Region};
use tollway_shared::lease::message::{Ask, ClosedLine, Closing, Effect, Epoch, Line, Report, Verdict, Want};
use tollway_shared::time::{DAY_MS, Period};

use super::*;
use crate::state::samples::{self, NOON};
use crate::state::{Applied, apply, invariant, view};

const EU_1: Incarnation = Incarnation(1);

fn at(state: &mut State, at: UnixMillis, command: Command) -> Applied {
    let entry = Entry {
        at,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    let index = state.applied + 1;
    let applied = apply(state, index, &entry);
    assert_eq!(invariant::dangling(state), None);
    applied
}

fn done(state: &mut State, command: Command) -> Applied {
    let name = command.name();
    let applied = at(state, NOON, command);
    assert!(
        matches!(applied.outcome, Outcome::Done(_)),
        "{name}: {:?}",
        applied.outcome
    );
    applied
}

/// The sample state with two nodes.
fn with_nodes() -> State {
    let mut state = samples::catalog();
    for (place, node) in [(1, "eu-1"), (2, "eu-2")] {
        let token = JoinToken {
            digest: [place; 32],
            kind: JoinKind::Node(Region::trusted("eu")),
            expires_at: NOON.plus_ms(1_000),
        };
        done(&mut state, Command::CreateJoinToken(token));
        let node = NodeRecord {
            id: NodeId::trusted(node),
            region: Region::trusted("eu"),
            joined_at: NOON,
        };
        let join = Command::Join {
            token: [place; 32],
            node: Some(node),
        };
        done(&mut state, join);
    }
    state
}

fn say(state: &mut State, node: &str, call: LeaseCall) -> (LeaseAnswer, Vec<Effect>) {
    let node = NodeId::trusted(node);
    let applied = done(state, Command::Lease { node, call });
    let Outcome::Done(receipt) = applied.outcome else {
        panic!("refused");
    };
    (*receipt.lease.expect("an answer"), applied.effects)
}

fn enlist(state: &mut State, node: &str, incarnation: Incarnation) -> bool {
    match say(state, node, LeaseCall::Enlist(incarnation)).0 {
        LeaseAnswer::Enlisted { live, .. } => live,
        other => panic!("{other:?}"),
    }
}

/// Asks for `amount` of each budget, as a request that waits.
fn ask(state: &mut State, node: &str, incarnation: Incarnation, budgets: &[&str], amount: i64) -> Verdict {
    let want = |budget: &&str| Want {
        budget: BudgetId::trusted(*budget),
        epoch: Epoch(0),
        seen: 0,
        room: 0,
        amount,
        least: amount,
        urgent: true,
        burn: 0,
    };
    let ask = Ask {
        incarnation,
        serial: 1,
        wants: budgets.iter().map(want).collect(),
    };
    match say(state, node, LeaseCall::Ask(ask)).0 {
        LeaseAnswer::Answer(answer) => answer.verdict,
        other => panic!("{other:?}"),
    }
}

fn report(state: &mut State, budget: &str, incarnation: Incarnation, spent: i64) -> Vec<Effect> {
    let budget = BudgetId::trusted(budget);
    let epoch = state.books.accounts.get(&budget).unwrap().book.epoch;
    let line = Line {
        budget,
        epoch,
        spent,
        returned: 0,
        seen: spent,
        held: 0,
        recall: 0,
    };
    let report = Report {
        incarnation,
        serial: 2,
        lines: vec![line],
    };
    say(state, "eu-1", LeaseCall::Report(report)).1
}

/// Settled, leased, free.
fn book(state: &State, budget: &str) -> (i128, i128, i128) {
    let book = &state.books.accounts.get(&BudgetId::trusted(budget)).unwrap().book;
    (book.settled, book.outstanding, book.free)
}

fn of_key(id: &str, limit: i64) -> PutBudget {
    let mut budget = samples::budget(limit).budget;
    budget.id = BudgetId::trusted(id);
    budget.scope = BudgetScope::Key(ApiKeyId::trusted("k"));
    samples::put_budget(budget)
}

fn edited(limit: i64, edit: impl FnOnce(&mut Budget)) -> PutBudget {
    let mut budget = samples::budget(limit).budget;
    edit(&mut budget);
    samples::put_budget(budget)
}

#[test]
fn money_is_granted_on_all_levels_settled_and_comes_back_when_a_life_is_closed() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(1_000)));
    done(&mut state, Command::PutBudget(of_key("key", 100)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    let refused = ask(&mut state, "eu-1", EU_1, &["b", "key"], 101);
    assert_eq!(refused, Verdict::Exhausted(BudgetId::trusted("key")));
    assert_eq!(book(&state, "b"), (0, 0, 1_000), "all levels or none");
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b", "key"], 60), Verdict::Granted);
    let (_, leased, _) = book(&state, "key");
    assert!(leased >= 60, "{leased}");
    report(&mut state, "key", EU_1, 50);
    report(&mut state, "key", EU_1, 40);
    assert_eq!(book(&state, "key").0, 50, "counters only grow");

    // Its successor reads the spool: 55 were spent in all. The same message again changes nothing.
    let successor = Incarnation(2);
    assert!(enlist(&mut state, "eu-1", successor));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b", "key"], 1), Verdict::Fenced);
    let account = state.books.accounts.get(&BudgetId::trusted("key")).unwrap();
    let closing = Closing {
        incarnation: EU_1,
        lines: vec![ClosedLine {
            budget: BudgetId::trusted("key"),
            epoch: account.book.epoch,
            spent: 55,
        }],
        doubtful: false,
    };
    for _ in 0..2 {
        let (answer, _) = say(&mut state, "eu-1", LeaseCall::Closing(closing.clone()));
        assert!(
            matches!(answer, LeaseAnswer::Closed { known: true, .. }),
            "{answer:?}"
        );
        assert_eq!(book(&state, "key"), (55, 0, 45));
        assert_eq!(book(&state, "b"), (0, 0, 1_000));
    }
    let again = State::decode(&state.encode()).unwrap();
    assert_eq!(
        again, state,
        "books and tallies are in the checkpoint, indexes are made anew"
    );
}

#[test]
fn a_dead_life_stays_charged_until_somebody_releases_it() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 70), Verdict::Granted);
    let early = at(&mut state, NOON, Command::ReleaseIncarnation(EU_1)).outcome;
    assert!(
        matches!(early, Outcome::Refused(_)),
        "it may still spend: {early:?}"
    );
    done(&mut state, Command::RemoveNode(NodeId::trusted("eu-1")));
    let out = book(&state, "b").1;
    assert!(
        out >= 70,
        "a node that is removed is fenced, and what it has out stays charged: {out}"
    );
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    assert_eq!(book(&state, "b"), (0, 0, 100));
    let actions: Vec<&str> = state
        .audit
        .iter()
        .rev()
        .take(1)
        .map(|record| record.action.as_str())
        .collect();
    assert_eq!(actions, ["incarnation.release"]);
}

#[test]
fn a_node_speaks_for_itself_only() {
    let mut state = with_nodes();
    assert!(enlist(&mut state, "eu-1", EU_1));
    let node = NodeId::trusted("eu-2");
    let other = Command::Lease {
        node,
        call: LeaseCall::Enlist(EU_1),
    };
    assert!(matches!(at(&mut state, NOON, other).outcome, Outcome::Refused(_)));
    let unknown = Command::Lease {
        node: NodeId::trusted("us-1"),
        call: LeaseCall::Enlist(Incarnation(9)),
    };
    assert!(matches!(
        at(&mut state, NOON, unknown).outcome,
        Outcome::Refused(_)
    ));
    // Lives without leases leave no trail.
    for life in 10..20 {
        assert!(enlist(&mut state, "eu-1", Incarnation(life)));
    }
    let standing: Vec<&str> = state
        .books
        .members
        .values()
        .map(|member| super::super::lease::standing(member.standing))
        .collect();
    assert_eq!(standing.iter().filter(|standing| **standing == "live").count(), 1);
    assert_eq!(
        standing.iter().filter(|standing| **standing == "closed").count(),
        10
    );
    done(
        &mut state,
        Command::ForgetIncarnations {
            before: NOON.plus_ms(1),
        },
    );
    assert_eq!(state.books.members.len(), 1);
}

#[test]
fn idle_money_of_another_node_is_recalled() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert!(enlist(&mut state, "eu-2", Incarnation(2)));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 90), Verdict::Granted);
    let want = Want {
        budget: BudgetId::trusted("b"),
        epoch: Epoch(0),
        seen: 0,
        room: 0,
        amount: 40,
        least: 40,
        urgent: true,
        burn: 0,
    };
    let call = LeaseCall::Ask(Ask {
        incarnation: Incarnation(2),
        serial: 1,
        wants: vec![want],
    });
    let (answer, effects) = say(&mut state, "eu-2", call);
    let LeaseAnswer::Answer(answer) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(answer.verdict, Verdict::Recalling(BudgetId::trusted("b")));
    let recalled: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Recall(recall) => Some((recall.incarnation, recall.amount >= 30)),
            Effect::Crossed { .. } => None,
        })
        .collect();
    assert_eq!(recalled, [(EU_1, true)]);
}

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
            Effect::Recall(_) => None,
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
fn a_new_limit_keeps_what_is_leased_and_another_scope_starts_anew() {
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
    assert_eq!(
        book(&state, "b"),
        (7, 0, 493),
        "with what the ledger has recorded"
    );
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
    let (mut cell, sums) = spend.sums[0].clone();
    cell.model = ModelId::trusted("a/other");
    done(&mut state, Command::RecordSpend(spend.clone()));
    let recorded =
        |state: &State, id: &str| state.tallies.get(&BudgetId::trusted(id)).unwrap().current.amount;
    for (id, _, expected) in &budgets {
        assert_eq!(recorded(&state, id), *expected, "{id}");
    }
    (spend.from, spend.to, spend.sums) = (10, 20, vec![(cell, sums)]);
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
        stretch.sums[0].0.path.key = ApiKeyId::trusted(key);
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
