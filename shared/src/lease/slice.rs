//! A node's slice of one budget: a few atomic counters.
//!
//! `room` is the one number that decides: `granted − spent − returned − held`. A hold takes from it by compare-and-swap and never
//! below what it may; whoever gives money up (a hold, a return) lowers `room` first and says so afterwards, whoever gets
//! money (a grant, a settlement) raises it last. So no unit is ever counted free in two places.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::message::{Epoch, Grant, Line, Want};
use crate::ids::BudgetId;
use crate::time::UnixMillis;

/// How long a node goes by an answer that says a budget is exhausted before it asks again.
pub const DRY_MS: i64 = 500;
/// How long a slice is good after its window's end by the node's clock, when the control plane says that the window is not over.
pub const GRACE_MS: i64 = 1_000;

/// Whether the control plane can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// It can.
    Connected,
    /// It cannot: reserves are open, and the window that a lease is of goes on.
    Lost,
}

/// A slice of one window of one budget.
#[derive(Debug)]
pub struct Slice {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// The window's end, if it has one.
    pub ends_at: Option<UnixMillis>,
    room: AtomicI64,
    granted: AtomicI64,
    spent: AtomicI64,
    returned: AtomicI64,
    /// What is left of the reserve; never more than the room.
    reserve: AtomicI64,
    /// The reserve granted so far.
    reserved: AtomicI64,
    /// The highest recall obeyed.
    recall: AtomicI64,
    /// Until when a lack is a refusal, unix milliseconds.
    dry_until: AtomicI64,
    /// The least that was refused: what wants less may still get it.
    dry_from: AtomicI64,
    /// Until when a request that can be clamped is, unix milliseconds.
    short_until: AtomicI64,
    /// Until when the window counts as current, unix milliseconds.
    good_until: AtomicI64,
    /// Spend per second.
    burn: AtomicI64,
}

/// A slice's numbers at one moment, for tests and for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Numbers {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// The window's end, if it has one.
    pub ends_at: Option<UnixMillis>,
    /// To be held.
    pub room: i64,
    /// Granted so far.
    pub granted: i64,
    /// Spent so far.
    pub spent: i64,
    /// Given back so far.
    pub returned: i64,
    /// For the time without a control plane.
    pub reserve: i64,
    /// Granted for it so far.
    pub reserved: i64,
    /// The highest recall obeyed.
    pub recall: i64,
    /// Until when a lack is a refusal.
    pub dry_until: UnixMillis,
    /// The least that was refused.
    pub dry_from: i64,
    /// Until when a request that can be clamped is.
    pub short_until: UnixMillis,
    /// Until when the window counts as current.
    pub good_until: UnixMillis,
    /// Spend per second.
    pub burn: i64,
}

impl Slice {
    /// A slice of what has been granted. The counters start where the grantor has them: earlier ones of this epoch, if the slice
    /// was dropped when it was idle, have all been reported.
    pub fn of(grant: &Grant) -> Self {
        let room = (grant.granted - grant.spent - grant.returned).max(0);
        // The reserve of a slice that was dropped has gone back with it.
        let new = grant.spent == 0 && grant.returned == 0;
        Self::at(&Numbers {
            budget: grant.budget.clone(),
            epoch: grant.epoch,
            ends_at: grant.ends_at,
            room,
            granted: grant.granted,
            spent: grant.spent,
            returned: grant.returned,
            reserve: if new { grant.reserve.min(room) } else { 0 },
            reserved: grant.reserve,
            // Recalls of a time when this slice was not there have nothing to take.
            recall: grant.recall,
            dry_until: UnixMillis(i64::MIN),
            dry_from: 0,
            short_until: UnixMillis(i64::MIN),
            good_until: UnixMillis(grant.ends_at.map_or(i64::MAX, |end| end.0)),
            burn: 0,
        })
    }

    /// A slice with these numbers.
    pub fn at(numbers: &Numbers) -> Self {
        Self {
            budget: numbers.budget.clone(),
            epoch: numbers.epoch,
            ends_at: numbers.ends_at,
            room: AtomicI64::new(numbers.room),
            granted: AtomicI64::new(numbers.granted),
            spent: AtomicI64::new(numbers.spent),
            returned: AtomicI64::new(numbers.returned),
            reserve: AtomicI64::new(numbers.reserve),
            reserved: AtomicI64::new(numbers.reserved),
            recall: AtomicI64::new(numbers.recall),
            dry_until: AtomicI64::new(numbers.dry_until.0),
            dry_from: AtomicI64::new(numbers.dry_from),
            short_until: AtomicI64::new(numbers.short_until.0),
            good_until: AtomicI64::new(numbers.good_until.0),
            burn: AtomicI64::new(numbers.burn),
        }
    }

