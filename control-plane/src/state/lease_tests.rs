//! The life of a lease, entry by entry: granted, settled, recalled, closed, fenced, released.

use tollway_proto::command::{Command, MoveCredit, Outcome, PutBilling, ReleaseCredit};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::credit::{Billing, BillingMode, CreditMove, PayMethod};
use tollway_shared::ids::{BudgetId, Incarnation, NodeId, OrganizationId};
use tollway_shared::lease::message::{Ask, ClosedLine, Closing, Effect, Epoch, Verdict, Want};
use tollway_shared::money::NanoUsd;

use crate::state::State;
use crate::state::lease_samples::{EU_1, ask, at, book, done, enlist, of_key, report, say, with_nodes};
use crate::state::samples::{self, NOON};

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

/// Organization `o` has paid in 100 nano-dollars and is held to them.
fn prepaid() -> State {
    let mut state = with_nodes();
    done(
        &mut state,
        Command::MoveCredit(MoveCredit {
            organization: OrganizationId::trusted("o"),
            made: CreditMove::TopUp {
                method: PayMethod::Promo,
                amount: NanoUsd(100),
            },
            reference: "pay-1".into(),
            payment: None,
            reason: String::new(),
        }),
    );
    done(
        &mut state,
        Command::PutBilling(PutBilling {
            organization: OrganizationId::trusted("o"),
            billing: Billing {
                mode: BillingMode::Prepaid,
                ..Billing::default()
            },
        }),
    );
    state
}

/// Credit's book, and how much of what it has settled the ledger has not counted.
fn credit(state: &State) -> ((i128, i128, i128), i64) {
    let id = OrganizationId::trusted("o");
    (book(state, CREDIT), super::super::credit::uncounted(state, &id))
}

const CREDIT: &str = "credit.o";

#[test]
fn credit_of_a_dead_life_is_free_again_once_released_and_what_the_ledger_counts_stays_counted() {
    let mut state = prepaid();
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &[CREDIT], 70), Verdict::Granted);
    report(&mut state, CREDIT, EU_1, 30);
    // It spends 15 more that it never reports, and dies. The ledger counts 40 of the 45: the rest of its events is lost with its disk.
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 40)));
    done(&mut state, Command::FenceIncarnation(EU_1));
    let (dead, _) = credit(&state);
    assert!(dead.1 >= 40, "it stays charged: {dead:?}");
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    let available = state.accounts[&OrganizationId::trusted("o")].available();
    assert_eq!(available, 60);
    // The other node may have what is left, to the last unit, and not what the dead one had spent without saying so.
    assert_eq!(credit(&state), ((40, 0, 60), 0));
    assert!(enlist(&mut state, "eu-2", Incarnation(2)));
    let verdict = ask(&mut state, "eu-2", Incarnation(2), &[CREDIT], 61);
    assert_eq!(verdict, Verdict::Exhausted(BudgetId::trusted(CREDIT)));
    assert_eq!(
        ask(&mut state, "eu-2", Incarnation(2), &[CREDIT], 60),
        Verdict::Granted
    );
    // More of its events come late: they take from what is left.
    done(&mut state, Command::RecordSpend(samples::spend(1, 2, 5)));
    assert_eq!(credit(&state).0.2, -5, "more is out than there is");
}

#[test]
fn credit_that_a_dead_life_said_it_spent_and_nobody_counts_can_be_released() {
    let mut state = prepaid();
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &[CREDIT], 70), Verdict::Granted);
    report(&mut state, CREDIT, EU_1, 30);
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 20)));
    done(&mut state, Command::FenceIncarnation(EU_1));
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    assert_eq!(
        credit(&state),
        ((30, 0, 70), 10),
        "10 are spent, and no event says on what"
    );
    let release = |amount: i64| {
        Command::ReleaseCredit(ReleaseCredit {
            organization: OrganizationId::trusted("o"),
            amount: NanoUsd(amount),
            reason: "its disk is gone".into(),
        })
    };
    for amount in [-1, 0, 11] {
        let refused = at(&mut state, NOON, release(amount)).outcome;
        assert!(matches!(refused, Outcome::Refused(_)), "{amount}: {refused:?}");
    }
    done(&mut state, release(10));
    assert_eq!(
        credit(&state),
        ((20, 0, 80), 0),
        "all that was paid in and not counted"
    );
    let refused = at(&mut state, NOON, release(1)).outcome;
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
    // An event turns up after all: it counts, and nothing is spent twice.
    done(&mut state, Command::RecordSpend(samples::spend(1, 2, 10)));
    assert_eq!(credit(&state), ((30, 0, 70), 0));
    let again = State::decode(&state.encode()).unwrap();
    assert_eq!(again, state);
}

/// A life that had 70 of the credit, reported 30 of it, and was released.
fn released() -> State {
    let mut state = prepaid();
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &[CREDIT], 70), Verdict::Granted);
    report(&mut state, CREDIT, EU_1, 30);
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 30)));
    done(&mut state, Command::FenceIncarnation(EU_1));
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    assert_eq!(credit(&state), ((30, 0, 70), 0));
    state
}

