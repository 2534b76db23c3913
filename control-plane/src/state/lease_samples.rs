//! Nodes and leases for tests of the state: what they say, and what the books have then.

use tollway_proto::command::{Command, Entry, JoinKind, JoinToken, NodeRecord, Outcome, PutBudget};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{ApiKeyId, BudgetId, Incarnation, NodeId, Region};
use tollway_shared::lease::message::{Ask, Effect, Epoch, Line, Report, Verdict, Want};
use tollway_shared::time::UnixMillis;

use super::samples::{self, NOON};
use super::{Applied, State, apply, invariant};

/// A life of node `eu-1`.
pub(crate) const EU_1: Incarnation = Incarnation(1);

/// Applies a command at a time, and checks everything that must hold.
pub(crate) fn at(state: &mut State, at: UnixMillis, command: Command) -> Applied {
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

/// Applies a command at [`NOON`] that is not refused.
pub(crate) fn done(state: &mut State, command: Command) -> Applied {
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
pub(crate) fn with_nodes() -> State {
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

/// What a node is answered, and what is to be told to others.
pub(crate) fn say(state: &mut State, node: &str, call: LeaseCall) -> (LeaseAnswer, Vec<Effect>) {
    let node = NodeId::trusted(node);
    let applied = done(state, Command::Lease { node, call });
    let Outcome::Done(receipt) = applied.outcome else {
        panic!("refused");
    };
    (*receipt.lease.expect("an answer"), applied.effects)
}

/// Whether a new life may ask.
pub(crate) fn enlist(state: &mut State, node: &str, incarnation: Incarnation) -> bool {
    match say(state, node, LeaseCall::Enlist(incarnation)).0 {
        LeaseAnswer::Enlisted { live, .. } => live,
        other => panic!("{other:?}"),
    }
}

/// Asks for `amount` of each budget, as a request that waits.
pub(crate) fn ask(
    state: &mut State,
    node: &str,
    incarnation: Incarnation,
    budgets: &[&str],
    amount: i64,
) -> Verdict {
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

/// Reports on one budget, for node `eu-1`.
pub(crate) fn report(state: &mut State, budget: &str, incarnation: Incarnation, spent: i64) -> Vec<Effect> {
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
pub(crate) fn book(state: &State, budget: &str) -> (i128, i128, i128) {
    let book = &state.books.accounts.get(&BudgetId::trusted(budget)).unwrap().book;
    (book.settled, book.outstanding, book.free)
}

/// A hard monthly budget of key `k`.
pub(crate) fn of_key(id: &str, limit: i64) -> PutBudget {
    let mut budget = samples::budget(limit).budget;
    budget.id = BudgetId::trusted(id);
    budget.scope = BudgetScope::Key(ApiKeyId::trusted("k"));
    samples::put_budget(budget)
}

/// The sample budget with something changed.
pub(crate) fn edited(limit: i64, edit: impl FnOnce(&mut Budget)) -> PutBudget {
    let mut budget = samples::budget(limit).budget;
    edit(&mut budget);
    samples::put_budget(budget)
}
