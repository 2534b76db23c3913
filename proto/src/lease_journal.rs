//! What a node keeps on disk about the leases of one life: a file of JSON lines, named after the incarnation.
//!
//! The first line is a [`Note::Checkpoint`]; slices that came later follow. Together with the intents and outcomes in the usage spool
//! that is enough to say, after a crash, how much that life can have spent. A last line that is cut short is void.

use serde::{Deserialize, Serialize};
use tollway_shared::ids::WriterId;
use tollway_shared::lease::message::{ClosedLine, Closing};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// All slices at one moment. It replaces what was before it.
    Checkpoint(Checkpoint),
    /// A slice that no request has used yet, with what earlier ones of its window have spent.
    Opened(ClosedLine),
    /// The life is over and this is what it spent; nothing else counts.
    Closing(Closing),
}

/// All slices of an incarnation at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The boot of the machine. After another one the disk may lack the newest records.
    pub boot: String,
    /// Counts the checkpoints of the process, from 1. [`crate::spool::Held::mark`] of what was set aside after it is not below.
    pub mark: u64,
    /// Spent or set aside.
    pub lines: Vec<ClosedLine>,
    /// Where the spool's writers were, after `lines` was taken.
    pub writers: Vec<WriterAt>,
}

/// Where one writer of the spool was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterAt {
    /// The writer.
    pub writer: WriterId,
    /// Nothing that was set aside after the checkpoint is in a segment before this.
    pub segment: u64,
    /// The last sequence that was given out, per partition: what was settled after the checkpoint has a higher one.
    pub sequences: Vec<u64>,
}
