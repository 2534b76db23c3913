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
    /// The oldest end of a request in the first stretch that had events; behind a gap when that was found.
    pub oldest: Option<UnixMillis>,
    /// The newest end of a request so far.
    pub newest: UnixMillis,
}

impl Progress {
    /// The first day of which the partition has everything, when its log had lost its beginning: two days after what it had first,
    /// since events of a day may come on the next.
    pub fn whole_from(&self) -> Option<Day> {
        let oldest = self.oldest.filter(|_| self.first > 0)?;
        Some(Day(oldest.day().0.saturating_add(2)))
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
                newest: UnixMillis::default(),
            },
            |progress| Reached {
                offset: progress.next,
                newest: progress.newest,
            },
        )
    }

    /// The offset of the next record, by partition.
    pub fn offsets(&self) -> BTreeMap<i32, i64> {
        let next = |progress: &Progress| (progress.partition, progress.next);
        self.partitions.values().map(next).collect()
    }

    /// Notes that a partition goes on behind a gap.
    pub fn skip(&mut self, partition: i32, to: i64, at: UnixMillis) {
        if let Some(progress) = self.partitions.get_mut(&partition) {
            (progress.first, progress.next, progress.oldest) = (to, to, Some(at));
        }
    }

    /// Notes what has been written.
    pub fn note(&mut self, batch: &Batch<'_>) {
        let progress = self.partitions.entry(batch.partition).or_insert(Progress {
            partition: batch.partition,
            first: batch.from,
            next: batch.to,
            oldest: None,
            newest: batch.newest,
        });
        progress.oldest = progress.oldest.or(batch.oldest);
        (progress.next, progress.newest) = (batch.to, batch.newest);
        for (writer, sequence) in &batch.marks {
            self.marks.insert((batch.partition, *writer), *sequence);
        }
    }
}
