//! Group fsync: one thread makes what all writers wrote durable, every few milliseconds.
//!
//! Requests never wait for it; the shipper does: nothing leaves the node that its own disk could still forget, so a sequence can
//! never come to mean two different events.
//!
//! An fsync that failed is never repeated on the same file: see `repair`. A file that cannot be opened is tried again.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::extent::Extent;
use super::repair::Repair;
use super::segment::{self, Position};
use super::space::{Space, SpoolState};
use super::spool::Lane;

/// How often a full disk is tried again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Waits before a disk that failed is tried again: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Rounds at a stop, with the first of [`BACKOFF`] between them, in which a disk that fails may still come back.
const STOP_ROUNDS_MAX: usize = 40;

/// The segment that was synced last, kept open.
type OpenSegment = Option<(u64, File)>;
/// Makes a file durable.
pub(super) type Fsync = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// A writer and what is known of its disk.
struct Synced {
    lane: Arc<Lane>,
    file: OpenSegment,
    /// What an fsync that failed has left to do.
    repair: Option<Repair>,
    /// When syncing failed, and when outcomes that wait in memory were refused.
    sync_again: Again,
    waiting_again: Again,
    said: Option<Trouble>,
}

/// Why a writer's records are not durable. Logged when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// A file cannot be opened; the fsync is still to come.
    Open,
    /// An fsync failed.
    Fsync,
    /// And so does the copy of what it was to cover.
    Repair,
}

/// When something that failed is due again.
#[derive(Debug, Default)]
struct Again(Option<(Instant, Duration)>);

impl Again {
    fn is_due(&self) -> bool {
        self.0.is_none_or(|(failed, wait)| failed.elapsed() >= wait)
    }

    fn failed(&mut self, first_wait: Duration) {
        let wait = self.0.map_or(first_wait, |(_, wait)| (wait * 2).min(BACKOFF.1));
        self.0 = Some((Instant::now(), wait));
    }
}

/// The state of the fsync thread.
pub(super) struct Syncer {
    lanes: Vec<Synced>,
    space: Arc<Space>,
    probed: Instant,
    /// An fsync failed, and what it may have dropped is not durable yet.
    sick: bool,
    fsync: Fsync,
    first_wait: Duration,
}

impl Syncer {
    pub(super) fn new(lanes: Vec<Arc<Lane>>, space: Arc<Space>) -> Self {
        let synced = |lane| Synced {
            lane,
            file: None,
            repair: None,
            sync_again: Again::default(),
            waiting_again: Again::default(),
            said: None,
        };
        Self {
            lanes: lanes.into_iter().map(synced).collect(),
            space,
            probed: Instant::now(),
            sick: false,
            fsync: Box::new(File::sync_data),
            first_wait: BACKOFF.0,
        }
    }

    /// Another disk, for tests.
    #[cfg(test)]
    pub(super) fn set_fsync(&mut self, fsync: Fsync, first_wait: Duration) {
        (self.fsync, self.first_wait) = (fsync, first_wait);
    }

    /// One round: fsync what is new, then decide whether there is room.
    ///
    /// - `held_elsewhere`: bytes of recovered spools.
    /// - Returns whether anything became durable, so that the shipper can be woken.
    pub(super) fn round(&mut self, held_elsewhere: u64) -> bool {
        let mut progress = false;
        let (mut held, mut open) = (held_elsewhere, 0);
        for synced in &mut self.lanes {
            synced.retry_waiting(self.first_wait);
            progress |= synced.round(&mut self.fsync, self.first_wait, &self.space);
            held += synced.lane.extent.bytes();
            open += synced.lane.totals().open as u64;
        }
        self.space.decide(held, open);
        // The reserve says nothing about a disk that fails to sync: a node that refuses intents must not look ready.
        let was_sick = std::mem::replace(
            &mut self.sick,
            self.lanes.iter().any(|lane| lane.repair.is_some()),
        );
        if self.sick {
            self.space.disk_refused();
        } else if was_sick || self.probed.elapsed() >= PROBE_EVERY {
            self.probed = Instant::now();
            if self.space.state() == SpoolState::Disk {
                self.leave_segments();
            }
            self.space.probe_disk();
        }
        progress
    }

    /// Lets what is full of records go once they are delivered, at the expense of the reserve.
    fn leave_segments(&self) {
        for synced in &self.lanes {
            if !synced.lane.leave_segment() {
                self.space.free_reserve();
                synced.lane.leave_segment(); // if it cannot, it is tried again with the next probe
            }
        }
    }

