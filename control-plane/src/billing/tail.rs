//! The loop that keeps a store up to date: reads the usage log on its own, folds what it reads and writes it in one transaction.
//!
//! Whatever goes wrong, it opens the store again and goes on from the offsets in it, so nothing is counted twice and nothing is left
//! out. While one read's rows are written, the next read is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tollway_shared::time::UnixMillis;

use super::fold::fold;
use super::hold::{HOLDER_WITHIN, Hold, Offsets};
use super::progress::{Book, Progress};
use super::store::{Opened, Writer};
use super::{Freshness, Place, Shared, StoreFault};
use crate::ledger::rollup::Record;
use crate::ledger::source::UsageSource;
use crate::state::usage::WRITER_KEPT_MS;

/// Counter of events written to the billing store.
pub const EVENTS_TOTAL: &str = "tollway_billing_events_total";
/// Counter of faults after which the store was opened again.
pub const FAULTS_TOTAL: &str = "tollway_billing_faults_total";
/// Gauge of what is not in the store yet, by `partition`: events on Kafka, bytes in the embedded log. As many values as partitions.
pub const LAG: &str = "tollway_billing_lag";
/// Histogram of the time that one read takes, by `stage`: `read` (waiting for records too), `fold`, `write`.
pub const BATCH_SECONDS: &str = "tollway_billing_batch_seconds";

/// Waits after a fault: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often the lag is measured.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// How often a replica that does not write looks whether it should.
const STANDBY: Duration = Duration::from_secs(1);
/// Most records that are kept while a holder waits for a few others.
const HELD_MAX: usize = 100_000;
/// How often what is too old is removed.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// What the loop works with.
pub struct Tail {
    /// Where the store is.
    pub place: Place,
    /// The cluster it is of.
    pub cluster: String,
    /// How long single generations are kept, milliseconds.
    pub generations_ms: i64,
    /// The usage log.
    pub source: Box<dyn UsageSource>,
    /// What it shares with those who read.
    pub shared: Shared,
    /// Wall time.
    pub now: fn() -> UnixMillis,
}

/// What the log has beyond what was read, by partition.
#[derive(Default)]
struct Lags {
    of: Offsets,
    /// When a partition was last seen to have nothing beyond what was written.
    none_at: BTreeMap<i32, UnixMillis>,
}

impl Lags {
    /// Notes a measurement that was begun at an instant. A partition of which it says nothing keeps its last good one: that stays true.
    ///
    /// - `unwritten`: what had been read and was not written.
    fn note(&mut self, of: Offsets, at: UnixMillis, unwritten: &[Record]) {
        let pending: BTreeSet<i32> = unwritten.iter().map(|record| record.partition).collect();
        let all_there = of
            .iter()
            .filter(|(partition, lag)| **lag == 0 && !pending.contains(partition));
        self.none_at
            .extend(all_there.map(|(partition, _)| (*partition, at)));
        self.of = of;
    }
}

/// The open store and how far it is.
struct Open {
    writer: Writer,
    book: Book,
    /// Where a partition begins that the store has nothing of.
    starts: Offsets,
}

