//! What is in the log, as its readers see it: the ends, and the newest entries in memory.
//!
//! Invariant: an entry is in memory or on the disk, and everything not yet on the disk is in memory.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::disk::Disk;
use crate::raft::types::{EntryOf, LogIdOf, VoteOf, damaged};

/// Entries that are kept in memory although they are on the disk: what followers usually ask for.
const RECENT_ENTRIES_MAX: usize = 4_096;
/// The same, in bytes.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// The ends of the log and its newest entries.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) vote: Option<VoteOf>,
    pub(super) committed: Option<LogIdOf>,
    pub(super) purged: Option<LogIdOf>,
    last: Option<LogIdOf>,
    /// The index of the first entry, when there is one.
    first: u64,
    /// The newest entries with their sizes, without a gap up to the last.
    recent: VecDeque<(EntryOf, usize)>,
    recent_bytes: usize,
    /// Entries below this index are on the disk.
    synced: u64,
    /// Counts truncations: what the writer synced before one says nothing about the entries after it.
    pub(super) epoch: u64,
}

impl View {
    /// Reads the ends and the newest entries.
    pub(super) fn load(disk: &dyn Disk) -> io::Result<Self> {
        let stored = disk.load()?;
        let mut view = Self {
            vote: stored.vote,
            committed: stored.committed,
            purged: stored.purged,
            ..Self::default()
        };
        if let Some((low, high)) = stored.entries {
            if let Some(purged) = view.purged
                && low != purged.index + 1
            {
                return Err(damaged(format!(
                    "entry {low} does not follow purged entry {}",
                    purged.index
                )));
            }
            view.first = low;
            let recent = high.saturating_sub(RECENT_ENTRIES_MAX as u64 - 1).max(low);
            for (entry, bytes) in disk.read(recent..high + 1, usize::MAX)? {
                view.last = Some(entry.log_id);
                view.recent_bytes += bytes;
                view.recent.push_back((entry, bytes));
            }
            if view.last.map(|id| id.index) != Some(high) {
                return Err(damaged("the log's newest entries are not all there"));
            }
            view.synced = high + 1;
            view.forget();
        }
        Ok(view)
    }

    /// The last entry's id, or that of the last purged one.
    pub(super) fn last_id(&self) -> Option<LogIdOf> {
        self.last.max(self.purged)
    }

    /// Adds an entry that is not on the disk yet. An error if it would leave a gap.
    pub(super) fn push(&mut self, entry: EntryOf, bytes: usize) -> io::Result<()> {
        let index = entry.log_id.index;
        if let Some(last) = self.last_id()
            && index != last.index + 1
        {
            return Err(damaged(format!(
                "entry {index} does not follow entry {}",
                last.index
            )));
        }
        if self.last.is_none_or(|last| last.index < self.first) {
            self.first = index;
        }
        self.last = Some(entry.log_id);
        self.recent_bytes += bytes;
        self.recent.push_back((entry, bytes));
        Ok(())
    }

    /// Removes every entry after `last`.
    pub(super) fn truncate(&mut self, last: Option<LogIdOf>) {
        let end = last.map_or(0, |id| id.index + 1);
        while let Some((entry, bytes)) = self.recent.back()
            && entry.log_id.index >= end
        {
            self.recent_bytes -= bytes;
            self.recent.pop_back();
        }
        if self.last.is_some_and(|id| id.index >= end) {
            self.last = last;
        }
        self.synced = self.synced.min(end);
        self.epoch += 1;
    }

    /// Removes every entry up to `upto`, inclusive.
    pub(super) fn purge(&mut self, upto: LogIdOf) {
        while let Some((entry, bytes)) = self.recent.front()
            && entry.log_id.index <= upto.index
        {
            self.recent_bytes -= bytes;
            self.recent.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        self.first = self.first.max(upto.index + 1);
    }

    /// Notes that entries below `end` are on the disk, unless the log was truncated since `epoch`.
    pub(super) fn set_synced(&mut self, end: u64, epoch: u64) {
        if epoch == self.epoch {
            self.synced = self.synced.max(end);
            self.forget();
        }
    }

    /// What of `start..end` the log has: the part to read from the disk, and the part in memory.
    pub(super) fn range(&self, start: u64, end: u64) -> (Range<u64>, Vec<(EntryOf, usize)>) {
        let low = start.max(self.first);
        let high = end.min(self.last.map_or(0, |id| id.index + 1));
        if low >= high {
            return (0..0, Vec::new());
        }
        let in_memory = self.recent.front().map_or(high, |(entry, _)| entry.log_id.index);
        let from = low.max(in_memory);
        let recent = (from..high).map(|index| self.recent[(index - in_memory) as usize].clone());
        (low..in_memory.clamp(low, high), recent.collect())
    }

    /// Lets go of the oldest entries in memory that are on the disk, beyond what is worth keeping.
    fn forget(&mut self) {
        while (self.recent.len() > RECENT_ENTRIES_MAX || self.recent_bytes > RECENT_BYTES_MAX)
            && let Some((entry, bytes)) = self.recent.front()
            && entry.log_id.index < self.synced
        {
            self.recent_bytes -= bytes;
            self.recent.pop_front();
        }
    }
}

/// The first entries of a list whose sizes add up to at most `bytes_max`; at least one.
pub(super) fn limited(entries: Vec<(EntryOf, usize)>, bytes_max: usize) -> Vec<EntryOf> {
    let mut total = 0usize;
    entries
        .into_iter()
        .take_while(|(_, bytes)| {
            let first = total == 0;
            total = total.saturating_add(*bytes);
            first || total <= bytes_max
        })
        .map(|(entry, _)| entry)
        .collect()
}
