//! How far a store is: what it says of itself, and what the tail keeps of that in memory. Pure.

use std::collections::{BTreeMap, HashMap};

use tollway_shared::ids::WriterId;
use tollway_shared::time::{Day, UnixMillis};

use super::fold::{Batch, Reached};

/// How far one partition of the usage log is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The partition.
    pub partition: i32,
    /// The offset from which it was read without a gap. Above 0, some of what lies before was gone from the log before it was read.
    pub first: i64,
    /// The offset of the next record.
    pub next: i64,
    /// About when what it has begins: the newest end of a request in the first stretch that had events, since an event that came late
    /// says nothing of what was gone before it. Behind a gap, when that was found; or sooner, when there was nothing before the gap. It
    /// matters only where `first` is above 0.
    pub begins: Option<UnixMillis>,
    /// The newest end of a request so far; 1970 before the first.
    pub newest: UnixMillis,
}

impl Progress {
    /// The newest end of a request so far.
    pub fn newest_end(&self) -> Option<UnixMillis> {
        Some(self.newest).filter(|at| *at > UnixMillis::default())
    }

    /// The first day of which the partition has everything, when its log had lost its beginning: two days after `begins`,
    /// since events of a day may come on the next.
    pub fn whole_from(&self) -> Option<Day> {
        let begins = self.begins.filter(|_| self.first > 0)?;
        Some(Day(begins.day().0.saturating_add(2)))
    }
}

/// What a fold has to know of the store, as of its last transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    /// By partition.
    pub partitions: BTreeMap<i32, Progress>,
    /// The highest sequence by partition and writer.
    pub marks: HashMap<(i32, WriterId), u64>,
}

impl Book {
    /// Where a partition stands; at `start` when the store has nothing of it.
    pub fn reached(&self, partition: i32, start: i64) -> Reached {
        self.partitions.get(&partition).map_or(
            Reached {
                offset: start,
                ..Reached::default()
            },
            |progress| Reached {
                offset: progress.next,
                begins: progress.begins,
                newest: progress.newest,
            },
        )
    }

    /// The offset of the next record, by partition.
    pub fn offsets(&self) -> BTreeMap<i32, i64> {
        let next = |progress: &Progress| (progress.partition, progress.next);
        self.partitions.values().map(next).collect()
    }

    /// Notes that a partition goes on, or begins, behind a gap.
    pub fn skip(&mut self, partition: i32, to: i64, at: UnixMillis) {
        let newest = self.partitions.get(&partition).map(|progress| progress.newest);
        let progress = Progress {
            partition,
            first: to,
            next: to,
            begins: Some(at),
            newest: newest.unwrap_or_default(),
        };
        self.partitions.insert(partition, progress);
    }

    /// Notes what has been written.
    pub fn note(&mut self, batch: &Batch<'_>) {
        let progress = self.partitions.entry(batch.partition).or_insert(Progress {
            partition: batch.partition,
            first: batch.from,
            next: batch.to,
            begins: batch.begins,
            newest: batch.newest,
        });
        (progress.next, progress.begins, progress.newest) = (batch.to, batch.begins, batch.newest);
        for (writer, sequence) in &batch.marks {
            self.marks.insert((batch.partition, *writer), *sequence);
        }
    }
}