impl Tail {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        if matches!(self.place, Place::None) {
            return stop.cancelled().await;
        }
        let mut backoff = BACKOFF.0;
        loop {
            let fault = match stop.run_until_cancelled(self.follow(&mut backoff)).await {
                None => return,
                Some(Ok(never)) => match never {},
                Some(Err(fault)) => fault,
            };
            counter!(FAULTS_TOTAL).increment(1);
            tracing::warn!(error = %fault, "the billing store goes on from its own offsets");
            if stop.run_until_cancelled(sleep(backoff)).await.is_none() {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn follow(&mut self, backoff: &mut Duration) -> Result<Infallible, StoreFault> {
        let (mut open, begins) = self.open().await?.begin((self.now)()).await?;
        self.source.seek(&begins).await?;
        let mut lags = Lags::default();
        self.tell(open.book.partitions.values(), &lags);
        let (mut measured, mut forgotten): (Option<Instant>, Option<Instant>) = (None, None);
        let mut records = self.source.read().await?;
        loop {
            if let Ok(hold) = self.shared.holds.try_recv() {
                (open, records) = self.stand_still(open, records, hold, &lags).await?;
            }
            if forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
                forgotten = Some(Instant::now());
                let before = (self.now)().plus_ms(-self.generations_ms);
                open = forget(open, before).await?;
            }
            let some = !records.is_empty();
            let (told, known) = (&self.shared.told, &lags);
            let write = async {
                let open = write(open, records, (self.now)()).await?;
                tell(told, open.book.partitions.values(), known);
                Ok::<_, StoreFault>(open)
            };
            let read = async {
                let begun = Instant::now();
                let read = self.source.read().await;
                took("read", begun);
                read
            };
            let (written, read) = tokio::join!(write, read);
            open = written?;
            records = read?;
            if some {
                *backoff = BACKOFF.0;
            }
            if measured.is_none_or(|at| at.elapsed() >= LAG_EVERY) {
                measured = Some(Instant::now());
                let begun = (self.now)();
                match self.source.lag().await {
                    Ok(of) => lags.note(of, begun, &records),
                    Err(fault) => {
                        tracing::debug!(error = %fault, "the billing store's lag cannot be measured");
                    }
                }
                publish(&lags.of);
                self.tell(open.book.partitions.values(), &lags);
            }
        }
    }

    /// Opens the store, once no other replica writes it, and finds out where the log begins, for what is not in it yet.
    async fn open(&mut self) -> Result<Open, StoreFault> {
        let (writer, book) = loop {
            let (place, cluster) = (self.place.clone(), self.cluster.clone());
            let opened = tokio::task::spawn_blocking(move || match Writer::open(&place, &cluster)? {
                Opened::Reads(progress) => Ok(Err(progress)),
                Opened::Writes(writer, made) => {
                    if made {
                        tracing::info!("made the billing store; it is filled from the usage log");
                    }
                    let book = writer.book()?;
                    Ok::<_, StoreFault>(Ok((writer, book)))
                }
            });
            match opened.await?? {
                Ok(opened) => break opened,
                Err(progress) => {
                    self.tell(progress.iter(), &Lags::default());
                    while self.shared.holds.try_recv().is_ok() {} // whoever asks is told that it is not us
                    sleep(STANDBY).await;
                }
            }
        };
        let starts = self.source.beginnings().await?;
        Ok(Open { writer, book, starts })
    }

    /// Writes exactly up to the holder's offsets, waits for the holder, and returns what was read beyond them.
    async fn stand_still(
        &mut self,
        mut open: Open,
        mut records: Vec<Record>,
        hold: Hold,
        lags: &Lags,
    ) -> Result<(Open, Vec<Record>), StoreFault> {
        let _ = hold.stands.send(open.book.offsets()); // a holder that is gone is noticed below
        let Ok(Ok(stops)) = tokio::time::timeout(HOLDER_WITHIN, hold.stops).await else {
            return Ok((open, records));
        };
        let until = Instant::now() + HOLDER_WITHIN;
        loop {
            let within = |record: &Record| record.offset < stops.get(&record.partition).copied().unwrap_or(0);
            let (now, later): (Vec<Record>, Vec<Record>) = records.into_iter().partition(within);
            open = write(open, now, (self.now)()).await?;
            self.tell(open.book.partitions.values(), lags);
            records = later;
            let reached = open.book.offsets();
            let is_there =
                |(partition, offset): (&i32, &i64)| reached.get(partition).copied().unwrap_or(0) >= *offset;
            if stops.iter().all(is_there) {
                break;
            }
            if Instant::now() >= until || records.len() > HELD_MAX {
                return Ok((open, records));
            }
            records.extend(self.source.read().await?);
        }
        if hold.stopped.send(()).is_ok() {
            let _ = tokio::time::timeout(HOLDER_WITHIN, hold.released).await; // either way it goes on
        }
        Ok((open, records))
    }

    fn tell<'a>(&self, reached: impl Iterator<Item = &'a Progress>, lags: &Lags) {
        tell(&self.shared.told, reached, lags);
    }
}

