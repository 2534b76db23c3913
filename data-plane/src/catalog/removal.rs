//! Removal: a node that the control plane says is not registered takes no requests until it is registered again.
//!
//! It hears of no revoked key any more, so what it has is not good for the usual time. Only the marked refusal counts, which a replica
//! gives with a majority behind it; an outage never does. It is kept on disk, for a start without the control plane.

use std::path::{Path, PathBuf};

use tollway_proto::push::{NOT_REGISTERED, REFUSAL};
use tonic::Status;

use super::Live;

/// Its presence says that this node was removed.
const FILE: &str = "removed";

/// Whether this node was removed, in memory and on disk.
#[derive(Debug)]
pub(super) struct Removal {
    live: Live,
    file: PathBuf,
}

impl Removal {
    /// As an earlier life left it in `folder`.
    pub(super) fn open(live: Live, folder: &Path) -> Self {
        let removal = Self {
            live,
            file: folder.join(FILE),
        };
        if removal.file.exists() {
            removal.begin();
        }
        removal
    }

    /// Looks at what a replica refused this node with.
    pub(super) fn refused(&self, status: &Status) {
        let cause = status.metadata().get(REFUSAL);
        if cause.is_some_and(|cause| cause == NOT_REGISTERED)
            && self.begin()
            && let Err(fault) = std::fs::write(&self.file, [])
        {
            tracing::warn!(%fault, "that this node was removed cannot be noted on disk");
        }
    }

    fn begin(&self) -> bool {
        let news = self.live.set_removed(true);
        if news {
            tracing::error!(
                "this node was removed from its cluster and takes no requests; to use it again, make a join token \
                 and run `tollway-data join` on its data folder"
            );
        }
        news
    }

    /// A replica vouches for what this node has: it is registered.
    pub(super) fn vouched(&self) {
        if self.live.set_removed(false) {
            tracing::warn!("this node is registered again and takes requests");
            if let Err(fault) = std::fs::remove_file(&self.file) {
                tracing::warn!(%fault, "that this node is registered again cannot be noted on disk");
            }
        }
    }
}