    /// Its numbers; while others change them, each is right and all of them may not be of one moment.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            budget: self.budget.clone(),
            epoch: self.epoch,
            ends_at: self.ends_at,
            room: self.room.load(Acquire),
            granted: self.granted.load(Acquire),
            spent: self.spent.load(Acquire),
            returned: self.returned.load(Acquire),
            reserve: self.reserve.load(Relaxed),
            reserved: self.reserved.load(Relaxed),
            recall: self.recall.load(Relaxed),
            dry_until: UnixMillis(self.dry_until.load(Relaxed)),
            dry_from: self.dry_from.load(Relaxed),
            short_until: UnixMillis(self.short_until.load(Relaxed)),
            good_until: UnixMillis(self.good_until.load(Relaxed)),
            burn: self.burn.load(Relaxed),
        }
    }

    /// What a request may hold now.
    pub fn room(&self, reach: Reach) -> i64 {
        self.room.load(Acquire).saturating_sub(self.floor(reach))
    }

    fn floor(&self, reach: Reach) -> i64 {
        match reach {
            Reach::Connected => self.reserve.load(Relaxed),
            Reach::Lost => 0,
        }
    }

    /// Whether requests at `now` still belong to this window.
    pub fn current(&self, now: UnixMillis, reach: Reach) -> bool {
        reach == Reach::Lost || now.0 < self.good_until.load(Relaxed)
    }

    /// Whether the control plane has said lately that there is not this much more, not even at other nodes.
    pub fn dry(&self, now: UnixMillis, amount: i64) -> bool {
        lately(&self.dry_until, now) && amount >= self.dry_from.load(Relaxed)
    }

    /// Whether it has said lately that it has given all it had at hand: a request that can be clamped is, if what there is will do.
    pub fn short(&self, now: UnixMillis) -> bool {
        lately(&self.short_until, now)
    }

    /// Sets `amount` aside, if there is that much.
    pub fn take(&self, amount: i64, reach: Reach) -> bool {
        let floor = self.floor(reach);
        let less = |room: i64| room.checked_sub(amount).filter(|left| *left >= floor);
        let taken = self.room.fetch_update(AcqRel, Acquire, less);
        if let (Ok(room), Reach::Lost) = (taken, reach) {
            self.reserve.fetch_min((room - amount).max(0), AcqRel);
        }
        taken.is_ok()
    }

    /// Gives a hold back whole: nothing was sent.
    pub fn untake(&self, amount: i64) {
        self.room.fetch_add(amount, AcqRel);
    }

    /// Turns a hold into what was really spent. More than was held comes out of the room, below zero if it must.
    pub fn settle(&self, held: i64, actual: i64) {
        self.spent.fetch_add(actual, AcqRel);
        self.room.fetch_add(held.saturating_sub(actual), Release);
    }

    /// Gives up to `amount` of the room back to the control plane. Says how much.
    pub fn give_back(&self, amount: i64) -> i64 {
        let give = |room: i64| amount.min(room).max(0);
        let before = self
            .room
            .fetch_update(AcqRel, Acquire, |room| Some(room - give(room)));
        let given = before.map_or(0, give);
        self.reserve
            .fetch_min(before.map_or(0, |room| room - given).max(0), AcqRel);
        self.returned.fetch_add(given, AcqRel);
        given
    }

    /// Merges what the grantor says. An old answer changes nothing but hints.
    pub(super) fn merge(&self, grant: &Grant, now: UnixMillis) {
        let before = self.granted.fetch_max(grant.granted, AcqRel);
        self.room.fetch_add((grant.granted - before).max(0), AcqRel);
        let reserved = self.reserved.fetch_max(grant.reserve, AcqRel);
        self.reserve.fetch_add((grant.reserve - reserved).max(0), AcqRel);
        if grant.open {
            self.reserve.store(0, Relaxed);
        }
        self.obey(grant.recall, grant.recall_amount);
        if grant.granted > before {
            self.forget_dry();
            self.short_until.store(i64::MIN, Relaxed);
        }
        if grant.short {
            self.short_until.store(now.plus_ms(DRY_MS).0, Relaxed);
        }
        if self.ends_at.is_some_and(|end| end <= now) {
            self.good_until.store(now.plus_ms(GRACE_MS).0, Relaxed);
        }
    }

    /// The control plane has refused this much.
    pub(super) fn set_dry(&self, now: UnixMillis, amount: i64) {
        let from = if lately(&self.dry_until, now) {
            self.dry_from.load(Relaxed).min(amount)
        } else {
            amount
        };
        self.dry_from.store(from, Relaxed);
        self.dry_until.store(now.plus_ms(DRY_MS).0, Relaxed);
    }

    /// There is more than when it was refused.
    pub(super) fn forget_dry(&self) {
        self.dry_until.store(i64::MIN, Relaxed);
    }

    pub(super) fn set_burn(&self, burn: i64) {
        self.burn.store(burn, Relaxed);
    }

    /// Obeys a recall, once.
    pub(super) fn obey(&self, recall: i64, amount: i64) {
        if self.recall.fetch_max(recall, AcqRel) < recall {
            self.give_back(amount);
        }
    }

    /// Its counters, as they are reported.
    pub fn line(&self) -> Line {
        let numbers = self.numbers();
        let held = numbers.granted - numbers.spent - numbers.returned - numbers.room;
        Line {
            held: held.max(0),
            budget: numbers.budget,
            epoch: numbers.epoch,
            spent: numbers.spent,
            returned: numbers.returned,
            seen: numbers.granted,
            recall: numbers.recall,
        }
    }

    pub(super) fn want(&self, amount: i64, least: i64, urgent: bool, reach: Reach) -> Want {
        let numbers = self.numbers();
        Want {
            budget: numbers.budget,
            epoch: numbers.epoch,
            seen: numbers.granted,
            room: numbers.room.saturating_sub(self.floor(reach)),
            amount,
            least,
            urgent,
            burn: numbers.burn,
        }
    }
}

/// Whether it is before an end that was set at most [`DRY_MS`] ago: a clock that was put back must not make it an hour.
fn lately(until: &AtomicI64, now: UnixMillis) -> bool {
    let left = until.load(Relaxed).saturating_sub(now.0);
    0 < left && left <= DRY_MS
}
