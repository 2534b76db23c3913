//! The second copy of records whose fsync failed, and how it takes the place of the first: at no moment has the disk neither.
//!
//! 1. `00000003-00000001-4711.draft` is written and fsynced: it is to be segment 3, in place of all from byte 4711 of segment 1 on.
//! 2. Its name becomes `….copy`, and the folder is fsynced: from here on the copy is what counts.
//! 3. What it stands for is cut and removed, durably; then it gets its name as a segment.
//!
//! A crash before step 2 leaves the first records where they are; after it, [`settle`] does step 3 again. A draft that is found also says
//! that an fsync has failed: from its place on nothing may be believed to be on disk because a later fsync says so.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tollway_proto::spool::SpoolStart;

use super::durable::{PART, create, duplicate, sync_dir};
use super::extent::Extent;
use super::segment::{self, Cursor, Position};
use super::spool::{remove_if_there, segment_header};
use super::sync::Fsync;
use super::unsynced::Unsynced;

const DRAFT: &str = "draft";
const COPY: &str = "copy";
/// Bytes written at once.
const WRITE_BYTES: usize = 256 * 1024;

/// What a copy is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Up to here the disk has everything.
    pub(super) after: Position,
    /// The number of the copy. Those between are what it replaces.
    pub(super) segment: u64,
}

impl Place {
    fn name(self, suffix: &str) -> String {
        let Position { segment, offset } = self.after;
        format!("{:08}-{segment:08}-{offset}.{suffix}", self.segment)
    }

    fn parse(name: &str, suffix: &str) -> Option<Self> {
        let mut numbers = name.strip_suffix(suffix)?.strip_suffix('.')?.split('-');
        let mut number = || numbers.next()?.parse().ok();
        let (segment, after) = (number()?, (number()?, number()?));
        let place = Self {
            after: Position {
                segment: after.0,
                offset: after.1,
            },
            segment,
        };
        (place.name(suffix) == name).then_some(place)
    }
}

/// Records that are to be written again. They stay in memory until the disk has their copy for good.
#[derive(Debug)]
pub(super) struct Repair {
    place: Place,
    /// The last sequence before them, per partition.
    sequences: Vec<u64>,
    records: Unsynced,
    /// The end of the copy, once it counts.
    copied: Option<Position>,
}

impl Repair {
    /// - `now`: the last sequence given out, per partition, when `records` were all there was.
    pub(super) fn new(place: Place, now: &[u64], records: Unsynced) -> Self {
        Self {
            place,
            sequences: records.sequences_before(now),
            records,
            copied: None,
        }
    }

    /// Does all that is left to do; after an error it may be called again. Returns the end of the copy, which is durable.
    pub(super) fn run(&mut self, extent: &Extent, fsync: &mut Fsync) -> io::Result<Position> {
        let end = match self.copied {
            Some(end) => end,
            None => {
                let end = self.copy(extent, fsync)?;
                extent.add_bytes(end.offset);
                self.copied = Some(end);
                self.records = Unsynced::default();
                end
            }
        };
        finish(&extent.dir, self.place, fsync, |freed| extent.forget_bytes(freed))?;
        Ok(end)
    }

    fn copy(&self, extent: &Extent, fsync: &mut Fsync) -> io::Result<Position> {
        let Place { segment, .. } = self.place;
        let draft = extent.dir.join(self.place.name(DRAFT));
        let mut out = BufWriter::with_capacity(WRITE_BYTES, create(&draft)?);
        let header = segment_header(extent.writer, segment, &self.sequences);
        out.write_all(&header)?;
        let mut offset = header.len() as u64;
        for record in self.records.iter() {
            out.write_all(&record.bytes)?;
            offset += record.bytes.len() as u64;
        }
        fsync(&out.into_inner()?)?;
        std::fs::rename(&draft, extent.dir.join(self.place.name(COPY)))?;
        sync_dir(&extent.dir, fsync)?;
        Ok(Position { segment, offset })
    }
}

