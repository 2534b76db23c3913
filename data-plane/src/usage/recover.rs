//! What an earlier life left behind: every intent without an outcome becomes one event marked `interrupted`.
//!
//! The event goes into the spool of the writer that made the intent, with that writer's next sequence, before anything is shipped. So a
//! crash in here changes nothing: the next start finds an outcome where it would have written one. All segments are made durable first,
//! and nothing of it is shipped before. No fsync is believed on a file of which one has failed: such a file is written again.

use std::collections::{BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use tollway_proto::codec::{self, Kind};
use tollway_proto::spool::{OutcomeRecord, ProgressRecord, SpoolRecord, SpoolRecordRef};
use tollway_proto::usage::{EndState, UsageEvent, UsageSource, partition_of};
use tollway_shared::cost::{self, Charge};
use tollway_shared::ids::{RequestId, WriterId};
use tollway_shared::tokens::TokenCounts;

use super::durable;
use super::extent::Extent;
use super::repair;
use super::segment::{self, Cursor, Position};
use super::spool::{create_segment, write_whole};
use super::sync::Fsync;

/// `fault` of an event whose node died.
const FAULT: &str = "interrupted";

/// A spool that is complete: every intent in it has an outcome.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) extent: Extent,
    /// Intents that were closed just now.
    pub(super) interrupted: u64,
    /// Bytes of records that could not be read.
    pub(super) damaged_bytes: u64,
}

