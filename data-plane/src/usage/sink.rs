//! Where outcomes go: the seam between the shipper and Kafka or the embedded usage log.

use tollway_proto::spool::OutcomeRecord;

/// What a sink says about one record it was handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    /// Taken; a delivery of its ticket follows.
    Taken,
    /// No room now: the same record is to be handed over again later.
    Busy,
}

/// Names a record between being handed over and being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Which writer's spool, by the shipper's own numbering.
    pub(super) stream: u64,
    /// The partition.
    pub(super) partition: i32,
    /// The sequence.
    pub(super) sequence: u64,
}

/// Why a sink has to be given up and opened anew. Everything that it had not delivered is handed over again, from the disk.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SinkFault(pub(super) String);

/// Takes outcomes in order per writer and partition, and says which of them are safe.
pub(super) trait Sink: Send {
    /// Hands one record over.
    fn hand(&mut self, ticket: Ticket, record: &OutcomeRecord) -> Result<Handed, SinkFault>;

    /// Adds the tickets of records that became safe since the last call.
    fn delivered(&mut self, tickets: &mut Vec<Ticket>) -> Result<(), SinkFault>;
}

/// Opens a sink; called again after every fault.
pub(super) type Open = Box<dyn FnMut() -> Result<Box<dyn Sink>, SinkFault> + Send>;
