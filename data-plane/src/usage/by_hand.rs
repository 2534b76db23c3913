//! A spool without its threads, for a simulation that drives whole clusters in one thread: whoever has it says when the disk syncs
//! and when room is made. The writers, their files and what is kept for leases are the ones of [`super::start`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use tollway_shared::ids::WriterId;

use super::segment;
use super::space::Space;
use super::spool::{Lane, Writer};
use super::sync::Syncer;
use super::track::Track;

/// The writing half of the pipeline, without a shipper.
pub struct ByHand {
    lane: Arc<Lane>,
    syncer: Syncer,
}

impl ByHand {
    /// Opens a spool for one writer. What earlier lives left in it stays there.
    ///
    /// - `bytes_max`: what it may hold before intents are refused. `segment_bytes`: when a writer begins another file.
    pub fn open(
        spool: &Path,
        writer: WriterId,
        partitions: i32,
        bytes_max: u64,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(spool)?;
        let space = Arc::new(Space::create(spool, bytes_max));
        let lane = Arc::new(Lane::create(
            spool,
            writer,
            partitions,
            segment_bytes,
            space.clone(),
        )?);
        let syncer = Syncer::new(vec![lane.clone()], space);
        Ok(Self { lane, syncer })
    }

    /// The writer.
    pub fn writer(&self) -> Writer {
        Writer::new(self.lane.clone())
    }

    /// Where it is.
    pub fn track(&self) -> Track {
        Track::of(std::slice::from_ref(&self.lane))
    }

    /// One round of the group fsync. What was written before survives a loss of power.
    pub fn sync(&mut self) {
        self.syncer.round(0);
    }

    /// Segment and bytes of it that a loss of power leaves.
    pub fn synced(&self) -> (u64, u64) {
        let at = self.lane.extent.synced();
        (at.segment, at.offset)
    }

    /// Removes segments that are delivered and that nothing keeps, as the shipper does.
    ///
    /// - `delivered`: every event before this segment is in the sink.
    pub fn remove_before(&self, delivered: u64) -> io::Result<()> {
        let dir = &self.lane.extent.dir;
        let kept = self.lane.extent.kept_from().min(delivered);
        for number in segment::list(dir)? {
            if number < kept.min(self.lane.extent.written().segment) {
                std::fs::remove_file(segment::path(dir, number))?;
            }
        }
        Ok(())
    }
}
