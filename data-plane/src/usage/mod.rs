//! Usage: what bills. Records go to the disk on the request path and from there to Kafka or the embedded usage log.
//!
//! | file | what |
//! |---|---|
//! | [`spool`] | [`Writer`]: one per core; intents, progress and outcomes, one write(2) each |
//! | `space` | when paid traffic is shed, and the reserve that outcomes fall back on |
//! | [`Track`] | where the writers are, and which records are kept for counters beside the spool |
//! | `sync`, `unsynced` | group fsync, every [`Settings::SYNC_EVERY`], and what is kept in memory until it has succeeded |
//! | `repair` | what is written again when one fails |
//! | `durable` | files that take the place of others |
//! | `extent` | how far a writer's spool has come |
//! | `segment` | files and how they are read |
//! | [`by_hand`] | all that without threads, for simulations |
//! | `recover` | intents of a life that ended: one `interrupted` event each |
//! | `shipper`, `stream` | in order, until delivered, re-reading the disk after every fault |
//! | `sink`, `kafka`, `file` | where events go |
//!
//! Invariant: a request whose intent was taken has exactly one event, whatever dies when; sequences per writer and partition are
//! dense, and mean one event each.

pub mod by_hand;
#[cfg(test)]
mod disk_tests;
mod durable;
mod extent;
mod file;
#[cfg(test)]
mod interrupted_tests;
mod kafka;
#[cfg(test)]
mod kafka_tests;
mod recover;
mod repair;
#[cfg(test)]
mod sample;
mod segment;
mod shipper;
mod sink;
mod space;
pub mod spool;
mod stream;
mod sync;
#[cfg(test)]
mod tests;
mod track;
mod unsynced;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tollway_proto::usage::TOPIC;
use tollway_shared::ids::WriterId;
use tollway_shared::secret::KafkaSettings;

use self::shipper::{ShipTotals, Shipper};
use self::sink::{Open, Sink};
use self::space::Space;
pub use self::space::SpoolState;
use self::spool::Lane;
pub use self::spool::{SpoolFault, Writer};
use self::sync::{Fsync, Syncer};
pub use self::track::{Track, read_left};

/// Counter of usage records by `stage`: `intent` and `outcome` (in the spool), `interrupted` (written by recovery), `delivered` (safe in
/// the sink), `lost` (given up in memory because the disk took nothing; billed as interrupted later).
pub const EVENTS_TOTAL: &str = "tollway_usage_events_total";
/// Gauge of bytes in the spool.
pub const SPOOL_BYTES: &str = "tollway_usage_spool_bytes";
/// Gauge of the age of the oldest outcome that is not delivered, in seconds.
pub const OLDEST_UNACKED_SECONDS: &str = "tollway_usage_oldest_unacked_seconds";
/// Gauge: 1 while paid traffic is shed, by `reason`: `full`, `disk`.
pub const SHEDDING: &str = "tollway_usage_shedding";
/// Counter of sinks given up and opened anew.
pub const SINK_FAULTS_TOTAL: &str = "tollway_usage_sink_faults_total";
/// Counter of spool bytes that failed their checksum.
pub const DAMAGED_BYTES_TOTAL: &str = "tollway_usage_spool_damaged_bytes_total";

/// Largest segment.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Smallest `spool_bytes_max`.
const SPOOL_BYTES_MIN: u64 = 1 << 20;
/// Longest that the shipper sleeps without being woken.
const SHIPPER_NAP: Duration = Duration::from_millis(20);
/// How often metrics are published.
const METRICS_EVERY: Duration = Duration::from_secs(1);
/// Wait before a spool that could not be recovered is tried again.
const RECOVER_AGAIN: Duration = Duration::from_secs(5);

/// Where usage events go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// Apache Kafka.
    Kafka,
    /// The embedded usage log.
    #[default]
    File,
}

