//! One window of one budget: the limit, and where every unit of it is.
//!
//! `limit = settled + outstanding + free` after every step. The three are kept, not derived, so that the check means something;
//! only [`Book::line`] and [`Book::set_limit`] and [`Book::fold`] move units between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::Epoch;
use crate::ids::Incarnation;
use crate::time::UnixMillis;
use crate::window::Span;

/// The lease of one incarnation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// Everything granted.
    pub granted: i64,
    /// Everything reported spent.
    pub spent: i64,
    /// Everything given back.
    pub returned: i64,
    /// What the holder was last known to have been told of `granted`.
    pub seen: i64,
    /// Held by requests in flight, at the last report.
    pub held: i64,
    /// The serial of that report.
    pub heard: u64,
    /// The part of `granted` that was given for the time without a control plane.
    pub reserve: i64,
    /// The newest recall, counted from 1.
    pub recall: i64,
    /// What it asks back.
    pub recall_amount: i64,
    /// The newest recall that the holder has obeyed.
    pub obeyed: i64,
    /// Since when a recall has been waited for.
    pub recalled_at: UnixMillis,
}

impl Lease {
    /// What the holder may still spend.
    pub fn outstanding(&self) -> i64 {
        (self.granted - self.spent - self.returned).max(0)
    }

    /// What the holder could give back, as far as is known.
    pub fn idle(&self) -> i64 {
        (self.outstanding() - self.held).max(0)
    }

    /// What it has been told to give back and has not answered for.
    pub fn recalled(&self) -> i64 {
        if self.obeyed >= self.recall {
            0
        } else {
            self.recall_amount.min(self.idle())
        }
    }

    /// Whether the holder is not known to have heard everything.
    pub fn untold(&self) -> bool {
        self.seen < self.granted || self.obeyed < self.recall
    }
}

/// One window of one budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Book {
    /// Its number.
    pub epoch: Epoch,
    /// Its time.
    pub span: Span,
    /// The limit in force.
    pub limit: i64,
    /// Spent for good, as far as is known.
    pub settled: i128,
    /// Leased and not settled.
    pub outstanding: i128,
    /// To be leased. Below zero after a limit was lowered under what is out, or when a request cost more than its hold.
    pub free: i128,
    /// The part of `settled` of incarnations that are closed, less what was `released`, and what is `ahead`.
    pub closed: i128,
    /// The part of `closed` that no record says was spent: charged because a disk may have lost the records.
    pub doubtful: i128,
    /// What was freed on somebody's word that it was never spent, in all. The ledger may count as much beyond what leases report.
    pub released: i128,
    /// The part of `settled` that the ledger has counted and no lease had reported.
    pub ahead: i128,
    /// Who has a lease.
    pub leases: BTreeMap<Incarnation, Lease>,
    /// The highest threshold that was told, percent.
    pub told: u8,
}

impl Book {
    /// A new window; `carried` was spent in it before it had leases.
    pub fn open(epoch: Epoch, span: Span, limit: i64, carried: i64) -> Self {
        Self {
            epoch,
            span,
            limit,
            settled: i128::from(carried),
            outstanding: 0,
            free: i128::from(limit) - i128::from(carried),
            closed: i128::from(carried),
            doubtful: 0,
            released: 0,
            ahead: 0,
            leases: BTreeMap::new(),
            told: 0,
        }
    }

    /// Changes one lease and moves what that moves.
    pub fn line(&mut self, incarnation: Incarnation, change: impl FnOnce(&mut Lease)) {
        let lease = self.leases.entry(incarnation).or_default();
        let (spent, out) = (lease.spent, lease.outstanding());
        change(lease);
        let spent = i128::from(lease.spent) - i128::from(spent);
        let out = i128::from(lease.outstanding()) - i128::from(out);
        self.settled += spent;
        self.outstanding += out;
        self.free -= spent + out;
    }

    /// Another limit; what is out stays out.
    pub fn set_limit(&mut self, limit: i64) {
        self.free += i128::from(limit) - i128::from(self.limit);
        self.limit = limit;
    }

    /// Gives back some of what the window was opened with; when negative, charges more.
    pub(super) fn uncarry(&mut self, amount: i128) {
        self.settled -= amount;
        self.closed -= amount;
        self.free += amount;
    }

    /// Ends a lease: what it spent is settled, the rest is free, or charged when in doubt.
    pub fn fold(&mut self, incarnation: Incarnation, spent: i64, doubtful: bool) {
        if !self.leases.contains_key(&incarnation) && spent == 0 {
            return;
        }
        self.line(incarnation, |lease| lease.spent = lease.spent.max(spent));
        let Some(lease) = self.leases.remove(&incarnation) else {
            return;
        };
        let out = i128::from(lease.outstanding());
        let charged = if doubtful { out } else { 0 };
        self.closed += i128::from(lease.spent) + charged;
        self.doubtful += charged;
        self.settled += charged;
        self.outstanding -= out;
        self.free += out - charged;
    }

    /// Frees what is settled and was never used.
    pub(super) fn release(&mut self, amount: i64) {
        self.uncarry(amount.into());
        self.released += i128::from(amount);
    }

    /// Settles at least what the ledger has counted, whether or not leases have reported it, as far as that may be of what was released.
    /// Spending of others that the ledger happens to see first counts twice then, at most once as much; it can be released.
    pub(super) fn count(&mut self, counted: i128) {
        let more = (counted - self.settled).min(self.released - self.ahead).max(0);
        self.uncarry(-more);
        self.ahead += more;
    }

    /// A life that was released has reported this much after all: what the ledger had counted of it is settled once.
    pub(super) fn overtake(&mut self, reported: i128) {
        let back = reported.clamp(0, self.ahead);
        self.uncarry(back);
        self.ahead -= back;
    }

    /// What does not hold, if anything.
    pub fn broken(&self) -> Option<String> {
        let sum = |part: fn(&Lease) -> i64| {
            self.leases
                .values()
                .map(|lease| i128::from(part(lease)))
                .sum::<i128>()
        };
        let (settled, outstanding) = (self.closed + sum(|lease| lease.spent), sum(Lease::outstanding));
        if i128::from(self.limit) != self.settled + self.outstanding + self.free {
            return Some(format!(
                "limit {} is not settled {} + outstanding {} + free {}",
                self.limit, self.settled, self.outstanding, self.free
            ));
        }
        if settled != self.settled || outstanding != self.outstanding {
            return Some(format!(
                "settled {} and outstanding {} are not the sums of the leases, {settled} and {outstanding}",
                self.settled, self.outstanding
            ));
        }
        let wrong = |lease: &Lease| {
            [lease.granted, lease.spent, lease.returned]
                .iter()
                .any(|counter| *counter < 0)
        };
        self.leases
            .iter()
            .find(|(_, lease)| wrong(lease))
            .map(|(incarnation, lease)| format!("a counter of {incarnation} is below zero: {lease:?}"))
    }
}
