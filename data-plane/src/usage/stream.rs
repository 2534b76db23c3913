//! One writer's spool as the shipper sees it: where it reads, what is in flight, which segments are done with.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollway_proto::codec::{self, Kind};
use tollway_proto::spool::{OutcomeRecord, SegmentHeader, SpoolRecord, SpoolRecordRef, SpoolStart};
use tollway_shared::ids::RequestId;

use super::extent::Extent;
use super::segment::{self, Cursor, Position};
use super::sink::Ticket;
use super::sync::readable;

/// The file that remembers what was delivered, so that a restart does not send all of it again. Losing it costs repeats only.
const DELIVERED_FILE: &str = "delivered";

/// What reading on gave.
pub(super) enum Next<'a> {
    /// Nothing more is durable.
    Nothing,
    /// A record that needs no shipping.
    Skipped,
    /// An outcome to hand over; the same one comes again until [`Stream::handed`].
    Outcome(Ticket, &'a OutcomeRecord),
}

/// A record that was handed over.
#[derive(Debug)]
struct Sent {
    sequence: u64,
    at: Position,
    request_id: RequestId,
    delivered: bool,
    read_at: Instant,
}

#[derive(Debug, Default)]
struct Partition {
    /// Everything up to this sequence is delivered.
    delivered: u64,
    in_flight: VecDeque<Sent>,
}

/// One writer's spool.
#[derive(Debug)]
pub(super) struct Stream {
    id: u64,
    extent: Arc<Extent>,
    finished: bool,
    cursor: Cursor,
    segment: u64,
    oldest_segment: u64,
    partitions: Vec<Partition>,
    /// Intents whose outcome is not delivered yet, and the segment they are in.
    open: HashMap<RequestId, u64>,
    /// Read, but not yet taken by the sink.
    waiting: Option<(Position, OutcomeRecord, Instant)>,
    in_flight: usize,
    noted: Vec<u64>,
}

impl Stream {
    pub(super) fn open(id: u64, extent: Arc<Extent>, finished: bool) -> io::Result<Self> {
        let oldest = segment::list(&extent.dir)?.first().copied().unwrap_or(1);
        let start = Position {
            segment: oldest,
            offset: 0,
        };
        let mut stream = Self {
            id,
            cursor: Cursor::open(&extent.dir, start)?,
            finished,
            segment: oldest,
            oldest_segment: oldest,
            partitions: Vec::new(),
            open: HashMap::new(),
            waiting: None,
            in_flight: 0,
            noted: read_delivered(&extent.dir, &extent),
            extent,
        };
        for (slot, sequence) in stream.noted.clone().into_iter().enumerate() {
            stream.partition(slot).delivered = sequence;
        }
        Ok(stream)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn recovered_bytes(&self) -> u64 {
        if self.finished { self.extent.bytes() } else { 0 }
    }

    pub(super) fn take_damaged_bytes(&mut self) -> u64 {
        self.cursor.take_damaged_bytes()
    }

    /// How long the oldest undelivered outcome has been waiting since it was read.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let sent = self
            .partitions
            .iter()
            .filter_map(|partition| partition.in_flight.front());
        let read = sent
            .map(|sent| sent.read_at)
            .chain(self.waiting.as_ref().map(|(_, _, at)| *at));
        read.min().map(|at| at.elapsed())
    }