/// `[usage]` of the node's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where events go.
    pub sink: SinkKind,
    /// Kafka topic.
    pub topic: String,
    /// Partitions of the topic, or of the embedded log.
    pub partitions: i32,
    /// Kafka brokers, `host:port` with commas.
    pub brokers: String,
    /// Folder of the embedded usage log; required with `sink = "file"`.
    pub dir: Option<PathBuf>,
    /// Bytes that the spool may take before requests are shed.
    pub spool_bytes_max: u64,
    /// Settings passed through to librdkafka: TLS, SASL, ….
    pub kafka: KafkaSettings,
}

impl Settings {
    /// The time between two fsyncs: what loss of power can cost.
    pub const SYNC_EVERY: Duration = Duration::from_millis(5);
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sink: SinkKind::default(),
            topic: TOPIC.into(),
            partitions: 6,
            brokers: String::new(),
            dir: None,
            spool_bytes_max: 4 << 30,
            kafka: KafkaSettings::default(),
        }
    }
}

/// Why the usage pipeline does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// A setting that cannot be.
    #[error("`usage.{field}` {detail}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Another process has the spool.
    #[error("the usage spool `{0}` is in use by another process")]
    Locked(PathBuf),
    /// The disk.
    #[error("the usage spool `{path}` cannot be opened")]
    Disk {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The running pipeline of one process.
#[derive(Debug)]
pub struct Usage {
    lanes: Vec<Arc<Lane>>,
    space: Arc<Space>,
    totals: Arc<ShipTotals>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

#[derive(Debug, Default)]
struct Stop {
    wanted: AtomicBool,
    drained: AtomicBool,
    synced: AtomicBool,
}

/// Opens the spool, leaves earlier writers' spools to recovery in the background, and ships.
///
/// - `spool`: the folder of the spool, owned by this process alone.
/// - `writers`: how many cores write; [`Usage::writer`] gives each its own.
///
/// Blocks for as long as the disk takes to make a few files. Starts two threads; needs no async runtime.
pub fn start(settings: &Settings, spool: &Path, writers: usize) -> Result<Usage, StartFault> {
    check(settings)?;
    let open = sink_of(settings)?;
    let disk = |source| StartFault::Disk {
        path: spool.to_owned(),
        source,
    };
    std::fs::create_dir_all(spool).map_err(disk)?;
    let lock = File::create(spool.join("lock")).map_err(disk)?;
    lock.try_lock()
        .map_err(|_| StartFault::Locked(spool.to_owned()))?;
    let leftovers = recover::leftovers(spool).map_err(disk)?;
    let leftovers = leftovers.into_iter().map(|dir| (dir, BTreeSet::new())).collect();
    let space = Arc::new(Space::create(spool, settings.spool_bytes_max));
    let count = writers.max(1);
    // A segment goes only as a whole: many small ones make room bit by bit.
    let segment_bytes = (settings.spool_bytes_max / (16 * count as u64)).min(SEGMENT_BYTES_MAX);
    let lane = || {
        let id = WriterId(u128::from_le_bytes(random()?));
        Lane::create(spool, id, settings.partitions, segment_bytes, space.clone()).map(Arc::new)
    };
    let lanes = || (0..count).map(|_| lane()).collect::<io::Result<Vec<_>>>();
    let made = lanes().or_else(|fault| {
        if fault.kind() != io::ErrorKind::StorageFull {
            return Err(fault);
        }
        // A node must come up on a full disk: what earlier lives left there is delivered by it, and by nobody else.
        space.disk_refused();
        space.free_reserve();
        lanes()
    });
    let lanes = made.map_err(disk)?;

    let (totals, stop) = (Arc::new(ShipTotals::default()), Arc::new(Stop::default()));
    let mut shipper = Shipper::new(open, totals.clone());
    for lane in &lanes {
        shipper.add(lane.extent.clone(), false).map_err(disk)?;
    }
    let (partitions, on_stop) = (settings.partitions, stop.clone());
    let shipping = std::thread::Builder::new()
        .name("usage-ship".into())
        .spawn(move || ship(shipper, leftovers, partitions, &on_stop))
        .map_err(disk)?;
    let sync = SyncThread {
        syncer: Syncer::new(lanes.clone(), space.clone()),
        lanes: lanes.clone(),
        space: space.clone(),
        totals: totals.clone(),
        stop: stop.clone(),
        shipper: shipping.thread().clone(),
    };
    let syncing = std::thread::Builder::new()
        .name("usage-sync".into())
        .spawn(move || sync.run())
        .map_err(disk)?;
    Ok(Usage {
        lanes,
        space,
        totals,
        stop,
        threads: vec![syncing, shipping],
        _lock: lock,
    })
}

impl Usage {
    /// The writer of one core.
    pub fn writer(&self, core: usize) -> Writer {
        Writer::new(self.lanes[core % self.lanes.len()].clone())
    }

    /// Where the writers are.
    pub fn track(&self) -> Track {
        Track::of(&self.lanes)
    }

    /// Whether paid traffic may go on.
    pub fn state(&self) -> SpoolState {
        self.space.state()
    }

    /// Outcomes that are safe in the sink, since the start.
    pub fn delivered(&self) -> u64 {
        self.totals.delivered.load(Ordering::Relaxed)
    }

    /// Ends the pipeline: call it when the last request has its outcome. Blocks.
    ///
    /// - `deadline`: how long to wait for the sink; what it has not taken then stays in the spool for the next start.
    /// - Returns whether everything was delivered.
    pub fn stop(mut self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        while !self.stop.drained.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Settings::SYNC_EVERY);
        }
        self.end()
    }

    fn end(&mut self) -> bool {
        self.stop.wanted.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a usage thread panicked");
            }
        }
        self.stop.drained.load(Ordering::Acquire)
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.end();
    }
}

