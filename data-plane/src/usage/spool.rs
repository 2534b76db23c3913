//! The writing side of the spool: one [`Writer`] per core, one write(2) per record, no wait for the disk.
//!
//! What it promises: a record that was taken survives `kill -9` of the process at once, and loss of power once the group fsync
//! (`sync`) has run. Sequences are handed out here, dense per partition, and only for records that are in the file.
//! What it refuses: intents while the spool or the disk is full. Outcomes are never refused; for them space is kept back. How far an
//! answer has got is written when that costs nobody anything, and left out otherwise.
//!
//! A segment in which a write failed is closed for good. So is one whose fsync failed; what was not durable of it is written again from
//! memory (`repair`), by the fsync thread and without the lock, and the segment is cut only when the disk has the copy. Outcomes
//! meanwhile go into the segment behind the copy's; intents are refused until the copy is durable.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use tollway_proto::codec::{self, Kind};
use tollway_proto::spool::{
    Held, HeldIntentRef, OutcomeRecord, ProgressRecordRef, SegmentHeader, SpoolRecordRef,
};
use tollway_proto::usage::{UsageEvent, partition_of};
use tollway_shared::ids::{RequestId, WriterId};
use tollway_shared::tokens::TokenCounts;

use super::extent::Extent;
use super::repair::{Place, Repair};
use super::segment::{self, Position};
use super::space::{Space, SpoolState};
use super::unsynced::{Unsynced, Written};

/// Outcomes kept in memory while the disk takes nothing at all. Past it an outcome is given up and its intent, which is on
/// disk, becomes an `interrupted` event at the next start.
const OUTCOMES_WAITING_MAX: usize = 10_000;

/// Of those, how many are tried again before the lock is given back.
const OUTCOMES_AT_ONCE: usize = 64;

/// Why an intent was not taken. The request must not go to a provider: 503 `billing_unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolFault {
    /// The spool has reached `usage.spool_bytes_max`.
    #[error("the usage spool is full")]
    Full,
    /// The disk refused the record; the log has its reason.
    #[error("the usage spool could not be written")]
    Disk,
}

/// One core's end of the spool. Cheap to clone; meant to be used by one thread, where its lock is never contended.
#[derive(Debug, Clone)]
pub struct Writer(Arc<Lane>);

/// What stands behind a [`Writer`].
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) extent: Arc<Extent>,
    /// Intents whose outcome is not written yet: space is kept back for each.
    open: AtomicUsize,
    /// Outcomes waiting in memory for a disk that takes nothing.
    waiting: AtomicUsize,
    intents: AtomicU64,
    outcomes: AtomicU64,
    lost: AtomicU64,
    /// An fsync has failed and none has succeeded since.
    suspect: AtomicBool,
    space: Arc<Space>,
    segment_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    at: Position,
    /// Where the segment's first record begins.
    first: u64,
    /// A write or an fsync of the file has failed: nothing may follow in it.
    closed: bool,
    /// The last try to make another file has failed.
    cramped: bool,
    /// What no fsync has covered yet.
    unsynced: Unsynced,
    /// The last sequence given out, per partition.
    sequences: Vec<u64>,
    waiting: VecDeque<UsageEvent>,
}

/// Totals of one writer since it started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneTotals {
    pub(super) open: usize,
    pub(super) intents: u64,
    pub(super) outcomes: u64,
    pub(super) lost: u64,
}

impl Lane {
    /// Makes the writer's folder and first segment.
    pub(super) fn create(
        spool: &Path,
        writer: WriterId,
        partitions: i32,
        segment_bytes: u64,
        space: Arc<Space>,
    ) -> io::Result<Self> {
        let dir = spool.join(writer.to_string());
        std::fs::create_dir_all(&dir)?;
        let sequences = vec![0; usize::try_from(partitions).unwrap_or(1).max(1)];
        let (file, at) = create_segment(&dir, writer, 1, &sequences)?;
        File::open(&dir)?.sync_all()?;
        File::open(spool)?.sync_all()?;
        Ok(Self {
            extent: Arc::new(Extent::new(writer, dir, at, at.offset)),
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            intents: AtomicU64::new(0),
            outcomes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            space,
            segment_bytes,
            inner: Mutex::new(Inner {
                file,
                at,
                first: at.offset,
                closed: false,
                cramped: false,
                unsynced: Unsynced::default(),
                sequences,
                waiting: VecDeque::new(),
            }),
        })
    }
}