    /// The last rounds, when nothing is written any more: until all of it is durable, or the disk has had its chances.
    /// Returns whether it is.
    pub(super) fn finish(&mut self, held_elsewhere: u64) -> bool {
        for round in 0..STOP_ROUNDS_MAX {
            if round > 0 {
                std::thread::sleep(self.first_wait);
            }
            for synced in &mut self.lanes {
                (synced.sync_again, synced.waiting_again) = (Again::default(), Again::default());
            }
            self.round(held_elsewhere);
            if self.lanes.iter().all(Synced::is_settled) {
                return true;
            }
        }
        tracing::error!("the disk did not take all usage records: a loss of power now can lose some");
        false
    }
}

impl Synced {
    fn is_settled(&self) -> bool {
        let extent = &self.lane.extent;
        self.repair.is_none() && self.lane.waiting() == 0 && extent.written() == extent.synced()
    }

    fn retry_waiting(&mut self, first_wait: Duration) {
        if self.waiting_again.is_due() {
            match self.lane.retry_waiting() {
                Ok(()) => self.waiting_again = Again::default(),
                Err(_) => self.waiting_again.failed(first_wait), // logged when it began to wait
            }
        }
    }

    fn round(&mut self, fsync: &mut Fsync, first_wait: Duration, space: &Space) -> bool {
        if !self.sync_again.is_due() {
            return false;
        }
        match self.sync(fsync) {
            Ok(progress) => {
                self.sync_again = Again::default();
                if self.said.take().is_some() {
                    tracing::info!(writer = %self.lane.extent.writer, "usage records are durable again");
                }
                progress
            }
            Err((trouble, fault)) => {
                self.say(trouble, &fault);
                self.sync_again.failed(first_wait);
                if trouble == Trouble::Repair && fault.kind() == io::ErrorKind::StorageFull {
                    space.free_reserve();
                }
                false
            }
        }
    }

    fn sync(&mut self, fsync: &mut Fsync) -> Result<bool, (Trouble, io::Error)> {
        if self.repair.is_none() {
            match sync_extent(&self.lane.extent, &mut self.file, fsync) {
                Ok(None) => return Ok(false),
                Ok(Some(at)) => {
                    self.lane.durable(at);
                    return Ok(true);
                }
                Err((Trouble::Open, fault)) => return Err((Trouble::Open, fault)),
                Err((trouble, fault)) => {
                    self.say(trouble, &fault);
                    self.file = None;
                    self.repair = Some(self.lane.set_apart());
                }
            }
        }
        if let Some(repair) = &mut self.repair {
            let end = repair.run(&self.lane.extent, fsync);
            self.lane.repaired(end.map_err(|fault| (Trouble::Repair, fault))?);
            self.repair = None;
        }
        Ok(true)
    }

    fn say(&mut self, trouble: Trouble, fault: &io::Error) {
        if self.said.replace(trouble) == Some(trouble) {
            return;
        }
        let writer = self.lane.extent.writer;
        match trouble {
            Trouble::Open => {
                tracing::warn!(%writer, error = %fault, "a usage segment cannot be opened for its fsync yet");
            }
            Trouble::Fsync => {
                tracing::error!(%writer, error = %fault, "fsync of the usage spool failed: writing its records again");
            }
            Trouble::Repair => {
                tracing::error!(%writer, error = %fault, "usage records cannot be written again yet; shedding paid traffic");
            }
        }
    }
}

/// Fsyncs what was written since the last time; returns how far that was, if there was anything.
fn sync_extent(
    extent: &Extent,
    open: &mut OpenSegment,
    fsync: &mut Fsync,
) -> Result<Option<Position>, (Trouble, io::Error)> {
    let unopened = |fault| (Trouble::Open, fault);
    let failed = |fault| (Trouble::Fsync, fault);
    let (written, synced) = (extent.written(), extent.synced());
    if written == synced {
        return Ok(None);
    }
    for segment in synced.segment..=written.segment {
        match open {
            Some((number, file)) if *number == segment => fsync(file).map_err(failed)?,
            _ => {
                let file =
                    File::open(segment::path(&extent.dir, segment)).map_err(|fault| match fault.kind() {
                        io::ErrorKind::NotFound => failed(fault), // somebody removed it: memory has it still
                        _ => unopened(fault),
                    })?;
                fsync(&file).map_err(failed)?;
                *open = Some((segment, file));
            }
        }
    }
    if written.segment > synced.segment {
        let dir = File::open(&extent.dir).map_err(unopened)?;
        fsync(&dir).map_err(failed)?; // the new files' names
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
