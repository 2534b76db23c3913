//! Where the writers are: for whoever keeps counters beside the spool and needs to know which records they cover.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tollway_proto::lease_journal::WriterAt;
use tollway_proto::spool::SpoolRecord;
use tollway_shared::ids::WriterId;

use super::segment::{self, Cursor, Position};
use super::spool::Lane;

/// The writers of this life.
#[derive(Debug, Clone)]
pub struct Track(Vec<Arc<Lane>>);

impl Track {
    pub(super) fn of(lanes: &[Arc<Lane>]) -> Self {
        Self(lanes.to_vec())
    }

    /// The segments that may be written to from now on: nothing that comes later is in one before.
    pub fn segments(&self) -> Vec<u64> {
        // What no fsync has covered may be written again, right behind what is synced.
        let lanes = self.0.iter();
        lanes.map(|lane| lane.extent.synced().segment).collect()
    }

    /// Where the writers are now.
    ///
    /// - `segments`: what [`Track::segments`] gave before.
    pub fn writers(&self, segments: &[u64]) -> Vec<WriterAt> {
        let at = |(lane, segment): (&Arc<Lane>, &u64)| WriterAt {
            writer: lane.extent.writer,
            segment: *segment,
            sequences: lane.settled(),
        };
        self.0.iter().zip(segments).map(at).collect()
    }

    /// From now on records in these segments and later ones are kept, delivered or not; those before may go.
    pub fn keep(&self, segments: &[u64]) {
        for (lane, segment) in self.0.iter().zip(segments) {
            lane.extent.keep_from(*segment);
        }
    }

    /// Everything may go.
    pub fn release(&self) {
        self.0.iter().for_each(|lane| lane.extent.keep_from(u64::MAX));
    }
}

/// Reads all that an earlier life's writer left, from a segment on. Nothing is changed.
///
/// - Errors: also when anything of it is missing or damaged.
pub fn read_left(
    spool: &Path,
    writer: WriterId,
    segment: u64,
    mut each: impl FnMut(SpoolRecord),
) -> io::Result<()> {
    let dir = spool.join(writer.to_string());
    let segments = segment::list(&dir)?;
    for (number, expected) in segments
        .iter()
        .filter(|number| **number >= segment)
        .zip(segment..)
    {
        if *number != expected {
            return Err(io::Error::other(format!(
                "segment {expected} of writer {writer} is missing"
            )));
        }
        let start = Position {
            segment: expected,
            offset: 0,
        };
        let mut cursor = Cursor::open(&dir, start)?;
        let limit = cursor.file_bytes()?;
        while let Some(found) = cursor.next(limit)? {
            each(found.record);
        }
        if cursor.take_damaged_bytes() > 0 {
            return Err(io::Error::other(format!(
                "segment {expected} of writer {writer} is damaged"
            )));
        }
    }
    Ok(())
}
