//! How full the spool is, and what follows from it.
//!
//! Paid traffic is shed *before* anything is lost: each running request has space for its outcome set aside, and a reserve file
//! holds real disk space that is given up when the disk is full although the spool is not.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::spool::remove_if_there;

/// Set aside per running request. An outcome is about 2 KB; attempts and labels are bounded.
pub(super) const OUTCOME_BYTES: u64 = 4096;
/// Largest reserve file.
const RESERVE_BYTES_MAX: u64 = 32 << 20;
/// Room that a disk must have beside the reserve before paid traffic may go on: for some hundred requests, so that a disk which is full to
/// the brim does not make the answer flicker.
const ROOM_BYTES_MAX: u64 = 256 << 10;
/// How large a part of the reserve that is at most.
const ROOM_PART: u64 = 4;

/// Whether paid traffic may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolState {
    /// Intents are taken.
    Open,
    /// The spool has reached its cap: the usage sink has been away, or slow, for too long.
    Full,
    /// The disk refused a write or an fsync.
    Disk,
}

impl SpoolState {
    /// Whether new paid requests must be answered with 503 `billing_unavailable`.
    pub fn sheds(self) -> bool {
        self != Self::Open
    }

    /// The name used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Full => "full",
            Self::Disk => "disk",
        }
    }
}

/// The decision, shared by every writer of the process. Reading it is two atomic loads.
#[derive(Debug)]
pub(super) struct Space {
    cap: u64,
    reserve: PathBuf,
    reserve_bytes: u64,
    full: AtomicBool,
    disk: AtomicBool,
}

impl Space {
    /// Sets the reserve file up; a disk without room for it, or for nothing beside it, sheds from the start.
    ///
    /// - `cap`: bytes that the spool may hold.
    pub(super) fn create(spool: &Path, cap: u64) -> Self {
        let space = Self {
            cap,
            reserve: spool.join("reserve"),
            reserve_bytes: (cap / 16).min(RESERVE_BYTES_MAX),
            full: AtomicBool::new(false),
            disk: AtomicBool::new(false),
        };
        if let Err(fault) = space.find_room() {
            tracing::error!(error = %fault, "no room on the disk for the usage spool and its reserve");
            space.disk_refused();
        }
        space
    }

    pub(super) fn state(&self) -> SpoolState {
        if self.disk.load(Ordering::Relaxed) {
            SpoolState::Disk
        } else if self.full.load(Ordering::Relaxed) {
            SpoolState::Full
        } else {
            SpoolState::Open
        }
    }

    pub(super) fn sheds(&self) -> bool {
        self.state().sheds()
    }

    /// Decides anew.
    ///
    /// - `held`: bytes in the spool now. `open`: requests whose outcome is still to come.
    ///
    /// Sheds from 15/16 of the cap (the last sixteenth is for what arrives between two decisions) and opens again below 3/4, so
    /// that a sink that comes back does not make the answer flicker.
    pub(super) fn decide(&self, held: u64, open: u64) {
        let promised = held.saturating_add(open.saturating_mul(OUTCOME_BYTES));
        let was = self.full.load(Ordering::Relaxed);
        let full = promised >= if was { self.cap / 4 * 3 } else { self.cap / 16 * 15 };
        if full != was {
            self.full.store(full, Ordering::Relaxed);
            if full {
                tracing::error!(
                    held,
                    open,
                    cap = self.cap,
                    "the usage spool is full: shedding paid traffic"
                );
            } else {
                tracing::info!(held, open, "the usage spool has room again");
            }
        }
    }

    /// The disk refused something: shed until [`Space::probe_disk`] finds room.
    pub(super) fn disk_refused(&self) {
        self.disk.store(true, Ordering::Relaxed);
    }

    /// Gives the reserve's space back to the disk, for the outcomes of running requests.
    pub(super) fn free_reserve(&self) {
        if let Err(fault) = std::fs::remove_file(&self.reserve) {
            tracing::debug!(error = %fault, "the reserve is already free");
        }
    }

    /// Opens again once the disk takes a whole reserve and something beside it. Called about once a second while the disk is full.
    pub(super) fn probe_disk(&self) {
        if self.disk.load(Ordering::Relaxed) && self.find_room().is_ok() {
            self.disk.store(false, Ordering::Relaxed);
            tracing::info!("the disk takes usage records again");
        }
    }

    fn fill_reserve(&self) -> io::Result<()> {
        if std::fs::metadata(&self.reserve).is_ok_and(|file| file.len() == self.reserve_bytes) {
            return Ok(());
        }
        let filled = take_room(&self.reserve, self.reserve_bytes);
        if filled.is_err() {
            let _ = std::fs::remove_file(&self.reserve); // half a reserve would only take the room that outcomes need
        }
        filled
    }

    /// Fills the reserve, and tries whether the disk has room beside it. Then it is left free.
    fn find_room(&self) -> io::Result<()> {
        self.fill_reserve()?;
        let probe = self.reserve.with_extension("probe");
        let found = take_room(&probe, (self.reserve_bytes / ROOM_PART).min(ROOM_BYTES_MAX));
        remove_if_there(&probe)?;
        found
    }
}

/// Makes a file of so many bytes that really are on the disk.
fn take_room(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let block = [0x5a_u8; 64 * 1024]; // not zeros: a file system may store those as nothing
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(block.len()).min(block.len());
        file.write_all(&block[..part])?;
        left -= part as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shedding_starts_with_room_for_running_requests_and_stops_well_below() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::create(dir.path(), 1 << 20);
        for (held, open, expected) in [
            (0, 0, SpoolState::Open),
            (900_000, 0, SpoolState::Open),
            (900_000, 30, SpoolState::Full), // 30 outcomes of 4 KiB are still to come
            (900_000, 0, SpoolState::Full),
            (800_000, 0, SpoolState::Full),
            (700_000, 0, SpoolState::Open),
            (900_000, 0, SpoolState::Open),
        ] {
            space.decide(held, open);
            assert_eq!(space.state(), expected, "held {held}, open {open}");
        }
    }

    #[test]
    fn a_disk_that_refused_is_trusted_again_after_it_took_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::create(dir.path(), 1 << 20);
        space.disk_refused();
        space.free_reserve();
        assert_eq!(space.state(), SpoolState::Disk);
        std::fs::create_dir(dir.path().join("reserve")).unwrap(); // in the way, like a full disk
        space.probe_disk();
        assert_eq!(space.state(), SpoolState::Disk);
        std::fs::remove_dir(dir.path().join("reserve")).unwrap();
        space.probe_disk();
        assert_eq!(space.state(), SpoolState::Open);
    }
}
