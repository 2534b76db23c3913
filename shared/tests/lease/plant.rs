//! Bugs that are put in on purpose, to see that the properties find them. They live here, not in the product: each spoils a
//! message or a command on its way, as the mistake would.

use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::message::{Answer, Closing, Report};

use crate::world::Node;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// A settlement is added, not merged by max.
    ReportsAdd,
    /// A grant in an answer is added, not merged by max.
    AnswersAdd,
    /// Levels are granted one by one, and stay granted when the next is refused.
    HalfPath,
    /// Fencing frees what is out, though the node may be running.
    FenceFrees,
    /// A successor closes with what was reported, not with what the spool says.
    ForgetsSpool,
    /// A recall is confirmed, and the money used all the same.
    KeepsRecalled,
    /// Spend of the last window is charged to this one.
    WrongWindow,
    /// A lowered limit is taken as if nothing were out.
    LowerForgets,
    /// A closed incarnation is forgotten at once, and its late report counts anew.
    ForgetsClosed,
    /// What a dead node has out is never given back, though its spool was read.
    NeverCloses,
    /// An old answer brings back a slice that was dropped.
    RevivesSlice,
}

/// A settlement counts on top of what is known.
pub(crate) fn add(books: &Books, report: &mut Report) {
    for line in &mut report.lines {
        let lease = books
            .accounts
            .get(&line.budget)
            .and_then(|account| account.book.leases.get(&report.incarnation));
        line.spent += lease.map_or(0, |lease| lease.spent);
    }
}

/// A grant counts on top of what is known.
pub(crate) fn add_grants(node: &Node, answer: &mut Answer) {
    let holder = node.holder();
    for grant in &mut answer.grants {
        if let Some(slice) = holder
            .as_ref()
            .and_then(|holder| holder.slice(&grant.budget, grant.epoch))
        {
            grant.granted += slice.numbers().granted;
        }
    }
}

/// What was reported is taken for everything.
pub(crate) fn forget_spool(closing: &mut Closing) {
    closing.lines.clear();
}

/// Lines of old windows are taken for the current one's.
pub(crate) fn wrong_window(books: &Books, report: &mut Report) {
    for line in &mut report.lines {
        if let Some(account) = books.accounts.get(&line.budget) {
            line.epoch = account.book.epoch;
        }
    }
}