impl Writer {
    pub(super) fn new(lane: Arc<Lane>) -> Self {
        Self(lane)
    }

    /// Notes that a request is about to reach a provider. Must return before the first upstream byte is sent.
    ///
    /// - `event`: as known so far; its `tokens` are what is billed if the process dies ([`SpoolRecord::Intent`]).
    ///   `writer`, `partition` and `sequence` are not read.
    /// - After `Ok` the request owes exactly one [`Writer::outcome`].
    ///
    /// [`SpoolRecord::Intent`]: tollway_proto::spool::SpoolRecord::Intent
    pub fn intent(&self, event: &UsageEvent) -> Result<(), SpoolFault> {
        self.begin(SpoolRecordRef::Intent(event))
    }

    /// The same of a request that holds leased money.
    pub fn intent_holding(&self, event: &UsageEvent, held: &Held) -> Result<(), SpoolFault> {
        self.begin(SpoolRecordRef::Held(HeldIntentRef { event, held }))
    }

    fn begin(&self, record: SpoolRecordRef<'_>) -> Result<(), SpoolFault> {
        self.note(record)?;
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.intents.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that a request whose intent was taken goes to another endpoint, as [`Writer::intent`] does. After an error the intent
    /// before it stands, and the request still owes its one outcome.
    pub fn redirected(&self, event: &UsageEvent) -> Result<(), SpoolFault> {
        self.note(SpoolRecordRef::Intent(event))
    }

    fn note(&self, record: SpoolRecordRef<'_>) -> Result<(), SpoolFault> {
        let lane = &*self.0;
        match lane.space.state() {
            SpoolState::Open => {}
            SpoolState::Full => return Err(SpoolFault::Full),
            SpoolState::Disk => return Err(SpoolFault::Disk),
        }
        if lane.suspect.load(Ordering::Relaxed) {
            return Err(SpoolFault::Disk);
        }
        let bytes = codec::encode(Kind::Spool, &record);
        let mut inner = lane.lock();
        if inner.unsynced.is_full() {
            return Err(SpoolFault::Disk);
        }
        lane.append(&mut inner, bytes, None).map_err(|fault| {
            lane.space.disk_refused();
            tracing::error!(error = %fault, "the usage spool refused an intent; shedding paid traffic");
            SpoolFault::Disk
        })
    }

    /// Notes how far the answer to a request whose intent was taken has got. One small write(2); waits for nothing.
    ///
    /// - Returns whether it was taken. It is left out while another thread has the lane, and while the disk or the spool is short of
    ///   anything that intents and outcomes need.
    pub fn progress(&self, request_id: &RequestId, tokens: TokenCounts) -> bool {
        let lane = &*self.0;
        if lane.space.sheds() || lane.suspect.load(Ordering::Relaxed) {
            return false;
        }
        let mut inner = match lane.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(), // as in `Lane::lock`
            Err(TryLockError::WouldBlock) => return false,
        };
        if inner.unsynced.is_full() || !inner.waiting.is_empty() {
            return false;
        }
        let record = ProgressRecordRef { request_id, tokens };
        let bytes = codec::encode(Kind::Spool, &SpoolRecordRef::Progress(record));
        let appended = lane.append(&mut inner, bytes, None);
        appended
            .inspect_err(|fault| {
                lane.space.disk_refused();
                tracing::error!(error = %fault, "the usage spool refused a record of progress; shedding paid traffic");
            })
            .is_ok()
    }

