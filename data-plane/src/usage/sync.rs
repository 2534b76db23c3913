//! Group fsync: one thread makes what all writers wrote durable, every few milliseconds.
//!
//! Requests never wait for it; the shipper does: nothing leaves the node that its own disk could still forget, so a sequence can
//! never come to mean two different events.
//!
//! An fsync that failed is never repeated on the same file: see [`Lane::rewrite`].

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{self, Position};
use super::space::Space;
use super::spool::{Extent, Lane};

/// How often a full disk is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Wait after an fsync that failed, before the new segment's.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The segment that was synced last, kept open.
type OpenSegment = Option<(u64, File)>;
/// Makes a file durable.
pub(super) type Fsync = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// A writer and what is known of its disk.
struct Synced {
    lane: Arc<Lane>,
    file: OpenSegment,
    /// A segment cut back after a fault: durable as it is.
    cut: u64,
    failed: Option<Failed>,
}

/// An fsync that failed.
struct Failed {
    at: Instant,
    /// Its records are in a new segment.
    rewritten: bool,
}

/// The state of the fsync thread.
pub(super) struct Syncer {
    lanes: Vec<Synced>,
    space: Arc<Space>,
    probed: Instant,
    /// An fsync failed, and what it may have dropped is not durable yet.
    sick: bool,
    fsync: Fsync,
    again_after: Duration,
}

impl Syncer {
    pub(super) fn new(lanes: Vec<Arc<Lane>>, space: Arc<Space>) -> Self {
        let synced = |lane| Synced {
            lane,
            file: None,
            cut: 0,
            failed: None,
        };
        Self {
            lanes: lanes.into_iter().map(synced).collect(),
            space,
            probed: Instant::now(),
            sick: false,
            fsync: Box::new(File::sync_data),
            again_after: AGAIN_AFTER,
        }
    }

    /// Another disk, tried again without a wait, for tests.
    #[cfg(test)]
    pub(super) fn set_fsync(&mut self, fsync: Fsync) {
        self.fsync = fsync;
        self.again_after = Duration::ZERO;
    }

    /// One round: fsync what is new, then decide whether there is room.
    ///
    /// - `held_elsewhere`: bytes of recovered spools.
    /// - Returns whether anything became durable, so that the shipper can be woken.
    pub(super) fn round(&mut self, held_elsewhere: u64) -> bool {
        let mut progress = false;
        let (mut held, mut open) = (held_elsewhere, 0);
        for synced in &mut self.lanes {
            synced.lane.retry_waiting();
            progress |= synced.round(&mut self.fsync, self.again_after, &self.space);
            held += synced.lane.extent.bytes();
            open += synced.lane.totals().open as u64;
        }
        self.space.decide(held, open);
        // The reserve says nothing about a disk that fails to sync: a node that refuses intents must not look ready.
        let was_sick = std::mem::replace(
            &mut self.sick,
            self.lanes.iter().any(|lane| lane.failed.is_some()),
        );
        if self.sick {
            self.space.disk_refused();
        } else if was_sick || self.probed.elapsed() >= PROBE_EVERY {
            self.probed = Instant::now();
            self.space.probe_disk();
        }
        progress
    }
}

impl Synced {
    fn round(&mut self, fsync: &mut Fsync, again_after: Duration, space: &Space) -> bool {
        if let Some(failed) = &self.failed {
            if failed.at.elapsed() < again_after {
                return false;
            }
            if !failed.rewritten && !self.rewrite() {
                return false;
            }
        }
        match sync_extent(&self.lane.extent, &mut self.file, self.cut, fsync) {
            Ok(None) => false,
            Ok(Some(at)) => {
                self.lane.durable(at);
                self.failed = None;
                true
            }
            Err(fault) => {
                tracing::error!(error = %fault, "fsync of the usage spool failed: going on in a new segment");
                space.disk_refused();
                self.rewrite();
                false
            }
        }
    }

    fn rewrite(&mut self) -> bool {
        self.file = None;
        let rewritten = self.lane.rewrite();
        self.failed = Some(Failed {
            at: Instant::now(),
            rewritten: rewritten.is_ok(),
        });
        match rewritten {
            Ok(cut) => self.cut = cut,
            Err(fault) => {
                tracing::error!(error = %fault, "usage records cannot be written again yet; they stay in memory");
                return false;
            }
        }
        true
    }
}

/// Fsyncs what was written since the last time; returns how far that was, if there was anything.
fn sync_extent(
    extent: &Extent,
    open: &mut OpenSegment,
    cut: u64,
    fsync: &mut Fsync,
) -> io::Result<Option<Position>> {
    let (written, synced) = (extent.written(), extent.synced());
    if written == synced {
        return Ok(None);
    }
    for segment in (synced.segment..=written.segment).filter(|segment| *segment != cut) {
        match open {
            Some((number, file)) if *number == segment => fsync(file)?,
            _ => {
                let file = File::open(segment::path(&extent.dir, segment))?;
                fsync(&file)?;
                *open = Some((segment, file));
            }
        }
    }
    if written.segment > synced.segment {
        File::open(&extent.dir)?.sync_all()?; // the new files' names
    }
    Ok(Some(written))
}

/// The end of a segment as far as it may be read. `file_bytes` is asked for a segment that the writer has left: most records are
/// read from the one it is in, and then it would be a system call for each.
pub(super) fn readable(
    extent: &Extent,
    segment: u64,
    file_bytes: impl FnOnce() -> io::Result<u64>,
) -> io::Result<u64> {
    let Position {
        segment: last,
        offset,
    } = extent.synced();
    if segment == last { Ok(offset) } else { file_bytes() }
}
