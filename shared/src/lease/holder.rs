//! A node's side, away from the hot path: its slices, what it asks, reports and gives back.
//!
//! One task of the node owns the [`Holder`] and feeds it with answers and recalls; after each it publishes [`Holder::slices`] to
//! the cores, which hold and settle on the slices themselves. A slice that nobody has used for a while is given back and, once
//! the control plane has confirmed its last counters, dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::HashMap;

use super::message::{
    Answer, Ask, ClosedLine, Closing, Confirmed, Epoch, Grant, Line, Recall, Report, Verdict, WANTS_MAX, Want,
};
use super::size::LEASE_SECONDS;
use super::slice::{Numbers, Reach, Slice};
use crate::ids::{BudgetId, Incarnation};
use crate::time::UnixMillis;

/// A slice that has been idle for this long is given back, but for its reserve.
pub const IDLE_MS: i64 = 60_000;
/// Shortest stretch over which burn is measured.
pub const METER_MS: i64 = 500;
/// A slice with less than this many seconds of burn left is topped up before a request has to wait.
pub const TOP_UP_SECONDS: i64 = 5;

/// The current slices of a node by budget: cheap to clone, and a clone never changes its entries.
pub type Slices = HashMap<BudgetId, Arc<Slice>>;

/// What a node holds under one incarnation.
#[derive(Debug)]
pub struct Holder {
    incarnation: Incarnation,
    slices: Slices,
    /// Current slices and those of windows that are behind.
    kept: BTreeMap<(BudgetId, Epoch), Kept>,
    serial: u64,
    /// Answers to asks up to here may be older than a slice that has been dropped since: they make no slice.
    barrier: u64,
    fenced: bool,
}

#[derive(Debug)]
struct Kept {
    slice: Arc<Slice>,
    meter: Meter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Meter {
    /// The last counters that the control plane has confirmed.
    acked: Option<Line>,
    /// The serial of the report that said them: what is held goes up and down, only that says which is the last.
    acked_by: u64,
    /// What was spent when burn was last measured, and when that was.
    spent: i64,
    at: UnixMillis,
    /// What was spent at the last look.
    last: i64,
    /// When it was last seen in use.
    used_at: UnixMillis,
}

/// A holder's numbers at one moment, for tests and for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HolderNumbers {
    incarnation: Incarnation,
    serial: u64,
    barrier: u64,
    fenced: bool,
    kept: Vec<(Numbers, Meter, bool)>,
}

