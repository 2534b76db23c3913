//! What is on disk about the incarnation in use.
//!
//! Invariant: no core sees a slice that is not in the journal, and the spool keeps every intent that the last checkpoint does not
//! cover.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use tokio::time::Instant;
use tollway_proto::lease_journal::Checkpoint;
use tollway_shared::ids::BudgetId;
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{ClosedLine, Epoch, Grant};

use super::desk::Desk;
use super::journal::Journal;
use crate::usage::Track;

/// A checkpoint is followed by so many times as long without one: with a million slices it would take all of a disk's time.
const PAUSE: u32 = 20;

/// The journal in use, and what it is kept with.
#[derive(Debug)]
pub(super) struct Written {
    folder: PathBuf,
    boot: String,
    track: Track,
    desk: Desk,
    journal: Journal,
    /// What the journal names.
    noted: BTreeSet<(BudgetId, Epoch)>,
    /// The journal lacks something: nothing is published until a checkpoint succeeds.
    behind: bool,
    /// The last checkpoint.
    last: Checkpoint,
    /// When the next one is due.
    due_at: Instant,
}

impl Written {
    /// Begins the journal of the first incarnation of this life, which holds nothing.
    pub(super) fn begin(
        folder: PathBuf,
        boot: String,
        track: Track,
        desk: Desk,
        holder: &Holder,
    ) -> io::Result<Self> {
        let segments = track.segments();
        let first = checkpoint(&boot, &track, &segments, &desk, holder);
        let journal = Journal::create(&folder, holder.incarnation(), &first)?;
        track.keep(&segments);
        Ok(Self {
            last: first,
            due_at: Instant::now(),
            folder,
            boot,
            track,
            desk,
            journal,
            noted: BTreeSet::new(),
            behind: false,
        })
    }

    /// Begins the journal of another incarnation. The one before stays as it is on disk, and with it what it does not cover.
    pub(super) fn renew(&mut self, holder: &Holder) -> io::Result<()> {
        let segments = self.track.segments();
        let first = checkpoint(&self.boot, &self.track, &segments, &self.desk, holder);
        self.journal = Journal::create(&self.folder, holder.incarnation(), &first)?;
        self.last = first;
        (self.noted, self.behind) = (BTreeSet::new(), false);
        self.publish(holder);
        Ok(())
    }

    /// Writes slices down that these grants have made, and shows them to the cores.
    pub(super) fn publish_new(&mut self, holder: &Holder, grants: &[Grant]) {
        for grant in grants {
            let place = (grant.budget.clone(), grant.epoch);
            if self.behind || self.noted.contains(&place) || holder.slice(&place.0, place.1).is_none() {
                continue;
            }
            let line = ClosedLine {
                budget: grant.budget.clone(),
                epoch: grant.epoch,
                spent: grant.spent,
            };
            match self.journal.opened(line) {
                Ok(()) => drop(self.noted.insert(place)),
                Err(fault) => self.fell_behind(&fault),
            }
        }
        self.publish(holder);
    }

    /// Writes all counters down, if any has changed and it is not too soon for how long that takes.
    ///
    /// - `alone`: no other incarnation of this life is still to be closed, so that the spool may let go of what is covered now.
    pub(super) fn checkpoint(&mut self, holder: &Holder, alone: bool) {
        let begun = Instant::now();
        if begun < self.due_at && !self.behind {
            return;
        }
        let segments = self.track.segments();
        let next = checkpoint(&self.boot, &self.track, &segments, &self.desk, holder);
        let changed = next.lines != self.last.lines || next.writers != self.last.writers;
        if changed || self.behind {
            if let Err(fault) = self.journal.checkpoint(&next) {
                self.fell_behind(&fault);
                // The spool's segments may be the room that the disk lacks: without a journal nothing is read from them.
                if alone && self.journal.void().is_ok() {
                    self.track.keep(&segments);
                }
                return;
            }
            let places = next.lines.iter().map(|line| (line.budget.clone(), line.epoch));
            (self.noted, self.behind) = (places.collect(), false);
            self.last = next;
            self.publish(holder);
        }
        self.due_at = Instant::now() + begun.elapsed() * PAUSE;
        if alone {
            self.track.keep(&segments);
        }
    }

    /// The end of every incarnation is known: no record of the spool is needed for it.
    pub(super) fn release(&self) {
        self.track.release();
    }

    fn publish(&self, holder: &Holder) {
        if !self.behind {
            self.desk.publish(holder.incarnation(), holder.slices());
        }
    }

    fn fell_behind(&mut self, fault: &io::Error) {
        if !std::mem::replace(&mut self.behind, true) {
            tracing::error!(error = %fault, "leases cannot be written down; new ones are not used");
        }
    }
}

fn checkpoint(boot: &str, track: &Track, segments: &[u64], desk: &Desk, holder: &Holder) -> Checkpoint {
    // In this order: what is set aside under a lower mark is in the lines, what is settled after the last sequences is not.
    let mark = desk.begin_checkpoint();
    let lines = holder.closing().lines;
    Checkpoint {
        boot: boot.to_owned(),
        mark,
        lines,
        writers: track.writers(segments),
    }
}
