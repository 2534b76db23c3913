//! Carries outcomes from the spool to the sink, in order per writer and partition, until each is safe there.
//!
//! The disk is the queue: a sink that is away costs the memory of [`IN_FLIGHT_MAX`] records and nothing more, and after a fault
//! everything undelivered is read again. What is handed over twice carries the same sequence, which the ledger drops.
//! A segment is deleted once every outcome in it is delivered and every intent in it has a delivered outcome.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::extent::Extent;
use super::sink::{Handed, Open, Sink, SinkFault, Ticket};
use super::stream::{Next, Stream};

/// Records handed over and not yet delivered, over all writers.
const IN_FLIGHT_MAX: usize = 8192;
/// Records of one writer before the next one gets its turn.
const TURN_RECORDS: usize = 256;
/// How often segments are deleted and progress is noted.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Waits before a sink is opened again: doubling from the first to the last, each with jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Figures of the shipper, read by the metrics thread.
#[derive(Debug, Default)]
pub(super) struct ShipTotals {
    /// Outcomes that are safe in the sink.
    pub(super) delivered: AtomicU64,
    /// Times that a sink was given up.
    pub(super) faults: AtomicU64,
    /// Bytes of records that could not be read.
    pub(super) damaged_bytes: AtomicU64,
    /// Bytes in spools of earlier writers.
    pub(super) recovered_bytes: AtomicU64,
    /// Age of the oldest undelivered outcome, milliseconds.
    pub(super) oldest_ms: AtomicU64,
    /// Outcomes read and not yet delivered.
    pub(super) in_flight: AtomicU64,
}

/// The shipper of one process.
pub(super) struct Shipper {
    open: Open,
    sink: Option<Box<dyn Sink>>,
    streams: Vec<Stream>,
    next_stream: u64,
    retry_at: Instant,
    backoff: Duration,
    tidied: Instant,
    tidy_every: Duration,
    tickets: Vec<Ticket>,
    totals: Arc<ShipTotals>,
}

impl Shipper {
    pub(super) fn new(open: Open, totals: Arc<ShipTotals>) -> Self {
        Self {
            open,
            sink: None,
            streams: Vec::new(),
            next_stream: 0,
            retry_at: Instant::now(),
            backoff: BACKOFF.0,
            tidied: Instant::now(),
            tidy_every: TIDY_EVERY,
            tickets: Vec::new(),
            totals,
        }
    }

    /// Adds a spool to ship.
    ///
    /// - `finished`: nobody writes to it any more, so its folder goes when all of it is delivered.
    pub(super) fn add(&mut self, extent: Arc<Extent>, finished: bool) -> io::Result<()> {
        self.next_stream += 1;
        self.streams
            .push(Stream::open(self.next_stream, extent, finished)?);
        Ok(())
    }

    /// Does what can be done without waiting. Returns whether anything moved.
    pub(super) fn round(&mut self) -> bool {
        let moved = match self.ship() {
            Ok(moved) => moved,
            Err(fault) => {
                self.give_up(&fault);
                false
            }
        };
        if self.tidied.elapsed() >= self.tidy_every {
            self.tidy();
        }
        moved
    }

    /// Whether every outcome that was written is delivered.
    pub(super) fn idle(&self) -> bool {
        self.streams.iter().all(Stream::is_drained)
    }

    /// Everything is delivered and nobody writes any more: spools without open requests go.
    pub(super) fn finish(&mut self) {
        for stream in &mut self.streams {
            stream.finish();
        }
        self.tidy();
    }

    /// Ends the wait after a fault, for tests.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        self.retry_at = Instant::now();
    }

    fn ship(&mut self) -> Result<bool, SinkFault> {
        if self.sink.is_none() {
            if Instant::now() < self.retry_at {
                return Ok(false);
            }
            self.sink = Some((self.open)()?);
        }
        let Some(sink) = self.sink.as_deref_mut() else {
            return Ok(false);
        };
        let mut moved = false;
        let mut in_flight: usize = self.streams.iter().map(Stream::in_flight).sum();
        for stream in &mut self.streams {
            for _ in 0..TURN_RECORDS {
                if in_flight >= IN_FLIGHT_MAX {
                    break;
                }
                match stream
                    .next()
                    .map_err(|fault| SinkFault(format!("reading the spool: {fault}")))?
                {
                    Next::Nothing => break,
                    Next::Skipped => moved = true,
                    Next::Outcome(ticket, outcome) => match sink.hand(ticket, outcome)? {
                        Handed::Taken => {
                            stream.handed();
                            in_flight += 1;
                            moved = true;
                        }
                        Handed::Busy => break,
                    },
                }
            }
        }
        self.tickets.clear();
        let delivered = sink.delivered(&mut self.tickets);
        for ticket in &self.tickets {
            let stream = self
                .streams
                .iter_mut()
                .find(|stream| stream.id() == ticket.stream);
            let fresh = stream.map_or(0, |stream| stream.delivered(ticket));
            self.totals.delivered.fetch_add(fresh, Ordering::Relaxed);
            moved = true;
        }
        if !self.tickets.is_empty() {
            self.backoff = BACKOFF.0;
        }
        delivered?;
        Ok(moved)
    }

    fn give_up(&mut self, fault: &SinkFault) {
        tracing::warn!(error = %fault, "the usage sink failed; it is opened again and gets everything undelivered again");
        self.totals.faults.fetch_add(1, Ordering::Relaxed);
        self.sink = None;
        for stream in &mut self.streams {
            if let Err(fault) = stream.rewind() {
                tracing::error!(error = %fault, "the usage spool cannot be read");
            }
        }
        let mut random = [0; 4];
        let jitter = getrandom::fill(&mut random).map_or(1.0, |()| {
            f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
        });
        self.retry_at = Instant::now() + self.backoff.mul_f64(0.5 + jitter / 2.0);
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// From now on it is told when to tidy, and goes by no clock: on a busy machine a test takes longer than it looks.
    #[cfg(test)]
    pub(super) fn tidy_when_told(&mut self) {
        self.tidy_every = Duration::MAX;
    }

    /// Deletes what is not needed any more and publishes the figures.
    pub(super) fn tidy(&mut self) {
        self.tidied = Instant::now();
        let (mut damaged, mut recovered) = (0, 0);
        self.streams.retain_mut(|stream| match stream.tidy() {
            Ok(gone) => !gone,
            Err(fault) => {
                tracing::warn!(error = %fault, "delivered usage segments cannot be deleted");
                true
            }
        });
        for stream in &mut self.streams {
            damaged += stream.take_damaged_bytes();
            recovered += stream.recovered_bytes();
        }
        let oldest = self
            .streams
            .iter()
            .filter_map(Stream::oldest)
            .max()
            .unwrap_or_default();
        let in_flight: usize = self.streams.iter().map(Stream::in_flight).sum();
        self.totals.damaged_bytes.fetch_add(damaged, Ordering::Relaxed);
        self.totals.recovered_bytes.store(recovered, Ordering::Relaxed);
        self.totals.in_flight.store(in_flight as u64, Ordering::Relaxed);
        let oldest_ms = u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX);
        self.totals.oldest_ms.store(oldest_ms, Ordering::Relaxed);
    }
}
