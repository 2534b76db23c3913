//! What is new, what is a repeat, what came too late to tell. Pure: the one rule of the replicated sums and of the billing store.
//!
//! Sequences are dense per writer and partition, so one number per writer tells a repeat from news, and a jump is lost data. Marks
//! do not live for ever ([`WRITER_KEPT_MS`]): an event that is nearly as old as that, of a writer without a mark, may be a repeat
//! whose mark is gone, and is not counted, so that nothing is ever billed twice.

use std::collections::BTreeMap;

use tollway_shared::ids::WriterId;
use tollway_shared::time::{DAY_MS, UnixMillis};

use crate::state::usage::WRITER_KEPT_MS;

/// An event of a writer without a mark is not counted once it ended this long ago: a day less than marks are kept, for clocks that
/// are not quite right.
pub const LATE_MS: i64 = WRITER_KEPT_MS - DAY_MS;

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before. So many of its writer before it never came.
    New {
        /// The sequences that were skipped.
        missing: u64,
    },
    /// Counted already.
    Repeat,
    /// Too old to be told from a repeat.
    Late,
}

/// How far each writer has been counted in one partition: what is known at its beginning, and what a stretch adds.
#[derive(Debug)]
pub struct Marks<S> {
    seen: S,
    moved: BTreeMap<WriterId, u64>,
}

impl<S: Fn(WriterId) -> Option<u64>> Marks<S> {
    /// Marks at the beginning of a stretch.
    ///
    /// - `seen`: the highest sequence counted for a writer in this partition; `None` for one that is not known.
    pub fn new(seen: S) -> Self {
        Self {
            seen,
            moved: BTreeMap::new(),
        }
    }

    /// Judges one event, and remembers it when it is new.
    ///
    /// - `now`: by whose clock an event is late.
    pub fn judge(
        &mut self,
        writer: WriterId,
        sequence: u64,
        finished_at: UnixMillis,
        now: UnixMillis,
    ) -> Verdict {
        let known = self.moved.get(&writer).copied().or_else(|| (self.seen)(writer));
        if known.is_none() && finished_at.plus_ms(LATE_MS) < now {
            return Verdict::Late;
        }
        let highest = self.moved.entry(writer).or_insert(known.unwrap_or_default());
        if sequence <= *highest {
            return Verdict::Repeat;
        }
        let missing = sequence - *highest - 1;
        *highest = sequence;
        Verdict::New { missing }
    }

    /// The marks of the writers that occurred.
    pub fn moved(self) -> BTreeMap<WriterId, u64> {
        self.moved
    }
}