    /// Writes the final event of a request whose intent was taken; the shipper does the rest.
    ///
    /// Sets `writer`, `partition` and `sequence`. Never refuses: on a full disk the reserve is freed, and failing that the event
    /// waits in memory.
    pub fn outcome(&self, mut event: UsageEvent) {
        let lane = &*self.0;
        event.writer = lane.extent.writer;
        let mut inner = lane.lock();
        let _ = lane.settle_waiting(&mut inner); // what it leaves is seen next
        if !inner.waiting.is_empty() {
            return lane.wait(&mut inner, event); // behind those that came first
        }
        if let Err(fault) = lane.append_outcome(&mut inner, &mut event) {
            lane.space.disk_refused();
            tracing::error!(error = %fault, "the usage spool refused an outcome; freeing the reserve");
            lane.space.free_reserve();
            if lane.append_outcome(&mut inner, &mut event).is_err() {
                lane.wait(&mut inner, event);
            }
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside leaves whole records behind, because a record is one write: carry on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps the file for one that takes nothing, for tests.
    #[cfg(test)]
    pub(super) fn fail_next_write(&self) {
        let inner = &mut *self.lock();
        inner.file = File::open(segment::path(&self.extent.dir, inner.at.segment)).expect("it is there");
    }

    pub(super) fn totals(&self) -> LaneTotals {
        LaneTotals {
            open: self.open.load(Ordering::Relaxed),
            intents: self.intents.load(Ordering::Relaxed),
            outcomes: self.outcomes.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }

    /// Per partition the last sequence whose request is settled. Where outcomes wait in memory for their sequence, that is none that
    /// could ever be given out: their requests are settled already, and must not be settled again when they are read.
    pub(super) fn settled(&self) -> Vec<u64> {
        let inner = self.lock();
        if inner.waiting.is_empty() {
            inner.sequences.clone()
        } else {
            vec![u64::MAX; inner.sequences.len()]
        }
    }

    /// How many outcomes wait in memory.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tries again what waits in memory, if anything does. Called by the fsync thread.
    pub(super) fn retry_waiting(&self) -> io::Result<()> {
        for _ in 0..=OUTCOMES_WAITING_MAX / OUTCOMES_AT_ONCE {
            if self.waiting() == 0 {
                break;
            }
            self.settle_waiting(&mut self.lock())?;
        }
        Ok(())
    }

    fn settle_waiting(&self, inner: &mut Inner) -> io::Result<()> {
        for _ in 0..OUTCOMES_AT_ONCE {
            let Some(mut event) = inner.waiting.pop_front() else {
                break;
            };
            if let Err(fault) = self.append_outcome(inner, &mut event) {
                inner.waiting.push_front(event);
                return Err(fault);
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn wait(&self, inner: &mut Inner, event: UsageEvent) {
        if inner.waiting.len() < OUTCOMES_WAITING_MAX {
            inner.waiting.push_back(event);
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                request_id = %event.request_id,
                "an outcome was given up: the disk takes nothing; its intent is billed as interrupted at the next start"
            );
        }
    }

    fn append_outcome(&self, inner: &mut Inner, event: &mut UsageEvent) -> io::Result<()> {
        let partitions = i32::try_from(inner.sequences.len()).unwrap_or(i32::MAX);
        event.partition = partition_of(event.tenant.organization.as_str(), partitions);
        let slot = usize::try_from(event.partition).unwrap_or(0);
        event.sequence = inner.sequences[slot] + 1;
        let record = OutcomeRecord::of(event);
        let bytes = codec::encode(Kind::Spool, &SpoolRecordRef::Outcome(&record));
        self.append(inner, bytes, Some((slot, event.sequence)))?;
        inner.sequences[slot] = event.sequence;
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.outcomes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn append(&self, inner: &mut Inner, bytes: Vec<u8>, sequence: Option<(usize, u64)>) -> io::Result<()> {
        if inner.closed || inner.at.offset >= self.segment_bytes {
            self.rotate(inner)?;
        }
        if let Err(fault) = write_whole(&inner.file, inner.at.offset, &bytes) {
            inner.closed = true;
            // What could not be undone is in the file, and goes with it.
            let torn = inner.file.metadata().map_or(inner.at.offset, |file| file.len());
            self.extent.add_bytes(torn.saturating_sub(inner.at.offset));
            return Err(fault);
        }
        inner.at.offset += bytes.len() as u64;
        self.extent.add_bytes(bytes.len() as u64);
        self.extent.written.store(inner.at.packed(), Ordering::Release);
        inner.unsynced.push(Written {
            end: inner.at,
            bytes,
            sequence,
        });
        Ok(())
    }

    /// Goes on in a new segment; stays in the old one, if nothing is wrong with it, when the disk has no room for another file.
    fn rotate(&self, inner: &mut Inner) -> io::Result<()> {
        let next = inner.at.segment + 1;
        match create_segment(&self.extent.dir, self.extent.writer, next, &inner.sequences) {
            Ok((file, at)) => {
                self.extent.add_bytes(at.offset);
                (inner.file, inner.at, inner.first) = (file, at, at.offset);
                (inner.closed, inner.cramped) = (false, false);
                Ok(())
            }
            Err(fault) => {
                let _ = std::fs::remove_file(segment::path(&self.extent.dir, next));
                if !std::mem::replace(&mut inner.cramped, true) {
                    tracing::warn!(error = %fault, "the disk has no room for another usage segment");
                }
                if inner.closed { Err(fault) } else { Ok(()) }
            }
        }
    }

    /// Goes on in another segment, unless this one is empty: segments go only as a whole and once nothing is written to them, so on a
    /// disk that is full of one it would stay so. Called by the fsync thread. Returns whether it was done or need not be.
    pub(super) fn leave_segment(&self) -> bool {
        let mut inner = self.lock();
        let is_used = inner.closed || inner.at.offset > inner.first;
        if !is_used || self.suspect.load(Ordering::Relaxed) {
            return true;
        }
        let segment = inner.at.segment;
        let left = self.rotate(&mut inner).is_ok() && inner.at.segment > segment;
        if left {
            self.extent.written.store(inner.at.packed(), Ordering::Release);
        }
        left
    }

    /// Everything up to `at` is on disk for good. Called by the fsync thread.
    pub(super) fn durable(&self, at: Position) {
        self.extent.set_synced(at);
        self.suspect.store(false, Ordering::Relaxed);
        let done = self.lock().unsynced.take_until(at);
        drop(done); // after the lock
    }

    /// An fsync has failed, so whatever it was to cover may be gone although the file still shows it. Closes the segment and takes out
    /// what is to be written again, in front of whatever is written from now on. Called by the fsync thread.
    pub(super) fn set_apart(&self) -> Repair {
        self.suspect.store(true, Ordering::Relaxed);
        let mut inner = self.lock();
        let place = Place {
            after: self.extent.synced(),
            segment: inner.at.segment + 1,
        };
        inner.closed = true;
        inner.at = Position {
            segment: place.segment,
            offset: 0,
        };
        let (now, records) = (inner.sequences.clone(), std::mem::take(&mut inner.unsynced));
        drop(inner);
        Repair::new(place, &now, records)
    }

    /// A repair is done: everything up to the end of its copy is on disk for good. Called by the fsync thread.
    pub(super) fn repaired(&self, end: Position) {
        self.extent.written.fetch_max(end.packed(), Ordering::AcqRel);
        self.durable(end);
    }
}

/// Removes a file and returns how long it was.
pub(super) fn remove_if_there(path: &Path) -> io::Result<u64> {
    let removed = std::fs::metadata(path).and_then(|file| {
        std::fs::remove_file(path)?;
        Ok(file.len())
    });
    match removed {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(0),
        removed => removed,
    }
}

/// Makes a segment with its header.
pub(super) fn create_segment(
    dir: &Path,
    writer: WriterId,
    segment: u64,
    sequences: &[u64],
) -> io::Result<(File, Position)> {
    let bytes = segment_header(writer, segment, sequences);
    // Always a new file: one that failed before may not be written to again.
    let path = segment::path(dir, segment);
    remove_if_there(&path)?;
    let file = OpenOptions::new().append(true).create_new(true).open(path)?;
    write_whole(&file, 0, &bytes)?;
    let offset = bytes.len() as u64;
    Ok((file, Position { segment, offset }))
}

/// The first record of a segment.
pub(super) fn segment_header(writer: WriterId, segment: u64, sequences: &[u64]) -> Vec<u8> {
    let header = SegmentHeader {
        writer,
        segment,
        sequences: sequences.to_vec(),
    };
    codec::encode(Kind::Spool, &SpoolRecordRef::Header(&header))
}

/// Appends `bytes` with one write(2). A write that the disk takes only in part is undone, so that the file always ends with a
/// whole record; `end` is its length before.
pub(super) fn write_whole(mut file: &File, end: u64, bytes: &[u8]) -> io::Result<()> {
    loop {
        match file.write(bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(_) => {
                file.set_len(end)?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
            Err(fault) => return Err(fault),
        }
    }
}
