//! The loop that keeps a store up to date: reads the usage log on its own, folds what it reads and writes it in one transaction.
//!
//! Whatever goes wrong, it opens the store again and goes on from the offsets in it, so nothing is counted twice and nothing is left
//! out. While one read's rows are written, the next read is under way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tollway_shared::time::UnixMillis;

use super::fold::fold;
use super::progress::Book;
use super::sqlite::Writer;
use super::{Freshness, Place, StoreFault, Told};
use crate::ledger::rollup::Record;
use crate::ledger::source::UsageSource;
use crate::state::usage::WRITER_KEPT_MS;

/// Counter of events written to the billing store.
pub const EVENTS_TOTAL: &str = "tollway_billing_events_total";
/// Counter of faults after which the store was opened again.
pub const FAULTS_TOTAL: &str = "tollway_billing_faults_total";
/// Gauge of what is not in the store yet, by `partition`: events on Kafka, bytes in the embedded log. As many values as partitions.
pub const LAG: &str = "tollway_billing_lag";

/// Waits after a fault: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How often the lag is measured.
const LAG_EVERY: Duration = Duration::from_secs(5);
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
    /// Whom it tells how far it is.
    pub told: Told,
    /// Wall time.
    pub now: fn() -> UnixMillis,
}

/// The open store and how far it is.
struct Open {
    writer: Writer,
    book: Book,
    /// Where a partition begins that the store has nothing of.
    starts: BTreeMap<i32, i64>,
}

impl Tail {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let Place::File(path) = self.place.clone() else {
            return stop.cancelled().await;
        };
        let mut backoff = BACKOFF.0;
        loop {
            let fault = match stop.run_until_cancelled(self.follow(&path, &mut backoff)).await {
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

    async fn follow(
        &mut self,
        path: &Path,
        backoff: &mut Duration,
    ) -> Result<std::convert::Infallible, StoreFault> {
        let mut open = self.open(path.to_owned()).await?;
        let mut offsets = open.starts.clone();
        for (partition, next) in open.book.offsets() {
            let start = offsets.entry(partition).or_insert(next);
            if *start > next {
                tracing::error!(
                    partition,
                    next,
                    start = *start,
                    "usage events expired before they were in the billing store"
                );
            }
            *start = next.max(*start);
        }
        self.source.seek(&offsets).await?;
        let mut lags = BTreeMap::new();
        self.tell(&open, &lags);
        let (mut measured, mut forgotten): (Option<Instant>, Option<Instant>) = (None, None);
        let mut records = self.source.read().await?;
        loop {
            if forgotten.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
                forgotten = Some(Instant::now());
                let before = (self.now)().plus_ms(-self.generations_ms);
                open = forget(open, before).await?;
            }
            let some = !records.is_empty();
            let now = (self.now)();
            let (told, known) = (&self.told, &lags);
            let write = async {
                let open = write(open, records, now).await?;
                tell(told, &open, known);
                Ok::<_, StoreFault>(open)
            };
            let (written, read) = tokio::join!(write, self.source.read());
            open = written?;
            records = read?;
            if some {
                *backoff = BACKOFF.0;
            }
            if measured.is_none_or(|at| at.elapsed() >= LAG_EVERY) {
                measured = Some(Instant::now());
                match self.source.lag().await {
                    Ok(found) => lags = found,
                    Err(fault) => {
                        tracing::debug!(error = %fault, "the billing store's lag cannot be measured")
                    }
                }
                for (partition, lag) in &lags {
                    gauge!(LAG, "partition" => partition.to_string()).set(*lag as f64);
                }
                self.tell(&open, &lags);
            }
        }
    }

    /// Opens the store and finds out where the log begins, for what is not in it yet.
    async fn open(&mut self, path: PathBuf) -> Result<Open, StoreFault> {
        let cluster = self.cluster.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let (writer, made) = Writer::open(&path, &cluster)?;
            if made {
                tracing::info!(path = %path.display(), "made the billing store; it is filled from the usage log");
            }
            let book = writer.book()?;
            Ok::<_, StoreFault>((writer, book))
        });
        let (writer, book) = opened.await??;
        let starts = self.source.beginnings().await?;
        Ok(Open { writer, book, starts })
    }

    fn tell(&self, open: &Open, lags: &BTreeMap<i32, i64>) {
        tell(&self.told, open, lags);
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

fn tell(told: &Told, open: &Open, lags: &BTreeMap<i32, i64>) {
    let fresh = open.book.partitions.iter().map(|(partition, progress)| {
        let lag = lags.get(partition).copied();
        (
            *partition,
            Freshness {
                progress: *progress,
                lag,
            },
        )
    });
    told.send_replace(fresh.collect());
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
        let batches: Vec<_> = partitions
            .iter()
            .map(|(partition, records)| {
                let start = starts.get(partition).copied().unwrap_or(0);
                let seen = |writer| book.marks.get(&(*partition, writer)).copied();
                fold(*partition, book.reached(*partition, start), records, now, seen)
            })
            .filter(|batch| batch.to > batch.from)
            .collect();
        writer.write(&batches)?;
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