/// The folders of earlier writers.
pub(super) fn leftovers(spool: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(spool)? {
        let entry = entry?;
        let writer = entry.file_name().to_str().and_then(WriterId::parse);
        if writer.is_some() && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Completes one earlier writer's spool. `None` when nothing is left of it; its folder is gone then.
///
/// - `partitions`: as configured now, for the events written here.
/// - `doubts`: segments of which an fsync has failed, so that none is believed any more; kept by the caller from one try to the next.
pub(super) fn complete(
    dir: &Path,
    partitions: i32,
    doubts: &mut BTreeSet<u64>,
    fsync: &mut Fsync,
) -> io::Result<Option<Recovered>> {
    let name = dir.file_name().and_then(|name| name.to_str());
    let Some(writer) = name.and_then(WriterId::parse) else {
        return Err(io::Error::other("the folder's name is not a writer id"));
    };
    repair::settle(dir, doubts, fsync)?;
    let mut left = Left::default();
    let (mut ends, mut valid_end) = (Vec::new(), 0);
    for number in segment::list(dir)? {
        let start = Position {
            segment: number,
            offset: 0,
        };
        let mut cursor = Cursor::open(dir, start)?;
        let limit = cursor.file_bytes()?;
        while let Some(found) = cursor.next(limit)? {
            left.read(found.record);
        }
        left.damaged_bytes += cursor.take_damaged_bytes();
        if cursor.valid_end() == 0 {
            std::fs::remove_file(segment::path(dir, number))?; // not even its header is whole
            continue;
        }
        ends.push(Position {
            segment: number,
            offset: limit,
        });
        valid_end = cursor.valid_end();
    }
    let Some(last) = ends.last_mut() else {
        std::fs::remove_dir_all(dir)?;
        return Ok(None);
    };
    last.offset = valid_end; // without the torn tail
    let mut end = *last;
    for end in &ends {
        make_durable(dir, *end, doubts, fsync)?;
    }
    let mut bytes = ends.iter().map(|end| end.offset).sum();
    let sequences = left.sequences_for(partitions);
    let (damaged_bytes, events) = (left.damaged_bytes, left.interrupted(writer, partitions));
    if !events.is_empty() {
        let number = end.segment + 1;
        let added = add_segment(dir, writer, number, &sequences, &events, fsync);
        end = added.inspect_err(|_| {
            doubts.insert(number); // should it stay there
            drop(std::fs::remove_file(segment::path(dir, number)));
        })?;
        bytes += end.offset;
    }
    durable::sync_dir(dir, fsync).inspect_err(|_| {
        doubts.extend(ends.iter().map(|end| end.segment));
        doubts.insert(end.segment);
    })?;
    repair::tidy(dir)?;
    Ok(Some(Recovered {
        extent: Extent::new(writer, dir.to_owned(), end, bytes),
        interrupted: events.len() as u64,
        damaged_bytes,
    }))
}

/// Makes a segment durable up to `end`, and cuts what is behind it. One whose fsync has failed, now or in an earlier try, becomes
/// a new file: of the old one the disk may lack what memory still shows, whatever the next fsync says.
fn make_durable(dir: &Path, end: Position, doubts: &mut BTreeSet<u64>, fsync: &mut Fsync) -> io::Result<()> {
    let path = segment::path(dir, end.segment);
    if !doubts.contains(&end.segment) {
        let file = OpenOptions::new().append(true).open(&path)?;
        if file.metadata()?.len() > end.offset {
            file.set_len(end.offset)?;
        }
        match fsync(&file) {
            Ok(()) => return Ok(()),
            Err(fault) => {
                tracing::warn!(error = %fault, path = %path.display(), "fsync of an earlier usage segment failed: writing it again");
            }
        }
        doubts.insert(end.segment);
    }
    durable::duplicate(&path, end.offset, &path, fsync)?;
    doubts.remove(&end.segment);
    Ok(())
}

/// Writes events into a new segment, durably. Returns its end.
fn add_segment(
    dir: &Path,
    writer: WriterId,
    number: u64,
    sequences: &[u64],
    events: &[UsageEvent],
    fsync: &mut Fsync,
) -> io::Result<Position> {
    let (file, mut end) = create_segment(dir, writer, number, sequences)?;
    for event in events {
        let record = codec::encode(Kind::Spool, &SpoolRecordRef::Outcome(&OutcomeRecord::of(event)));
        write_whole(&file, end.offset, &record)?;
        end.offset += record.len() as u64;
    }
    fsync(&file)?;
    Ok(end)
}

/// A request without an outcome.
#[derive(Debug)]
struct Begun {
    /// Its place among the intents.
    order: u64,
    /// As its last intent has it.
    event: Box<UsageEvent>,
    /// How far its answer had got, if it had begun.
    progress: Option<TokenCounts>,
}

/// What reading a spool leaves: open intents, and how far the sequences went. Memory: the requests that ran at once.
#[derive(Debug, Default)]
struct Left {
    open: HashMap<RequestId, Begun>,
    read: u64,
    sequences: Vec<u64>,
    damaged_bytes: u64,
}

impl Left {
    fn read(&mut self, record: SpoolRecord) {
        self.read += 1;
        match record {
            SpoolRecord::Header(header) => {
                for (slot, sequence) in header.sequences.into_iter().enumerate() {
                    self.reached(slot, sequence);
                }
            }
            SpoolRecord::Intent(event) => self.begun(event),
            SpoolRecord::Held(held) => self.begun(Box::new(held.event)),
            SpoolRecord::Progress(progress) => self.moved(progress),
            SpoolRecord::Outcome(outcome) => {
                self.open.remove(&outcome.request_id);
                self.reached(usize::try_from(outcome.partition).unwrap_or(0), outcome.sequence);
            }
        }
    }

    fn begun(&mut self, event: Box<UsageEvent>) {
        let begun = Begun {
            order: self.read,
            event,
            progress: None,
        };
        self.open.insert(begun.event.request_id.clone(), begun);
    }

    fn moved(&mut self, progress: ProgressRecord) {
        if let Some(begun) = self.open.get_mut(&progress.request_id) {
            begun.progress = Some(progress.tokens);
        }
    }

    fn reached(&mut self, slot: usize, sequence: u64) {
        if self.sequences.len() <= slot {
            self.sequences.resize(slot + 1, 0);
        }
        self.sequences[slot] = self.sequences[slot].max(sequence);
    }

    /// The sequences that were given out, for as many partitions as there are and have been.
    fn sequences_for(&self, partitions: i32) -> Vec<u64> {
        let mut sequences = self.sequences.clone();
        sequences.resize(sequences.len().max(usize::try_from(partitions).unwrap_or(0)), 0);
        sequences
    }

    /// The missing events, in the order of their intents.
    fn interrupted(mut self, writer: WriterId, partitions: i32) -> Vec<UsageEvent> {
        let mut open: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_unstable_by_key(|begun| begun.order);
        let events = open.into_iter().map(|begun| {
            let partition = partition_of(begun.event.tenant.organization.as_str(), partitions);
            let slot = usize::try_from(partition).unwrap_or(0);
            self.reached(slot, 0);
            self.sequences[slot] += 1;
            closed(begun, writer, partition, self.sequences[slot])
        });
        events.collect()
    }
}

/// The event of a request that nobody saw the end of: billed for what its answer had got to, and for no less of an answer than its
/// intent expected to be billed in any case. One that had not gone out is billed nothing.
fn closed(begun: Begun, writer: WriterId, partition: i32, sequence: u64) -> UsageEvent {
    let intent = *begun.event;
    let expected = intent.tokens.completion();
    let tokens = begun.progress.map_or(intent.tokens, |so_far| {
        so_far.with_completion_of_at_least(expected)
    });
    let went_out = tokens != TokenCounts::default();
    let (charge, usage_source) = if went_out {
        (
            cost::charge_or_most(&tokens, &intent.prices),
            UsageSource::Estimated,
        )
    } else {
        (Charge::default(), UsageSource::None)
    };
    let mut event = UsageEvent {
        writer,
        partition,
        sequence,
        end: EndState::Interrupted,
        fault: Some(FAULT.into()),
        tokens,
        usage_source,
        ..intent
    };
    event.state_charge(charge);
    event
}
