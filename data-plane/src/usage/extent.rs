//! How far a writer's spool has come.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tollway_shared::ids::WriterId;

use super::segment::Position;

/// What of a writer's spool is on disk, shared between its writer, the fsync thread and the shipper.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) writer: WriterId,
    pub(super) dir: PathBuf,
    /// [`Position`] after the last record written.
    pub(super) written: AtomicU64,
    /// [`Position`] up to which everything is on disk for good. The shipper reads no further.
    synced: AtomicU64,
    /// Bytes in the folder.
    bytes: AtomicU64,
    /// Segments from here on stay, delivered or not.
    kept_from: AtomicU64,
}

impl Extent {
    pub(super) fn new(writer: WriterId, dir: PathBuf, end: Position, bytes: u64) -> Self {
        Self {
            writer,
            dir,
            written: AtomicU64::new(end.packed()),
            synced: AtomicU64::new(end.packed()),
            bytes: AtomicU64::new(bytes),
            kept_from: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn kept_from(&self) -> u64 {
        self.kept_from.load(Ordering::Acquire)
    }

    pub(super) fn keep_from(&self, segment: u64) {
        self.kept_from.store(segment, Ordering::Release);
    }

    pub(super) fn written(&self) -> Position {
        Position::unpacked(self.written.load(Ordering::Acquire))
    }

    pub(super) fn synced(&self) -> Position {
        Position::unpacked(self.synced.load(Ordering::Acquire))
    }

    pub(super) fn set_synced(&self, at: Position) {
        self.synced.store(at.packed(), Ordering::Release);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn forget_bytes(&self, bytes: u64) {
        let less = |held: u64| held.saturating_sub(bytes);
        self.bytes.update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}