/// Refuses settings that cannot be.
pub fn check(settings: &Settings) -> Result<(), StartFault> {
    drop(sink_of(settings)?);
    let fault = |field, detail: String| Err(StartFault::Setting { field, detail });
    if settings.partitions < 1 {
        return fault(
            "partitions",
            format!("is {}; at least 1 is needed", settings.partitions),
        );
    }
    if settings.spool_bytes_max < SPOOL_BYTES_MIN {
        let given = settings.spool_bytes_max;
        return fault(
            "spool_bytes_max",
            format!("is {given}; at least {SPOOL_BYTES_MIN} is needed"),
        );
    }
    Ok(())
}

fn sink_of(settings: &Settings) -> Result<Open, StartFault> {
    let missing = |field, detail: &str| StartFault::Setting {
        field,
        detail: detail.to_owned(),
    };
    match settings.sink {
        SinkKind::File => {
            let dir = settings.dir.clone();
            let dir = dir.ok_or_else(|| missing("dir", "is missing; `sink = \"file\"` needs it"))?;
            let suspects = file::Suspects::default();
            Ok(Box::new(move || {
                Ok(Box::new(file::FileSink::open(&dir, &suspects)?) as Box<dyn Sink>)
            }))
        }
        SinkKind::Kafka => {
            if settings.brokers.is_empty() {
                return Err(missing("brokers", "is missing; `sink = \"kafka\"` needs it"));
            }
            let target = kafka::KafkaTarget {
                brokers: settings.brokers.clone(),
                topic: settings.topic.clone(),
                settings: settings.kafka.clone(),
            };
            let checked = target.client().and_then(|client| {
                // A setting that librdkafka does not know, or a key file that is not there, is found now and not at the first event.
                client
                    .create_native_config()
                    .map(drop)
                    .map_err(|fault| fault.to_string())
            });
            checked.map_err(|detail| missing("kafka", &detail))?;
            Ok(Box::new(move || {
                Ok(Box::new(kafka::KafkaSink::open(&target)?) as Box<dyn Sink>)
            }))
        }
    }
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// The folder of an earlier writer, and its segments whose fsync has failed.
type Leftover = (PathBuf, BTreeSet<u64>);

/// The shipper's thread: first what earlier lives left, then everything, until stopped.
fn ship(mut shipper: Shipper, mut leftovers: Vec<Leftover>, partitions: i32, stop: &Stop) {
    let mut recover_at = Instant::now();
    loop {
        if !leftovers.is_empty() && Instant::now() >= recover_at {
            leftovers.retain_mut(|(dir, doubts)| {
                let recovered = recover_one(&mut shipper, dir, partitions, doubts);
                recovered.inspect_err(|fault| {
                    tracing::error!(error = %fault, spool = %dir.display(), "an earlier usage spool cannot be recovered yet");
                }).is_err()
            });
            recover_at = Instant::now() + RECOVER_AGAIN;
        }
        let moved = shipper.round();
        stop.drained
            .store(leftovers.is_empty() && shipper.idle(), Ordering::Release);
        if stop.wanted.load(Ordering::Acquire) && stop.synced.load(Ordering::Acquire) {
            if leftovers.is_empty() && shipper.idle() {
                shipper.finish();
            }
            return;
        }
        if !moved {
            std::thread::park_timeout(SHIPPER_NAP);
        }
    }
}

fn recover_one(
    shipper: &mut Shipper,
    dir: &Path,
    partitions: i32,
    doubts: &mut BTreeSet<u64>,
) -> io::Result<()> {
    let mut fsync: Fsync = Box::new(File::sync_all);
    let Some(recovered) = recover::complete(dir, partitions, doubts, &mut fsync)? else {
        return Ok(());
    };
    counter!(EVENTS_TOTAL, "stage" => "interrupted").increment(recovered.interrupted);
    counter!(DAMAGED_BYTES_TOTAL).increment(recovered.damaged_bytes);
    tracing::info!(
        writer = %recovered.extent.writer,
        interrupted = recovered.interrupted,
        damaged_bytes = recovered.damaged_bytes,
        "recovered the usage spool of an earlier life"
    );
    shipper.add(Arc::new(recovered.extent), true)
}

/// The fsync thread, which also publishes the figures.
struct SyncThread {
    syncer: Syncer,
    lanes: Vec<Arc<Lane>>,
    space: Arc<Space>,
    totals: Arc<ShipTotals>,
    stop: Arc<Stop>,
    shipper: std::thread::Thread,
}

impl SyncThread {
    fn run(mut self) {
        let mut published = Instant::now();
        loop {
            let stopping = self.stop.wanted.load(Ordering::Acquire);
            let held_elsewhere = self.totals.recovered_bytes.load(Ordering::Relaxed);
            if stopping {
                self.syncer.finish(held_elsewhere);
            } else if self.syncer.round(held_elsewhere) {
                self.shipper.unpark();
            }
            if stopping || published.elapsed() >= METRICS_EVERY {
                published = Instant::now();
                self.publish();
            }
            if stopping {
                self.stop.synced.store(true, Ordering::Release);
                self.shipper.unpark();
                return;
            }
            std::thread::park_timeout(Settings::SYNC_EVERY);
        }
    }

    fn publish(&self) {
        let mut held = self.totals.recovered_bytes.load(Ordering::Relaxed);
        let (mut intents, mut outcomes, mut lost) = (0, 0, 0);
        for lane in &self.lanes {
            let totals = lane.totals();
            held += lane.extent.bytes();
            intents += totals.intents;
            outcomes += totals.outcomes;
            lost += totals.lost;
        }
        counter!(EVENTS_TOTAL, "stage" => "intent").absolute(intents);
        counter!(EVENTS_TOTAL, "stage" => "outcome").absolute(outcomes);
        counter!(EVENTS_TOTAL, "stage" => "lost").absolute(lost);
        let delivered = self.totals.delivered.load(Ordering::Relaxed);
        counter!(EVENTS_TOTAL, "stage" => "delivered").absolute(delivered);
        counter!(SINK_FAULTS_TOTAL).absolute(self.totals.faults.load(Ordering::Relaxed));
        gauge!(SPOOL_BYTES).set(held as f64);
        gauge!(OLDEST_UNACKED_SECONDS).set(self.totals.oldest_ms.load(Ordering::Relaxed) as f64 / 1000.0);
        let state = self.space.state();
        for reason in [SpoolState::Full, SpoolState::Disk] {
            gauge!(SHEDDING, "reason" => reason.as_str()).set(f64::from(u8::from(state == reason)));
        }
    }
}
