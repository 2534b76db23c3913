//! The loop that keeps the ledger going: on the leader only, from the offsets in the replicated state.
//!
//! Nothing is remembered here that matters: whatever fails, the loop starts again from what the state says, and a stretch that was
//! recorded after all is refused by the state because its `from` has passed.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tollway_proto::command::{Outcome, RecordSpend};

use super::rollup::{self, Meter, Record, Report};
use super::source::{SourceFault, UsageSource};
use super::{
    BATCH_SECONDS, DUPLICATES_TOTAL, EVENTS_TOTAL, FAULTS_TOTAL, GAPS_TOTAL, LAG, LATE_TOTAL,
    MALFORMED_TOTAL, MISMATCHES_TOTAL,
};
use crate::billing::Freshness;
use crate::state::State;

/// How often a follower looks whether it leads now.
const LEADERSHIP_POLL: Duration = Duration::from_millis(100);
/// Waits after a fault: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the lag is measured, and what is counted is released.
const LAG_EVERY: Duration = Duration::from_secs(5);

/// How far the billing store is, by partition.
pub type Stored = watch::Receiver<BTreeMap<i32, Freshness>>;

/// What the ledger needs of the replicated log.
pub trait SpendLog: Send + Sync {
    /// Whether this replica leads.
    fn is_leader(&self) -> bool;

    /// The newest applied state.
    fn state(&self) -> Arc<State>;

    /// Proposes a stretch and waits until it is applied here. An error leaves open whether it was.
    fn propose(&self, spend: RecordSpend) -> impl Future<Output = Result<Outcome, String>> + Send;
}

