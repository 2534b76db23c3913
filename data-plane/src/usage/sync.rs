//! Group fsync: one thread makes what all writers wrote durable, every few milliseconds.
//!
//! Requests never wait for it; the shipper does: nothing leaves the node that its own disk could still forget, so a sequence can
//! never come to mean two different events.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{self, Position};
use super::space::Space;
use super::spool::{Extent, Lane};

/// How often a full disk is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The segment that was synced last, kept open.
type OpenSegment = Option<(u64, File)>;

/// The state of the fsync thread.
#[derive(Debug)]
pub(super) struct Syncer {
    lanes: Vec<(Arc<Lane>, OpenSegment)>,
    space: Arc<Space>,
    probed: Instant,
}

impl Syncer {
    pub(super) fn new(lanes: Vec<Arc<Lane>>, space: Arc<Space>) -> Self {
        Self {
            lanes: lanes.into_iter().map(|lane| (lane, None)).collect(),
            space,
            probed: Instant::now(),
        }
    }

    /// One round: fsync what is new, then decide whether there is room.
    ///
    /// - `held_elsewhere`: bytes of recovered spools.
    /// - Returns whether anything became durable, so that the shipper can be woken.
    pub(super) fn round(&mut self, held_elsewhere: u64) -> bool {
        let mut progress = false;
        let (mut held, mut open) = (held_elsewhere, 0);
        for (lane, file) in &mut self.lanes {
            lane.retry_waiting();
            match sync_extent(&lane.extent, file) {
                Ok(synced) => progress |= synced,
                Err(fault) => {
                    *file = None;
                    self.space.disk_refused();
                    tracing::error!(error = %fault, "fsync of the usage spool failed");
                }
            }
            held += lane.extent.bytes();
            open += lane.totals().open as u64;
        }
        self.space.decide(held, open);
        if self.probed.elapsed() >= PROBE_EVERY {
            self.probed = Instant::now();
            self.space.probe_disk();
        }
        progress
    }
}

fn sync_extent(extent: &Extent, open: &mut OpenSegment) -> io::Result<bool> {
    let (written, synced) = (extent.written(), extent.synced());
    if written == synced {
        return Ok(false);
    }
    for segment in synced.segment..=written.segment {
        match open {
            Some((number, file)) if *number == segment => file.sync_data()?,
            _ => {
                let file = File::open(segment::path(&extent.dir, segment))?;
                file.sync_data()?;
                *open = Some((segment, file));
            }
        }
    }
    if written.segment > synced.segment {
        File::open(&extent.dir)?.sync_all()?; // the new files' names
    }
    extent.set_synced(written);
    Ok(true)
}

/// The end of a segment as far as it may be read.
pub(super) fn readable(extent: &Extent, segment: u64, file_bytes: u64) -> u64 {
    let Position {
        segment: last,
        offset,
    } = extent.synced();
    if segment == last { offset } else { file_bytes }
}
