//! One budget at the control plane: its terms, its current window, and the last few before it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::book::{Book, Lease};
use super::message::{Epoch, Grant, Line, Want};
use super::size;
use crate::budget::terms::Terms;
use crate::ids::{BudgetId, Incarnation};
use crate::time::UnixMillis;
use crate::window::Span;

/// Windows behind the current one that still take reports, beside those that it carries. What is out in older ones stays charged to them
/// for ever.
pub const PAST_MAX: usize = 2;
/// A counter above this is not believed, and no grant goes beyond it: sums of three stay far from overflow.
pub const COUNTER_MAX: i64 = i64::MAX / 4;

/// One budget: its terms and its windows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Account {
    /// What the budget says.
    pub terms: Terms,
    /// The current window.
    pub book: Book,
    /// The windows before, newest first: [`PAST_MAX`] of them, and those of `carries`.
    pub past: Vec<Book>,
    /// Those among them whose leases the current one was opened with, as if they were spent: nodes may still spend them.
    pub carries: BTreeSet<Epoch>,
}

impl Account {
    pub(super) fn refresh(&mut self, now: UnixMillis) {
        let limit = self.terms.limit_at(now);
        if limit != self.book.limit {
            self.book.set_limit(limit);
        }
    }

    /// The windows that are behind once the current one is.
    pub(super) fn rolled(&self, now: UnixMillis) -> Vec<Book> {
        let books = std::iter::once(&self.book).chain(&self.past).enumerate();
        books
            .filter(|(place, book)| *place < PAST_MAX || self.carries_on(book, now))
            .map(|(_, book)| book.clone())
            .collect()
    }

    /// Whether nodes have something of a window that the current one was opened with, and can spend it in the next one, too.
    fn carries_on(&self, book: &Book, now: UnixMillis) -> bool {
        self.carries.contains(&book.epoch) && book.outstanding > 0 && !book.span.over(now)
    }

    /// Starts the next window. What nodes have of windows of another cycle, they have in this one, too.
    pub(super) fn roll(&mut self, epoch: Epoch, span: Span, now: UnixMillis) {
        let past = self.rolled(span.start);
        let carried = past.iter().filter(|book| self.carries_on(book, span.start));
        let charged: i128 = carried.clone().map(|book| book.outstanding).sum();
        let charged = i64::try_from(charged).map_or(COUNTER_MAX, |charged| charged.min(COUNTER_MAX));
        self.carries = carried.map(|book| book.epoch).collect();
        self.past = past;
        self.book = Book::open(epoch, span, self.terms.limit_at(now), charged);
    }

    /// What nodes have of windows that the current one was opened with.
    pub fn carried(&self) -> i128 {
        let carried = self.past.iter().filter(|book| self.carries.contains(&book.epoch));
        carried.map(|book| book.outstanding).sum()
    }

    /// Frees what an incarnation has out, on somebody's word that it was not spent.
    pub(super) fn release(&mut self, incarnation: Incarnation) {
        for epoch in self.epochs() {
            let freed = self.change(epoch, |book| {
                let before = book.outstanding;
                if book.leases.contains_key(&incarnation) {
                    book.line(incarnation, |lease| {
                        lease.granted = lease.granted.min(lease.spent + lease.returned);
                    });
                }
                before - book.outstanding
            });
            if epoch == self.book.epoch || self.carries.contains(&epoch) {
                self.book.released += freed.unwrap_or(0);
            }
        }
    }

    pub(super) fn epochs(&self) -> Vec<Epoch> {
        let books = std::iter::once(&self.book).chain(&self.past);
        books.map(|book| book.epoch).collect()
    }

    /// Changes the book of a window. What that frees of one that the current one was opened with is free in the current one.
    pub(super) fn change<T>(&mut self, epoch: Epoch, work: impl FnOnce(&mut Book) -> T) -> Option<T> {
        let mut books = std::iter::once(&mut self.book).chain(&mut self.past);
        let book = books.find(|book| book.epoch == epoch)?;
        let before = book.settled + book.outstanding;
        let done = work(book);
        let freed = before - (book.settled + book.outstanding);
        if self.carries.contains(&epoch) {
            self.book.uncarry(freed);
        }
        Some(done)
    }

    /// Moves money from free to a lease. Says whether a waiting request got less than it wants.
    pub(super) fn lease_out(&mut self, incarnation: Incarnation, want: &Want, nodes: usize) -> bool {
        let lease = self.book.leases.get(&incarnation).cloned().unwrap_or_default();
        let lack = size::lack(&self.book, &lease, want);
        let amount = size::grant(grantable(&self.book, &lease), nodes, want, lack);
        // What is for the time without a control plane comes on top, once, and only from what nobody waits for.
        let standby = self.terms.standby(self.book.limit).saturating_sub(lease.reserve);
        let share = (grantable(&self.book, &lease) - i128::from(amount)).max(0) / (2 * nodes.max(1) as i128);
        let more = standby.clamp(0, i64::try_from(share).unwrap_or(i64::MAX));
        self.book.line(incarnation, |lease| {
            lease.granted += amount + more;
            lease.reserve += more;
        });
        want.urgent && amount < lack.wanted
    }

    /// The lease as its holder is told.
    pub(super) fn shown(&self, budget: &BudgetId, incarnation: Incarnation, short: bool) -> Grant {
        let lease = self.book.leases.get(&incarnation).cloned().unwrap_or_default();
        Grant {
            budget: budget.clone(),
            epoch: self.book.epoch,
            ends_at: self.book.span.end,
            granted: lease.granted,
            spent: lease.spent,
            returned: lease.returned,
            reserve: lease.reserve,
            open: self.book.free <= 0,
            short,
            recall: lease.recall,
            recall_amount: lease.recall_amount,
        }
    }
}

/// What may be granted of a book to a lease.
pub(super) fn grantable(book: &Book, lease: &Lease) -> i128 {
    book.free.min(i128::from(COUNTER_MAX - lease.granted)).max(0)
}

/// Takes the larger of each counter; `serial` is the report's.
pub(super) fn merge(lease: &mut Lease, line: &Line, serial: u64, now: UnixMillis) {
    // Who obeys is not silent, even if it has been told to give back more in the meantime.
    if line.recall > lease.obeyed {
        lease.recalled_at = now;
    }
    // What is held goes up and down: only the serial says which report is the newest.
    if serial > lease.heard {
        (lease.held, lease.heard) = (line.held, serial);
    }
    lease.spent = lease.spent.max(line.spent);
    lease.returned = lease.returned.max(line.returned);
    lease.seen = lease.seen.max(line.seen);
    lease.obeyed = lease.obeyed.max(line.recall);
}