/// Runs until `stop`: idle while another replica leads.
///
/// - `stored`: how far this replica's billing store is, which the log is kept for as well; `None` where there is none.
pub async fn run<L: SpendLog>(
    log: L,
    mut source: Box<dyn UsageSource>,
    stored: Option<Stored>,
    stop: CancellationToken,
) {
    let mut backoff = BACKOFF.0;
    loop {
        let wait = if log.is_leader() {
            let lead = stop.run_until_cancelled(lead(&log, source.as_mut(), stored.as_ref(), &mut backoff));
            match lead.await {
                None => return,
                Some(Ok(())) => Duration::ZERO,
                Some(Err(fault)) => {
                    counter!(FAULTS_TOTAL).increment(1);
                    tracing::warn!(error = %fault, "the ledger starts again from the replicated offsets");
                    let wait = backoff;
                    backoff = (backoff * 2).min(BACKOFF.1);
                    wait
                }
            }
        } else {
            LEADERSHIP_POLL
        };
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// One term: returns when this replica leads no more, or something has to start again.
async fn lead<L: SpendLog>(
    log: &L,
    source: &mut dyn UsageSource,
    stored: Option<&Stored>,
    backoff: &mut Duration,
) -> Result<(), SourceFault> {
    let reached: BTreeMap<i32, i64> = log.state().usage_offsets.iter().map(|(p, o)| (*p, *o)).collect();
    source.seek(&reached).await?;
    let mut measured: Option<Instant> = None;
    let mut records = source.read().await?;
    while log.is_leader() {
        let some = !records.is_empty();
        let read = async {
            let begun = Instant::now();
            let read = source.read().await;
            took("read", begun.elapsed());
            read
        };
        // While these are recorded the next are read.
        let (recorded, read) = tokio::join!(record_all(log, records), read);
        recorded?;
        records = read?;
        if some {
            *backoff = BACKOFF.0;
        }
        if measured.is_none_or(|at| at.elapsed() >= LAG_EVERY) {
            measured = Some(Instant::now());
            let counted = counted(&log.state(), stored);
            if let Err(fault) = source.release(&counted).await {
                tracing::warn!(error = %fault, "counted usage events cannot be removed");
            }
            match source.lag().await {
                Ok(lags) => {
                    for (partition, lag) in lags {
                        gauge!(LAG, "partition" => partition.to_string()).set(lag as f64);
                    }
                }
                Err(fault) => tracing::debug!(error = %fault, "the ledger's lag cannot be measured"),
            }
        }
    }
    Ok(())
}

/// Records what was read, all partitions at once: they do not depend on each other, and proposals that meet share an fsync of the log.
async fn record_all<L: SpendLog>(log: &L, records: Vec<Record>) -> Result<(), SourceFault> {
    let begun = Instant::now();
    let mut partitions: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
    for record in records {
        partitions.entry(record.partition).or_default().push(record);
    }
    let stretches = partitions
        .into_iter()
        .map(|(partition, records)| record(log, partition, records.into()));
    let folds = futures::future::try_join_all(stretches).await?;
    if let Some(longest) = folds.into_iter().max() {
        took("fold", longest);
        took("record", begun.elapsed().saturating_sub(longest));
    }
    Ok(())
}

fn took(stage: &'static str, time: Duration) {
    histogram!(BATCH_SECONDS, "stage" => stage).record(time);
}

/// What nobody here needs to read again, by partition.
fn counted(state: &State, stored: Option<&Stored>) -> BTreeMap<i32, i64> {
    let mut counted: BTreeMap<i32, i64> = state.usage_offsets.iter().map(|(p, o)| (*p, *o)).collect();
    if let Some(stored) = stored {
        let stored = stored.borrow();
        for (partition, offset) in &mut counted {
            let kept = stored.get(partition).map_or(0, |fresh| fresh.progress.next);
            *offset = kept.min(*offset);
        }
    }
    counted
}

/// Records what was read of a partition, in as many stretches as it takes. Returns the time of the folds.
async fn record<L: SpendLog>(
    log: &L,
    partition: i32,
    records: Arc<[Record]>,
) -> Result<Duration, SourceFault> {
    let end = records.last().map_or(0, |record| record.next);
    let mut folded = Duration::ZERO;
    while let Some(to) = record_stretch(log, partition, &records, &mut folded).await? {
        if to >= end {
            break;
        }
    }
    Ok(folded)
}

/// Records one stretch; returns where it ends, or `None` when all of `records` is counted already.
async fn record_stretch<L: SpendLog>(
    log: &L,
    partition: i32,
    records: &Arc<[Record]>,
    folded: &mut Duration,
) -> Result<Option<i64>, SourceFault> {
    // Offset and sequences come from one state, so they belong together; the stretch is good for that state alone.
    let state = log.state();
    let from = state.usage_offsets.get(&partition).copied().unwrap_or(0);
    let first = records.first().map_or(from, |record| record.offset);
    if first < from {
        // Another leader was here before us; the fold leaves out what is counted.
        tracing::debug!(partition, first, from, "the state is ahead of the reader");
    }
    let begun = Instant::now();
    let records = records.clone();
    // Beside the runtime, which has heartbeats to send: thousands of events are milliseconds of work.
    let fold = tokio::task::spawn_blocking(move || {
        let seen = |writer| {
            let mark = state.usage_writers.get(&(partition, writer));
            mark.map(|mark| mark.sequence)
        };
        rollup::fold_with(partition, from, &records, state.now, seen, Meter::of(&state))
    });
    let (spend, report) = fold
        .await
        .map_err(|fault| SourceFault::Other(format!("partition {partition}: {fault}")))?;
    *folded += begun.elapsed();
    if spend.to == from {
        return Ok(None);
    }
    let to = spend.to;
    match log.propose(spend).await {
        Ok(Outcome::Done(_)) => {
            publish(partition, &report);
            Ok(Some(to))
        }
        Ok(Outcome::Refused(refusal)) => Err(SourceFault::Other(format!("partition {partition}: {refusal}"))),
        Err(fault) => Err(SourceFault::Other(format!("partition {partition}: {fault}"))),
    }
}

fn publish(partition: i32, report: &Report) {
    counter!(EVENTS_TOTAL).increment(report.events);
    counter!(DUPLICATES_TOTAL).increment(report.duplicates);
    counter!(GAPS_TOTAL).increment(report.gaps);
    counter!(MISMATCHES_TOTAL).increment(report.mismatches);
    counter!(LATE_TOTAL).increment(report.late);
    counter!(MALFORMED_TOTAL).increment(report.malformed);
    if report.gaps > 0 {
        tracing::error!(partition, gaps = report.gaps, "usage events are missing");
    }
    if report.late > 0 {
        tracing::error!(
            partition,
            late = report.late,
            "usage events came too late to be counted"
        );
    }
    for note in &report.notes {
        tracing::warn!(partition, note, "a usage record is not as it should be");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tollway_proto::command::Command;
    use tollway_proto::usage::log_file_name;
    use tollway_proto::usage_log::{LogMark, MARK_FILE};

    use tollway_shared::time::UnixMillis;

    use super::super::file::{FileSource, Retention};
    use super::super::sample;
    use super::*;
    use crate::billing::progress::Progress;
    use crate::state::samples;

    /// How long a test waits for what must happen.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// What a proposal comes to.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        /// Applied and answered.
        Applied,
        /// Not applied, and not answered.
        Dropped,
        /// Applied, but the answer is lost.
        Unanswered,
    }

    #[derive(Clone)]
    struct Log {
        leads: Arc<AtomicBool>,
        state: watch::Sender<Arc<State>>,
        fates: Arc<Mutex<VecDeque<Fate>>>,
    }

    impl Log {
        fn new(fates: &[Fate]) -> Self {
            Self {
                leads: Arc::new(AtomicBool::new(true)),
                state: watch::Sender::new(Arc::new(samples::catalog())),
                fates: Arc::new(Mutex::new(fates.iter().copied().collect())),
            }
        }

        async fn reaches(&self, partition: i32, offset: u64) -> Arc<State> {
            let mut states = self.state.subscribe();
            let reached = |state: &Arc<State>| {
                state.usage_offsets.get(&partition).copied() == i64::try_from(offset).ok()
            };
            let state = tokio::time::timeout(PATIENCE, states.wait_for(reached)).await;
            state.expect("reached in time").unwrap().clone()
        }
    }

    impl SpendLog for Log {
        fn is_leader(&self) -> bool {
            self.leads.load(Ordering::Relaxed)
        }

        fn state(&self) -> Arc<State> {
            self.state.borrow().clone()
        }

        async fn propose(&self, spend: RecordSpend) -> Result<Outcome, String> {
            let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Applied);
            if matches!(fate, Fate::Dropped) {
                return Err("dropped".into());
            }
            let mut state = State::clone(&self.state());
            let outcome = samples::run(&mut state, Command::RecordSpend(spend));
            self.state.send_replace(Arc::new(state));
            match fate {
                Fate::Unanswered => Err("no answer".into()),
                Fate::Applied | Fate::Dropped => Ok(outcome),
            }
        }
    }

    /// Appends events of writer 1 to partition 3, and returns the file's length.
    fn append(dir: &Path, sequences: std::ops::RangeInclusive<u64>) -> u64 {
        use std::io::Write as _;
        let path = dir.join(log_file_name(3));
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        for sequence in sequences {
            let event = serde_json::to_string(&sample::event(1, sequence)).unwrap();
            writeln!(file, "{{\"headers\":{{}},\"event\":{event}}}").unwrap();
        }
        let end = file.metadata().unwrap().len();
        let mark = serde_json::to_vec(&LogMark([(3, end)].into())).unwrap();
        std::fs::write(dir.join("draft"), mark).unwrap();
        std::fs::rename(dir.join("draft"), dir.join(MARK_FILE)).unwrap();
        end
    }

    fn source(dir: &Path) -> Box<FileSource> {
        let retention = Retention {
            age: Duration::MAX,
            bytes: u64::MAX,
        };
        Box::new(FileSource::new(dir.to_owned(), retention))
    }

    fn requests(state: &State) -> u64 {
        state.usage.values().map(|sums| sums.requests).sum()
    }

    #[tokio::test]
    async fn events_are_counted_once_whatever_becomes_of_proposals() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(&[Fate::Dropped, Fate::Unanswered, Fate::Unanswered]);
        let first = append(dir.path(), 1..=2500);
        let stop = CancellationToken::new();
        let source = source(dir.path());
        let ledger = tokio::spawn(run(log.clone(), source, None, stop.clone()));
        assert_eq!(requests(&*log.reaches(3, first).await), 2500);
        let second = append(dir.path(), 2400..=2600); // a hundred and one again, then a hundred new ones
        assert_eq!(requests(&*log.reaches(3, second).await), 2600);
        stop.cancel();
        ledger.await.unwrap();
    }

    #[test]
    fn the_log_is_kept_until_the_billing_store_has_it_too() {
        let mut state = samples::catalog();
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 5)));
        let fresh = |next| {
            let progress = Progress {
                partition: 0,
                first: 0,
                next,
                begins: None,
                newest: UnixMillis(0),
            };
            Freshness {
                progress,
                lag: None,
                measured_at: None,
            }
        };
        for (stored, kept_from) in [
            (None, 10),
            (Some(vec![]), 0),
            (Some(vec![fresh(4)]), 4),
            (Some(vec![fresh(12)]), 10),
        ] {
            let stored = stored.map(|stored| {
                let stored = stored.into_iter().map(|fresh| (0, fresh)).collect();
                watch::channel(stored).1
            });
            assert_eq!(counted(&state, stored.as_ref()), BTreeMap::from([(0, kept_from)]));
        }
    }

    #[tokio::test]
    async fn only_the_leader_counts() {
        let dir = tempfile::tempdir().unwrap();
        let end = append(dir.path(), 1..=5);
        let log = Log::new(&[]);
        log.leads.store(false, Ordering::Relaxed);
        let stop = CancellationToken::new();
        let source = source(dir.path());
        let ledger = tokio::spawn(run(log.clone(), source, None, stop.clone()));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(log.state().usage_offsets.get(&3), None);
        log.leads.store(true, Ordering::Relaxed);
        assert_eq!(requests(&*log.reaches(3, end).await), 5);
        stop.cancel();
        ledger.await.unwrap();
    }
}
