//! Usage records on a node's disk.
//!
//! An intent is written before the first byte goes to a provider, an outcome after the last one came. After a crash every intent
//! without an outcome becomes one event marked `interrupted`.

use serde::{Deserialize, Serialize};
use tollway_shared::ids::{RequestId, WriterId};

use crate::usage::UsageEvent;

/// A record in its stored form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SpoolRecord {
    /// The first record of every segment.
    Header(SegmentHeader),
    /// A request is about to reach a provider: its event as known so far, without a sequence.
    Intent(Box<UsageEvent>),
    /// A request has ended.
    Outcome(OutcomeRecord),
}

/// What a segment starts with, so that it can be read without the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// The writer.
    pub writer: WriterId,
    /// The segment's number within the writer, from 1.
    pub segment: u64,
    /// The last sequence given out per partition when the segment began.
    pub sequences: Vec<u64>,
}

/// The final event of a request, ready to be produced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeRecord {
    /// Closes the intent of the same id.
    pub request_id: RequestId,
    /// The partition.
    pub partition: i32,
    /// The sequence within writer and partition.
    pub sequence: u64,
    /// The event's key.
    pub organization: String,
    /// The event's headers.
    pub headers: Vec<(String, String)>,
    /// The event, as JSON.
    pub event: Vec<u8>,
}
