//! Bugs that are put in on purpose, to see that the properties find them. They live here, not in the product: each spoils a message, a
//! command, a record or a disk on its way, as the mistake would.

use std::rc::Rc;
use std::sync::Arc;

use tollway_control::state::State;
use tollway_data::lease::claim::Bounds;
use tollway_data::lease::link::CallFault;
use tollway_data::usage::spool::SpoolFault;
use tollway_proto::command::{Command, Entry};
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_proto::spool::Held;
use tollway_proto::usage::UsageEvent;
use tollway_shared::lease::hold::Part;
use tollway_shared::lease::message::Recall;

use super::node::Process;
use super::run::World;

/// The bugs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// A settlement is added, not merged by max.
    ReportsAdd,
    /// A grant in an answer is added, not merged by max.
    AnswersAdd,
    /// Fencing frees what is out, though the node may be running.
    FenceFrees,
    /// A successor closes with what was reported, not with what the spool says.
    ForgetsSpool,
    /// What a dead node has out is never given back, though its spool was read.
    NeverCloses,
    /// A recall is confirmed, and the money used all the same.
    KeepsRecalled,
    /// Spend of the last window is charged to this one.
    WrongWindow,
    /// A changed limit is taken as if nothing were out.
    LimitForgets,
    /// A request holds what its cheapest candidate can cost.
    HoldsLess,
    /// What a request has used is not counted on the slice.
    SettlesNothing,
    /// The intent does not say what is held.
    IntentWithoutHold,
    /// After a loss of power the journal is believed.
    DoubtsNothing,
    /// One replica does not begin windows.
    ReplicaKeepsWindow,
    /// Settled twice: at the end, and once more.
    SettlesTwice,
}

impl Planted {
    pub(crate) const ALL: [Self; 14] = [
        Self::ReportsAdd,
        Self::AnswersAdd,
        Self::FenceFrees,
        Self::ForgetsSpool,
        Self::NeverCloses,
        Self::KeepsRecalled,
        Self::WrongWindow,
        Self::LimitForgets,
        Self::HoldsLess,
        Self::SettlesNothing,
        Self::IntentWithoutHold,
        Self::DoubtsNothing,
        Self::ReplicaKeepsWindow,
        Self::SettlesTwice,
    ];

    /// The properties that may find it.
    pub(crate) fn caught_by(self) -> &'static [&'static str] {
        match self {
            // Money that is not there is spent, or charged; whichever is seen first.
            Self::AnswersAdd | Self::KeepsRecalled | Self::FenceFrees | Self::ForgetsSpool => {
                &["overspend", "counted"]
            }
            Self::SettlesNothing | Self::HoldsLess => &["overspend", "counted"],
            Self::ReportsAdd | Self::WrongWindow | Self::SettlesTwice => &["counted"],
            Self::IntentWithoutHold | Self::DoubtsNothing => &["counted", "overspend"],
            Self::NeverCloses => &["nothing_lost", "refused", "counted"],
            Self::LimitForgets => &["conservation"],
            Self::ReplicaKeepsWindow => &["replicas_equal", "windows", "invariant", "conservation"],
        }
    }

    /// The bug whose `Debug` text is `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}

/// A node's word on its way. `None`: it does not arrive.
pub(crate) fn call(world: &World, mut call: LeaseCall) -> Option<LeaseCall> {
    let Some(bug) = world.plant else {
        return Some(call);
    };
    let control = world.control.borrow();
    let books = &control.state().books;
    match (bug, &mut call) {
        (Planted::ReportsAdd, LeaseCall::Report(report)) => {
            for line in &mut report.lines {
                let account = books.accounts.get(&line.budget);
                let lease = account.and_then(|account| account.book.leases.get(&report.incarnation));
                line.spent += lease.map_or(0, |lease| lease.spent);
            }
        }
        (Planted::WrongWindow, LeaseCall::Report(report)) => {
            for line in &mut report.lines {
                if let Some(account) = books.accounts.get(&line.budget) {
                    line.epoch = account.book.epoch;
                }
            }
        }
        (Planted::ForgetsSpool, LeaseCall::Closing(closing)) => {
            closing.lines.clear();
            closing.doubtful = false;
        }
        (Planted::DoubtsNothing, LeaseCall::Closing(closing)) => closing.doubtful = false,
        (Planted::NeverCloses, LeaseCall::Closing(_)) => return None,
        _ => {}
    }
    Some(call)
}

/// An answer on its way.
pub(crate) fn answer(
    world: &World,
    node: usize,
    mut heard: Result<LeaseAnswer, CallFault>,
) -> Result<LeaseAnswer, CallFault> {
    if let (Some(Planted::AnswersAdd), Ok(LeaseAnswer::Answer(answer))) = (world.plant, &mut heard) {
        let nodes = world.nodes.borrow();
        let process = nodes[node].process.as_ref();
        for grant in &mut answer.grants {
            let shelf = process.map(|process| process.desk.shelf());
            let slice = shelf.as_ref().and_then(|shelf| shelf.slices.get(&grant.budget));
            let slice = slice.filter(|slice| slice.epoch == grant.epoch);
            grant.granted += slice.map_or(0, |slice| slice.numbers().granted / 2);
        }
    }
    heard
}

/// A state after an entry.
pub(crate) fn state(world: &World, state: &mut State, entry: &Entry, replica: usize) {
    let Some(bug) = world.plant else { return };
    match (bug, &entry.command) {
        (Planted::FenceFrees, Command::FenceIncarnation(life)) => {
            state.books.release(*life, state.now);
        }
        (Planted::LimitForgets, Command::PutBudget(put)) => {
            if let Some(account) = state.books.accounts.get_mut(&put.budget.id) {
                let book = &mut Arc::make_mut(account).book;
                book.free = i128::from(book.limit) - book.settled;
            }
        }
        (Planted::ReplicaKeepsWindow, Command::RollBudgets(rolls)) if replica == 1 => {
            for roll in rolls {
                if let Some(account) = state.books.accounts.get_mut(&roll.budget) {
                    let account = Arc::make_mut(account);
                    if let Some(before) = account.past.first().cloned() {
                        account.book = before;
                    }
                }
            }
        }
        _ => {}
    }
}

/// A node that is about to obey a recall.
pub(crate) fn recalled(world: &Rc<World>, process: &Process, recall: &Recall) {
    if world.plant != Some(Planted::KeepsRecalled) {
        return;
    }
    let shelf = process.desk.shelf();
    if let Some(slice) = shelf.slices.get(&recall.budget) {
        slice.untake(recall.amount); // and it is given back from what was added
    }
}

/// What a request is thought to cost.
pub(crate) fn bounds(world: &World, bounds: &mut Bounds) {
    if world.plant == Some(Planted::HoldsLess) {
        bounds.rates.truncate(1);
    }
}

/// The intent of a request.
pub(crate) fn intent(
    world: &World,
    process: &Process,
    event: &UsageEvent,
    held: &Held,
) -> Result<(), SpoolFault> {
    if world.plant == Some(Planted::IntentWithoutHold) {
        return process.writer.intent(event);
    }
    process.writer.intent_holding(event, held)
}

/// The settlement of one part of a hold.
pub(crate) fn settle(world: &World, part: &Part, actual: i64) {
    match world.plant {
        Some(Planted::SettlesNothing) => part.slice.untake(part.amount),
        Some(Planted::SettlesTwice) => {
            part.slice.settle(part.amount, actual);
            part.slice.settle(actual, actual);
        }
        _ => part.slice.settle(part.amount, actual),
    }
}
