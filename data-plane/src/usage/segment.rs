//! Segments on disk: their names, and a cursor over their records.
//!
//! A writer's folder holds `00000001.seg`, `00000002.seg`, …: each a [`SegmentHeader`] and then intents, progress and outcomes, every
//! record in the frame of `proto::codec`. A crash can leave the last record cut short; the cursor stops in front of it. A record inside
//! that fails its checksum is passed over and counted, and never guessed at.
//!
//! [`SegmentHeader`]: tollway_proto::spool::SegmentHeader

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tollway_proto::codec::{self, CodecFault, HEADER_BYTES, Kind};
use tollway_proto::spool::{SpoolRecord, SpoolStart};

/// Bytes read at once. A record is a few kilobytes, so this is some hundred of them.
const READ_BYTES: usize = 256 * 1024;

/// A place in a writer's spool, ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// The segment, from 1.
    pub(super) segment: u64,
    /// Bytes from its start.
    pub(super) offset: u64,
}

impl Position {
    const OFFSET_BITS: u32 = 40;

    /// Both numbers in one word, so that one atomic holds them: 2^24 segments of at most 2^40 bytes.
    pub(super) fn packed(self) -> u64 {
        self.segment << Self::OFFSET_BITS | self.offset
    }

    /// The reverse of [`Position::packed`].
    pub(super) fn unpacked(word: u64) -> Self {
        Self {
            segment: word >> Self::OFFSET_BITS,
            offset: word & ((1 << Self::OFFSET_BITS) - 1),
        }
    }
}

/// The file of a segment.
pub(super) fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:08}.seg"))
}

/// The segments in a writer's folder, oldest first.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|text| text.strip_suffix(".seg")?.parse().ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

/// A record and where it lies.
#[derive(Debug)]
pub(super) struct Found<R> {
    /// Its first byte.
    pub(super) start: u64,
    /// The record.
    pub(super) record: R,
}

/// Reads one segment from front to back. Memory: one buffer of [`READ_BYTES`], or of the largest record.
#[derive(Debug)]
pub(super) struct Cursor {
    file: File,
    /// Where the next record starts.
    offset: u64,
    /// The end of the last record that was whole.
    valid_end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    damaged_bytes: u64,
}

impl Cursor {
    /// Opens the segment at a record's start.
    pub(super) fn open(dir: &Path, at: Position) -> io::Result<Self> {
        Self::open_file(&path(dir, at.segment), at.offset)
    }

    /// The same, of a file that is not named as a segment.
    pub(super) fn open_file(path: &Path, offset: u64) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset,
            valid_end: offset,
            buffer: Vec::new(),
            buffer_at: offset,
            damaged_bytes: 0,
        })
    }

    /// The next whole record that ends at or before `limit`; `None` when there is none (yet).
    pub(super) fn next(&mut self, limit: u64) -> io::Result<Option<Found<SpoolRecord>>> {
        self.next_by(limit, |frame| codec::decode(Kind::Spool, frame))
    }

    /// The same, as far as shipping needs it.
    pub(super) fn next_start(&mut self, limit: u64) -> io::Result<Option<Found<SpoolStart>>> {
        self.next_by(limit, |frame| codec::decode_start(Kind::Spool, frame))
    }

    fn next_by<R>(
        &mut self,
        limit: u64,
        decode: impl Fn(&[u8]) -> Result<R, CodecFault>,
    ) -> io::Result<Option<Found<R>>> {
        loop {
            let start = self.offset;
            let Some(head) = self.bytes(start, HEADER_BYTES, limit)? else {
                return Ok(None);
            };
            let Ok(length) = codec::frame_length(head) else {
                return Ok(None); // not a frame: nothing behind it can be trusted
            };
            let Some(frame) = self.bytes(start, length, limit)? else {
                return Ok(None);
            };
            let decoded = decode(frame);
            self.offset = start + length as u64;
            match decoded {
                Ok(record) => {
                    self.valid_end = self.offset;
                    return Ok(Some(Found { start, record }));
                }
                Err(_) => self.damaged_bytes += length as u64,
            }
        }
    }

    /// Where reading has got to.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The end of the last whole record read.
    pub(super) fn valid_end(&self) -> u64 {
        self.valid_end
    }

    /// Bytes of records that failed their checksum and were passed over, since the last call.
    pub(super) fn take_damaged_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.damaged_bytes)
    }

    /// The file's length now.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// `length` bytes at `start`, or `None` when they go past `limit`.
    fn bytes(&mut self, start: u64, length: usize, limit: u64) -> io::Result<Option<&[u8]>> {
        if start + length as u64 > limit {
            return Ok(None);
        }
        let held =
            start >= self.buffer_at && start + length as u64 <= self.buffer_at + self.buffer.len() as u64;
        if !held {
            let wanted = usize::try_from(limit - start)
                .unwrap_or(usize::MAX)
                .min(READ_BYTES.max(length));
            self.buffer.resize(wanted, 0);
            let mut filled = 0;
            while filled < wanted {
                match self
                    .file
                    .read_at(&mut self.buffer[filled..], start + filled as u64)
                {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
                    Err(fault) => return Err(fault),
                }
            }
            self.buffer.truncate(filled);
            self.buffer_at = start;
            if filled < length {
                return Ok(None);
            }
        }
        let from = usize::try_from(start - self.buffer_at).expect("inside the buffer");
        Ok(Some(&self.buffer[from..from + length]))
    }
}
