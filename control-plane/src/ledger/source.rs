//! Where usage events come from: the seam between the ledger and Kafka or the embedded usage log.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;

use super::rollup::Record;

/// Records per read: about ten megabytes, and enough for the log's fsync not to be what limits the ledger.
pub const RECORDS_MAX: usize = 5_000;
/// How long a read waits for more records once it has one, and at most without any.
pub const WAIT: Duration = Duration::from_millis(200);

/// Why a source gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourceFault {
    /// The log no longer holds, or never held, the offset that the ledger has reached.
    #[error(
        "partition {partition} holds offsets {low} to {high}, but the ledger has reached {reached}; was the usage log removed or cut?"
    )]
    Range {
        /// The partition.
        partition: i32,
        /// What the state says.
        reached: i64,
        /// The first offset there is.
        low: i64,
        /// The offset after the last.
        high: i64,
    },
    /// The topic is not as configured.
    #[error("topic `{topic}` {detail}")]
    Topic {
        /// The topic.
        topic: String,
        /// What is wrong and what to do.
        detail: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A usage log that can be read from any offset.
pub trait UsageSource: Send {
    /// Goes to the offset that the state has reached in each partition; 0 where it has none.
    fn seek<'a>(&'a mut self, reached: &'a BTreeMap<i32, i64>) -> BoxFuture<'a, Result<(), SourceFault>>;

    /// The next records of any partitions, in order within each: at most [`RECORDS_MAX`], after at most about [`WAIT`].
    fn read(&mut self) -> BoxFuture<'_, Result<Vec<Record>, SourceFault>>;

    /// The first offset there is in each partition; 0 where none is named.
    fn beginnings(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }

    /// Everything before these offsets is counted for good: a source that keeps the log itself may forget what it need not keep.
    fn release<'a>(&'a mut self, counted: &'a BTreeMap<i32, i64>) -> BoxFuture<'a, Result<(), SourceFault>> {
        let _ = counted;
        Box::pin(async { Ok(()) })
    }

    /// How far each partition's end is beyond what was read: events on Kafka, bytes in the embedded log.
    fn lag(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>>;
}
