//! A copy of a snapshot on its way to the disk.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tollway_proto::push::v1::Ack;
use tollway_shared::snapshot::Snapshot;

/// A copy that is being written, and what to put in force afterwards.
pub(super) struct Copying {
    pub(super) task: JoinHandle<std::io::Result<()>>,
    pub(super) waiting: Option<(Arc<Snapshot>, Ack)>,
}

/// A copy that is written, or could not be.
pub(super) struct Copied {
    pub(super) written: std::io::Result<()>,
    pub(super) waiting: Option<(Arc<Snapshot>, Ack)>,
}

/// Waits for the copy, if there is one; else for ever.
pub(super) async fn finished(copying: &mut Option<Copying>) -> Copied {
    match copying {
        Some(copying) => {
            let written = (&mut copying.task).await;
            Copied {
                written: written.unwrap_or_else(|fault| Err(std::io::Error::other(fault))),
                waiting: copying.waiting.take(),
            }
        }
        None => std::future::pending().await,
    }
}
