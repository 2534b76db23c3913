//! What a writer has written and no fsync has covered yet, kept in memory as well.
//!
//! After a failed fsync the kernel may have dropped the pages and report success the next time, so the file cannot be asked again:
//! these records are, and they go into a new segment. PURE.

use std::collections::VecDeque;

use super::segment::Position;

/// Most bytes kept. A disk that is so far behind takes no intents.
pub(super) const UNSYNCED_BYTES_MAX: usize = 32 << 20;

/// A record as it was written.
#[derive(Debug)]
pub(super) struct Written {
    /// Where it ends.
    pub(super) end: Position,
    /// Its frame.
    pub(super) bytes: Vec<u8>,
    /// Partition's slot and sequence, of an outcome.
    pub(super) sequence: Option<(usize, u64)>,
}

/// The records, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    records: VecDeque<Written>,
    bytes: usize,
}

impl Unsynced {
    pub(super) fn push(&mut self, record: Written) {
        self.bytes += record.bytes.len();
        self.records.push_back(record);
    }

    /// Takes out what ends at or before `synced`: it needs nobody's memory any more.
    pub(super) fn take_until(&mut self, synced: Position) -> VecDeque<Written> {
        let count = self.records.partition_point(|record| record.end <= synced);
        let left = self.records.split_off(count);
        let done = std::mem::replace(&mut self.records, left);
        self.bytes -= done.iter().map(|record| record.bytes.len()).sum::<usize>();
        done
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= UNSYNCED_BYTES_MAX
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Written> {
        self.records.iter()
    }

    /// The sequences of a segment that begins with these records.
    ///
    /// - `now`: the last sequence given out, per partition.
    pub(super) fn sequences_before(&self, now: &[u64]) -> Vec<u64> {
        let mut before = now.to_vec();
        for (slot, sequence) in self.records.iter().filter_map(|record| record.sequence) {
            before[slot] = before[slot].min(sequence - 1);
        }
        before
    }
}