    /// Everything written so far is delivered.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_none() && self.here() >= self.extent.written()
    }

    /// Nobody writes to it any more.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// The next record, if it is durable.
    pub(super) fn next(&mut self) -> io::Result<Next<'_>> {
        if self.waiting.is_none() {
            match self.read()? {
                None => return Ok(Next::Nothing),
                Some(false) => return Ok(Next::Skipped),
                Some(true) => {}
            }
        }
        let id = self.id;
        Ok(self.waiting.as_ref().map_or(Next::Nothing, |(_, outcome, _)| {
            let ticket = Ticket {
                stream: id,
                partition: outcome.partition,
                sequence: outcome.sequence,
            };
            Next::Outcome(ticket, outcome)
        }))
    }

    /// The sink took what [`Stream::next`] gave.
    pub(super) fn handed(&mut self) {
        let Some((at, outcome, read_at)) = self.waiting.take() else {
            return;
        };
        self.in_flight += 1;
        let slot = usize::try_from(outcome.partition).unwrap_or(0);
        self.partition(slot).in_flight.push_back(Sent {
            sequence: outcome.sequence,
            at,
            request_id: outcome.request_id,
            delivered: false,
            read_at,
        });
    }

    /// A record is safe. Returns how many became so in order with it.
    pub(super) fn delivered(&mut self, ticket: &Ticket) -> u64 {
        let slot = usize::try_from(ticket.partition).unwrap_or(0);
        let partition = self.partition(slot);
        let place = partition
            .in_flight
            .binary_search_by_key(&ticket.sequence, |sent| sent.sequence);
        let Ok(place) = place else {
            return 0; // of before a rewind
        };
        partition.in_flight[place].delivered = true;
        let mut closed = Vec::new();
        while let Some(sent) = partition.in_flight.pop_front_if(|sent| sent.delivered) {
            partition.delivered = sent.sequence;
            closed.push(sent.request_id);
        }
        self.in_flight -= closed.len();
        for request in &closed {
            self.open.remove(request);
        }
        closed.len() as u64
    }

    /// Goes back to the oldest undelivered outcome.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        let sent = self
            .partitions
            .iter()
            .filter_map(|partition| partition.in_flight.front());
        let oldest = sent
            .map(|sent| sent.at)
            .chain(self.waiting.as_ref().map(|(at, _, _)| *at))
            .min();
        for partition in &mut self.partitions {
            partition.in_flight.clear();
        }
        self.in_flight = 0;
        self.waiting = None;
        if let Some(at) = oldest {
            self.cursor = Cursor::open(&self.extent.dir, at)?;
            self.segment = at.segment;
        }
        Ok(())
    }

    /// Deletes segments that nothing needs, and the whole folder when it is finished and empty of work. Returns whether it is gone.
    pub(super) fn tidy(&mut self) -> io::Result<bool> {
        if self.finished && self.is_drained() && self.open.is_empty() {
            self.remove_all()?;
            return Ok(true);
        }
        // A full disk takes no note. What it would save is repeats; what is deleted makes room for it.
        let noted = self.note_delivered();
        let in_flight = self
            .partitions
            .iter()
            .filter_map(|partition| partition.in_flight.front());
        let needed = in_flight
            .map(|sent| sent.at.segment)
            .chain(self.waiting.as_ref().map(|(at, _, _)| at.segment))
            .chain(self.open.values().copied())
            .min()
            .map_or(self.segment, |segment| segment.min(self.segment))
            .min(self.extent.kept_from());
        while self.oldest_segment < needed {
            self.remove_oldest()?;
        }
        noted.map(|()| false)
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let path = segment::path(&self.extent.dir, self.oldest_segment);
        match std::fs::metadata(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                // In this order on the disk too: an intent must not outlive its outcome.
                File::open(&self.extent.dir)?.sync_all()?;
                self.extent.forget_bytes(file.len().min(self.extent.bytes()));
            }
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
            Err(fault) => return Err(fault),
        }
        self.oldest_segment += 1;
        Ok(())
    }

    fn remove_all(&mut self) -> io::Result<()> {
        while self.oldest_segment <= self.segment {
            self.remove_oldest()?;
        }
        std::fs::remove_dir_all(&self.extent.dir)
    }

    fn here(&self) -> Position {
        Position {
            segment: self.segment,
            offset: self.cursor.offset(),
        }
    }

    /// Reads one record; `Some(true)` when it is an outcome to ship, which then waits.
    fn read(&mut self) -> io::Result<Option<bool>> {
        let found = loop {
            let synced = self.extent.synced();
            let limit = readable(&self.extent, self.segment, || self.cursor.file_bytes())?;
            if let Some(found) = self.cursor.next_start(limit)? {
                break found;
            }
            if self.segment >= synced.segment {
                return Ok(None);
            }
            // The writer has left this segment, so its end is the end.
            (self.segment, self.cursor) = next_segment(&self.extent.dir, self.segment, synced.segment)?;
        };
        let at = Position {
            segment: self.segment,
            offset: found.start,
        };
        match found.record {
            SpoolStart::Header(_) | SpoolStart::Progress(_) => Ok(Some(false)),
            SpoolStart::Intent(intent) | SpoolStart::Held(intent) => {
                self.open.entry(intent.request_id).or_insert(self.segment); // its outcome is still to come
                Ok(Some(false))
            }
            SpoolStart::Outcome(outcome) => {
                let slot = usize::try_from(outcome.partition).unwrap_or(0);
                if outcome.sequence <= self.partition(slot).delivered {
                    self.open.remove(&outcome.request_id);
                    return Ok(Some(false));
                }
                self.waiting = Some((at, outcome, Instant::now()));
                Ok(Some(true))
            }
        }
    }

    fn partition(&mut self, slot: usize) -> &mut Partition {
        if self.partitions.len() <= slot {
            self.partitions.resize_with(slot + 1, Partition::default);
        }
        &mut self.partitions[slot]
    }

    fn note_delivered(&mut self) -> io::Result<()> {
        let now: Vec<u64> = self
            .partitions
            .iter()
            .map(|partition| partition.delivered)
            .collect();
        if now == self.noted {
            return Ok(());
        }
        let header = SegmentHeader {
            writer: self.extent.writer,
            segment: self.segment,
            sequences: now.clone(),
        };
        let bytes = codec::encode(Kind::Spool, &SpoolRecordRef::Header(&header));
        let draft = self.extent.dir.join("delivered.tmp");
        std::fs::write(&draft, bytes)?;
        std::fs::rename(&draft, self.extent.dir.join(DELIVERED_FILE))?;
        self.noted = now;
        Ok(())
    }
}

/// Opens the segment that follows. Numbers are missing where a copy stands for several.
fn next_segment(dir: &Path, after: u64, last: u64) -> io::Result<(u64, Cursor)> {
    for segment in after + 1..=last {
        match Cursor::open(dir, Position { segment, offset: 0 }) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound && segment < last => {}
            opened => return Ok((segment, opened?)),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// What an earlier life noted; nothing when it is missing, damaged or of another writer.
fn read_delivered(dir: &Path, extent: &Extent) -> Vec<u64> {
    let bytes = std::fs::read(dir.join(DELIVERED_FILE)).unwrap_or_default();
    match codec::decode(Kind::Spool, &bytes) {
        Ok(SpoolRecord::Header(header)) if header.writer == extent.writer => header.sequences,
        _ => Vec::new(),
    }
}