#[test]
fn what_turns_up_of_a_released_life_counts_also_when_the_life_is_forgotten() {
    let mut state = released();
    let before = NOON.plus_ms(1);
    done(&mut state, Command::ForgetIncarnations { before });
    assert!(state.books.members.is_empty());
    done(&mut state, Command::RecordSpend(samples::spend(1, 2, 25)));
    assert_eq!(credit(&state), ((55, 0, 45), 0));
}

#[test]
fn what_a_released_life_reports_after_all_is_settled_once() {
    let mut state = released();
    done(&mut state, Command::RecordSpend(samples::spend(1, 2, 25)));
    assert_eq!(credit(&state), ((55, 0, 45), 0));
    let closing = Closing {
        incarnation: EU_1,
        lines: vec![ClosedLine {
            budget: BudgetId::trusted(CREDIT),
            epoch: state.books.accounts[&BudgetId::trusted(CREDIT)].book.epoch,
            spent: 60,
        }],
        doubtful: false,
    };
    say(&mut state, "eu-1", LeaseCall::Closing(closing));
    assert_eq!(credit(&state), ((60, 0, 40), 5));
}

#[test]
fn what_is_ahead_of_the_reports_of_a_released_life_hides_no_spending_of_others() {
    let mut state = released();
    let live = Incarnation(2);
    assert!(enlist(&mut state, "eu-1", live));
    assert_eq!(ask(&mut state, "eu-1", live, &[CREDIT], 10), Verdict::Granted);
    let free = credit(&state).0.2;
    done(&mut state, Command::RecordSpend(samples::spend(1, 2, 25)));
    assert_eq!(credit(&state).0.2, free - 25);
    report(&mut state, CREDIT, live, 7);
    done(&mut state, Command::RecordSpend(samples::spend(2, 3, 1)));
    assert_eq!(
        credit(&state),
        ((62, 70 - free - 7, free - 25), 6),
        "30, 25 and 7"
    );
}

#[test]
fn credit_that_nodes_still_have_of_a_former_budget_is_not_to_be_released() {
    let mut state = prepaid();
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &[CREDIT], 70), Verdict::Granted);
    let has = credit(&state).0.1;
    for mode in [BillingMode::Unlimited, BillingMode::Prepaid] {
        let billing = Billing {
            mode,
            ..Billing::default()
        };
        let organization = OrganizationId::trusted("o");
        done(
            &mut state,
            Command::PutBilling(PutBilling {
                organization,
                billing,
            }),
        );
    }
    assert_eq!(credit(&state), ((has, 0, 100 - has), 0));
    let release = Command::ReleaseCredit(ReleaseCredit {
        organization: OrganizationId::trusted("o"),
        amount: NanoUsd(1),
        reason: String::new(),
    });
    let refused = at(&mut state, NOON, release).outcome;
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
    // Released with its life it is free in the budget of today, and counts there if it turns up.
    done(&mut state, Command::FenceIncarnation(EU_1));
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    assert_eq!(credit(&state), ((0, 0, 100), 0));
    done(&mut state, Command::RecordSpend(samples::spend(0, 1, 25)));
    assert_eq!(credit(&state), ((25, 0, 75), 0));
}

#[test]
fn a_released_life_is_forgotten_in_time_and_what_it_reported_stays_settled() {
    let mut state = with_nodes();
    done(&mut state, Command::PutBudget(samples::budget(100)));
    assert!(enlist(&mut state, "eu-1", EU_1));
    assert_eq!(ask(&mut state, "eu-1", EU_1, &["b"], 70), Verdict::Granted);
    report(&mut state, "b", EU_1, 30);
    done(&mut state, Command::FenceIncarnation(EU_1));
    done(&mut state, Command::ReleaseIncarnation(EU_1));
    for (after_ms, members) in [(0, 1), (1, 0)] {
        let before = NOON.plus_ms(after_ms);
        done(&mut state, Command::ForgetIncarnations { before });
        assert_eq!(state.books.members.len(), members);
        assert_eq!(book(&state, "b"), (30, 0, 70));
    }
    let account = state.books.accounts.get(&BudgetId::trusted("b")).unwrap();
    assert!(account.book.leases.is_empty());
    // Its spool turns up after all: the leases know it no more, and its events count in the ledger.
    let closing = Closing {
        incarnation: EU_1,
        lines: vec![ClosedLine {
            budget: BudgetId::trusted("b"),
            epoch: account.book.epoch,
            spent: 50,
        }],
        doubtful: false,
    };
    let (answer, _) = say(&mut state, "eu-1", LeaseCall::Closing(closing));
    assert!(
        matches!(answer, LeaseAnswer::Closed { known: false, .. }),
        "{answer:?}"
    );
    assert_eq!(book(&state, "b"), (30, 0, 70));
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
        .map(|member| super::standing(member.standing))
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
            Effect::Crossed { .. } | Effect::LowBalance { .. } => None,
        })
        .collect();
    assert_eq!(recalled, [(EU_1, true)]);
}