impl Open {
    /// Where reading begins, by partition. What the log has lost before it was read is not in the store, and the store says so from then on.
    async fn begin(mut self, now: UnixMillis) -> Result<(Self, Offsets), StoreFault> {
        tokio::task::spawn_blocking(move || {
            let has = self.book.offsets();
            for (&partition, &start) in &self.starts {
                match has.get(&partition) {
                    Some(&next) if next < start => tracing::error!(
                        partition,
                        next,
                        start,
                        "usage events expired before they were in the billing store; its first whole day is the day after tomorrow"
                    ),
                    None if start > 0 => tracing::warn!(
                        partition,
                        start,
                        "the usage log has lost its beginning; the billing store has what comes after it"
                    ),
                    _ => continue,
                }
                // Also where nothing may ever come again: whoever compares offsets has to see that it is not behind.
                self.writer.skip(partition, start, now)?;
                self.book.skip(partition, start, now);
            }
            let mut begins = self.starts.clone();
            begins.extend(self.book.offsets());
            Ok((self, begins))
        })
        .await?
    }
}

fn tell<'a>(
    told: &watch::Sender<BTreeMap<i32, Freshness>>,
    reached: impl Iterator<Item = &'a Progress>,
    lags: &Lags,
) {
    let fresh = reached.map(|progress| {
        let fresh = Freshness {
            progress: *progress,
            lag: lags.of.get(&progress.partition).copied(),
            measured_at: lags.none_at.get(&progress.partition).copied(),
        };
        (progress.partition, fresh)
    });
    told.send_replace(fresh.collect());
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; a lag stays far below 2^53"
)]
fn publish(lags: &Offsets) {
    for (partition, lag) in lags {
        gauge!(LAG, "partition" => partition.to_string()).set(*lag as f64);
    }
}

/// Removes what is too old: generations that ended before an instant, and writers that fell silent long ago.
async fn forget(mut open: Open, before: UnixMillis) -> Result<Open, StoreFault> {
    let newest = open
        .book
        .partitions
        .values()
        .map(|progress| progress.newest)
        .max();
    tokio::task::spawn_blocking(move || {
        while open.writer.forget(before)? {}
        if let Some(newest) = newest {
            open.writer.forget_writers(newest.plus_ms(-WRITER_KEPT_MS))?;
        }
        Ok(open)
    })
    .await?
}

fn took(stage: &'static str, since: Instant) {
    histogram!(BATCH_SECONDS, "stage" => stage).record(since.elapsed());
}

/// Folds and writes what was read, in one transaction.
async fn write(mut open: Open, records: Vec<Record>, now: UnixMillis) -> Result<Open, StoreFault> {
    if records.is_empty() {
        return Ok(open);
    }
    tokio::task::spawn_blocking(move || {
        let mut partitions: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
        for record in records {
            partitions.entry(record.partition).or_default().push(record);
        }
        let Open { writer, book, starts } = &mut open;
        let begun = Instant::now();
        let batches: Vec<_> = partitions
            .iter()
            .map(|(partition, records)| {
                let start = starts.get(partition).copied().unwrap_or(0);
                let seen = |writer| book.marks.get(&(*partition, writer)).copied();
                fold(*partition, book.reached(*partition, start), records, now, seen)
            })
            .filter(|batch| batch.to > batch.from)
            .collect();
        took("fold", begun);
        let begun = Instant::now();
        writer.write(&batches)?;
        took("write", begun);
        for batch in &batches {
            book.note(batch);
            counter!(EVENTS_TOTAL).increment(batch.report.events);
            for note in &batch.report.notes {
                tracing::debug!(
                    partition = batch.partition,
                    note,
                    "a usage record is not as it should be"
                );
            }
        }
        Ok(open)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_an_idle_partition_stays_known_while_others_are_busy() {
        let record = |partition| Record {
            partition,
            offset: 0,
            next: 1,
            value: Vec::new(),
        };
        let mut lags = Lags::default();
        for (at, unwritten, behind, expected) in [
            (1, vec![record(0)], 0, [None, Some(1)]),
            (2, vec![], 0, [Some(2), Some(2)]),
            (3, vec![record(0)], 0, [Some(2), Some(3)]),
            (4, vec![], 7, [Some(2), Some(4)]),
            (5, vec![record(1)], 0, [Some(5), Some(4)]),
        ] {
            lags.note([(0, behind), (1, 0)].into(), UnixMillis(at), &unwritten);
            let known = [0, 1].map(|partition| lags.none_at.get(&partition).map(|at| at.0));
            assert_eq!(known, expected, "{at}");
            assert_eq!(lags.of[&0], behind);
        }
    }
}