impl Holder {
    /// A holder of nothing.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            slices: Slices::default(),
            kept: BTreeMap::new(),
            serial: 0,
            barrier: 0,
            fenced: false,
        }
    }

    /// Its name.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The current slices, for the cores.
    pub fn slices(&self) -> &Slices {
        &self.slices
    }

    /// Whether this incarnation gets nothing any more: start another, and close this one when its requests have ended.
    pub fn fenced(&self) -> bool {
        self.fenced
    }

    /// A want as it is now: what is there may have changed since it was put down.
    pub fn renewed(&self, want: Want) -> Want {
        match self.slices.get(&want.budget) {
            Some(slice) => slice.want(want.amount, want.least, want.urgent, Reach::Connected),
            None => want,
        }
    }

    /// Turns wants into an ask. Wants of several requests that wait for the same slices may go together if their amounts are
    /// added up; asks that overlap are harmless.
    pub fn ask(&mut self, wants: Vec<Want>) -> Ask {
        self.serial += 1;
        Ask {
            incarnation: self.incarnation,
            serial: self.serial,
            wants,
        }
    }

    /// Asks for what will be needed soon.
    pub fn top_ups(&mut self) -> Vec<Ask> {
        let mut wants = Vec::new();
        for slice in self.slices.values() {
            let burn = slice.numbers().burn;
            if burn > 0 && slice.room(Reach::Connected) < burn.saturating_mul(TOP_UP_SECONDS) {
                wants.push(slice.want(burn.saturating_mul(LEASE_SECONDS), 0, false, Reach::Connected));
            }
        }
        wants.sort();
        wants
            .chunks(WANTS_MAX)
            .map(|some| self.ask(some.to_vec()))
            .collect()
    }

    /// Merges an answer. Old and repeated ones are harmless.
    pub fn take(&mut self, answer: &Answer, now: UnixMillis) {
        self.take_for(&[], answer, now);
    }

    /// The same, of an ask for these wants: a refusal is one for those who want as much.
    pub fn take_for(&mut self, wants: &[Want], answer: &Answer, now: UnixMillis) {
        if answer.incarnation != self.incarnation {
            return;
        }
        let reserve = |holder: &Self, budget| {
            let slice = holder.slices.get(budget);
            slice.is_some_and(|slice| slice.numbers().reserve > 0)
        };
        // Who was refused while there was a reserve asks again, with what that was.
        let reserved = match &answer.verdict {
            Verdict::Exhausted(budget) => reserve(self, budget),
            _ => false,
        };
        for grant in &answer.grants {
            self.merge(grant, answer.serial, now);
        }
        match &answer.verdict {
            Verdict::Exhausted(budget) if reserved && !reserve(self, budget) => {
                if let Some(slice) = self.slices.get(budget) {
                    slice.forget_dry();
                }
            }
            Verdict::Exhausted(budget) => {
                if let Some(slice) = self.slices.get(budget) {
                    let want = wants.iter().find(|want| want.budget == *budget);
                    slice.set_dry(now, want.map_or(0, |want| want.least));
                }
            }
            Verdict::Fenced => self.fenced = true,
            Verdict::Granted | Verdict::Recalling(_) | Verdict::Unknown(_) => {}
        }
    }

    fn merge(&mut self, grant: &Grant, serial: u64, now: UnixMillis) {
        if let Some(kept) = self.kept.get(&(grant.budget.clone(), grant.epoch)) {
            return kept.slice.merge(grant, now);
        }
        let newer = self
            .slices
            .get(&grant.budget)
            .is_none_or(|slice| slice.epoch < grant.epoch);
        if !newer || serial <= self.barrier {
            return;
        }
        let slice = Arc::new(Slice::of(grant));
        slice.merge(grant, now);
        let meter = Meter {
            acked: None,
            acked_by: 0,
            spent: grant.spent,
            at: now,
            last: grant.spent,
            used_at: now,
        };
        drop(self.slices.insert(grant.budget.clone(), slice.clone()));
        self.kept
            .insert((grant.budget.clone(), grant.epoch), Kept { slice, meter });
    }

    /// Obeys a recall. The next report says so.
    pub fn recall(&mut self, recall: &Recall) {
        let kept = self.kept.get(&(recall.budget.clone(), recall.epoch));
        if let Some(kept) = kept.filter(|_| recall.incarnation == self.incarnation) {
            kept.slice.obey(recall.recall, recall.amount);
        }
    }

    /// What has changed since the last confirmed report, at most `most` slices of it. Measures burn, and gives back what
    /// is idle or belongs to a window that is behind.
    pub fn report(&mut self, now: UnixMillis, most: usize) -> Report {
        let mut lines = Vec::new();
        for kept in self.kept.values_mut() {
            let current = self
                .slices
                .get(&kept.slice.budget)
                .is_some_and(|slice| Arc::ptr_eq(slice, &kept.slice));
            kept.measure(now);
            if !current {
                kept.slice.give_back(i64::MAX);
            } else if kept.idle(now) {
                kept.slice.give_back(kept.slice.room(Reach::Connected));
            }
            let line = kept.slice.line();
            if lines.len() < most && kept.meter.acked.as_ref() != Some(&line) {
                lines.push(line);
            }
        }
        self.serial += 1;
        Report {
            incarnation: self.incarnation,
            serial: self.serial,
            lines,
        }
    }

    /// The control plane has applied a report: merges what it says, and drops slices with nothing left to say.
    pub fn confirmed(&mut self, report: &Report, confirmed: &Confirmed, now: UnixMillis) {
        if report.incarnation != self.incarnation || confirmed.incarnation != self.incarnation {
            return;
        }
        self.fenced |= !confirmed.live;
        for grant in &confirmed.grants {
            self.merge(grant, confirmed.serial, now);
        }
        for line in &report.lines {
            let place = (line.budget.clone(), line.epoch);
            let Some(kept) = self.kept.get_mut(&place) else {
                continue;
            };
            if kept.meter.acked_by < report.serial {
                (kept.meter.acked, kept.meter.acked_by) = (Some(line.clone()), report.serial);
            }
        }
        let done = |kept: &Kept, slices: &Slices| {
            let current = slices
                .get(&kept.slice.budget)
                .is_some_and(|slice| Arc::ptr_eq(slice, &kept.slice));
            // The room first: who takes some of it later is seen to hold it.
            let is_empty = kept.slice.room(Reach::Lost) <= 0;
            let line = kept.slice.line();
            (!current || kept.idle(now))
                && is_empty
                && line.held == 0
                && kept.meter.acked.as_ref() == Some(&line)
        };
        let gone: Vec<_> = self
            .kept
            .iter()
            .filter(|(_, kept)| done(kept, &self.slices))
            .map(|(place, _)| place.clone())
            .collect();
        for place in gone {
            if self
                .slices
                .get(&place.0)
                .is_some_and(|slice| slice.epoch == place.1)
            {
                drop(self.slices.remove(&place.0));
                self.barrier = self.serial;
            }
            self.kept.remove(&place);
        }
    }

    /// The end of this incarnation by its own hand, when its requests have ended. A request that has not counts whole.
    pub fn closing(&self) -> Closing {
        let lines = self.kept.values().map(|kept| {
            let line = kept.slice.line();
            ClosedLine {
                spent: line.spent + line.held,
                budget: line.budget,
                epoch: line.epoch,
            }
        });
        Closing {
            incarnation: self.incarnation,
            lines: lines.collect(),
            doubtful: false,
        }
    }

    /// Gives everything back that is free, for good: of no use to an incarnation that goes on. Says whether nothing is held either,
    /// so that nothing more can be spent.
    pub fn retire(&self) -> bool {
        let slices = || self.kept.values().map(|kept| &kept.slice);
        slices().for_each(|slice| {
            slice.give_back(i64::MAX);
        });
        slices().all(|slice| slice.room(Reach::Lost) <= 0 && slice.line().held == 0)
    }

    /// Its numbers.
    pub fn numbers(&self) -> HolderNumbers {
        let current = |kept: &Kept| {
            self.slices
                .get(&kept.slice.budget)
                .is_some_and(|slice| Arc::ptr_eq(slice, &kept.slice))
        };
        HolderNumbers {
            incarnation: self.incarnation,
            serial: self.serial,
            barrier: self.barrier,
            fenced: self.fenced,
            kept: self
                .kept
                .values()
                .map(|kept| (kept.slice.numbers(), kept.meter.clone(), current(kept)))
                .collect(),
        }
    }

    /// A holder with these numbers.
    pub fn at(numbers: &HolderNumbers) -> Self {
        let mut holder = Self::new(numbers.incarnation);
        (holder.serial, holder.barrier, holder.fenced) = (numbers.serial, numbers.barrier, numbers.fenced);
        for (slice, meter, current) in &numbers.kept {
            let place = (slice.budget.clone(), slice.epoch);
            let slice = Arc::new(Slice::at(slice));
            if *current {
                drop(holder.slices.insert(place.0.clone(), slice.clone()));
            }
            let meter = meter.clone();
            holder.kept.insert(place, Kept { slice, meter });
        }
        holder
    }

    /// The slice of one window, current or not.
    pub fn slice(&self, budget: &BudgetId, epoch: Epoch) -> Option<&Arc<Slice>> {
        self.kept.get(&(budget.clone(), epoch)).map(|kept| &kept.slice)
    }
}

impl Kept {
    /// Burn follows a rise by half at once and a fall by an eighth each time.
    fn measure(&mut self, now: UnixMillis) {
        let numbers = self.slice.numbers();
        let passed = now.0.saturating_sub(self.meter.at.0);
        if numbers.spent != self.meter.last || self.slice.line().held > 0 {
            (self.meter.last, self.meter.used_at) = (numbers.spent, now);
        }
        if passed < METER_MS {
            return;
        }
        let rate = i128::from(numbers.spent - self.meter.spent) * 1_000 / i128::from(passed);
        let (rate, burn) = (i64::try_from(rate).unwrap_or(i64::MAX / 2), numbers.burn);
        let next = if rate > burn {
            burn + (rate - burn + 1) / 2
        } else {
            burn - (burn - rate + 7) / 8
        };
        self.slice.set_burn(next);
        (self.meter.spent, self.meter.at) = (numbers.spent, now);
    }

    fn idle(&self, now: UnixMillis) -> bool {
        now.0.saturating_sub(self.meter.used_at.0) >= IDLE_MS
    }
}