/// Makes a copy a segment, after what it stands for is gone for good. May be called again after an error.
///
/// - `freed`: is told of bytes as they go.
fn finish(dir: &Path, place: Place, fsync: &mut Fsync, freed: impl Fn(u64)) -> io::Result<()> {
    let Place { after, segment } = place;
    match OpenOptions::new()
        .write(true)
        .open(segment::path(dir, after.segment))
    {
        Ok(first) => {
            let bytes = first.metadata()?.len();
            if bytes >= after.offset {
                // Also when it has that length: an fsync of the cut may have failed, and only a new one means anything.
                first.set_len(after.offset)?;
                freed(bytes - after.offset);
            }
            fsync(&first)?;
        }
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    for number in segment::list(dir)? {
        if (after.segment + 1..segment).contains(&number) {
            freed(remove_if_there(&segment::path(dir, number))?);
        }
    }
    sync_dir(dir, fsync)?;
    let (copy, named) = (dir.join(place.name(COPY)), segment::path(dir, segment));
    match std::fs::rename(copy, &named) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound && named.exists() => {}
        renamed => renamed?,
    }
    sync_dir(dir, fsync)
}

/// Brings a folder in order that an earlier life left in the middle of a repair.
///
/// A copy takes its place. A draft does, too, where more is left of it than of the first records; else those stay.
///
/// - `doubts`: gets the segments that are not to be believed durable.
pub(super) fn settle(dir: &Path, doubts: &mut BTreeSet<u64>, fsync: &mut Fsync) -> io::Result<()> {
    for place in places(dir, COPY)? {
        finish(dir, place, fsync, |_| ())?;
    }
    for place in places(dir, DRAFT)? {
        let segments = segment::list(dir)?;
        doubts.extend(segments.iter().filter(|number| **number >= place.after.segment));
        let draft = dir.join(place.name(DRAFT));
        let (records, length) = whole(Cursor::open_file(&draft, 0)?)?;
        if !segments.contains(&place.segment) && records > first_records(dir, place)? {
            duplicate(&draft, length, &dir.join(place.name(COPY)), fsync)?;
            sync_dir(dir, fsync)?;
            finish(dir, place, fsync, |_| ())?;
        }
    }
    let part = |name: &str| name.strip_suffix(PART)?.strip_suffix('.')?.parse::<u64>().ok();
    doubts.extend(names(dir)?.iter().filter_map(|name| part(name)));
    Ok(())
}

/// Removes what [`settle`] has no more use for.
pub(super) fn tidy(dir: &Path) -> io::Result<()> {
    for name in names(dir)? {
        if name.ends_with(".draft") || name.ends_with(".part") {
            remove_if_there(&dir.join(name))?;
        }
    }
    Ok(())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}

fn places(dir: &Path, suffix: &str) -> io::Result<Vec<Place>> {
    let names = names(dir)?;
    Ok(names
        .iter()
        .filter_map(|name| Place::parse(name, suffix))
        .collect())
}

/// The whole records that a copy for `place` would replace.
fn first_records(dir: &Path, place: Place) -> io::Result<u64> {
    let mut records = 0;
    for number in segment::list(dir)? {
        if (place.after.segment..place.segment).contains(&number) {
            let offset = if number == place.after.segment {
                place.after.offset
            } else {
                0
            };
            let at = Position {
                segment: number,
                offset,
            };
            records += whole(Cursor::open(dir, at)?)?.0;
        }
    }
    Ok(records)
}

/// How many whole records there are, headers apart, and where the last one ends.
fn whole(mut cursor: Cursor) -> io::Result<(u64, u64)> {
    let (limit, mut records) = (cursor.file_bytes()?, 0);
    while let Some(found) = cursor.next_start(limit)? {
        records += u64::from(!matches!(found.record, SpoolStart::Header(_)));
    }
    Ok((records, cursor.valid_end()))
}
