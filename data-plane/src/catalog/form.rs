//! What kind of message of the control plane one is: how it is counted, and whether it may wait.

use metrics::counter;
use tollway_proto::push::v1::ControlMessage;
use tollway_proto::push::v1::control_message::Message as Hears;

use crate::metrics::{SNAPSHOT_CHANGES_TOTAL, SNAPSHOT_DELTAS_TOTAL, SNAPSHOT_FULLS_TOTAL};

/// In which form a new revision came, for the counters.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Whole.
    Full,
    /// As what changed.
    Delta {
        /// How many resources.
        changes: u64,
    },
}

impl Form {
    /// What `message` brings.
    pub(super) fn of(message: &ControlMessage) -> Self {
        match &message.message {
            Some(Hears::Delta(delta)) => Self::Delta {
                changes: delta.changes.len() as u64,
            },
            _ => Self::Full,
        }
    }

    /// Counts a revision that came so.
    pub(super) fn count(self) {
        match self {
            Self::Full => counter!(SNAPSHOT_FULLS_TOTAL).increment(1),
            Self::Delta { changes } => {
                counter!(SNAPSHOT_DELTAS_TOTAL).increment(1);
                counter!(SNAPSHOT_CHANGES_TOTAL).increment(changes);
            }
        }
    }
}

/// What is done at once even while a snapshot is being written.
pub(super) fn is_urgent(message: &ControlMessage) -> bool {
    matches!(
        message.message,
        Some(Hears::Stop(_) | Hears::Heartbeat(_) | Hears::Recall(_)) | None
    )
}
