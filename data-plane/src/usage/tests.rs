//! The promises of the whole pipeline, tested on real files: crashes at every byte, torn tails, full spools, faults of the sink.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tollway_proto::spool::{OutcomeRecord, SpoolRecord};
use tollway_proto::usage::UsageEvent;
use tollway_shared::ids::WriterId;

use super::segment::{self, Cursor, Position};
use super::shipper::{ShipTotals, Shipper};
use super::sink::{Handed, Sink, SinkFault, Ticket};
use super::space::{Space, SpoolState};
use super::spool::{Lane, SpoolFault, Writer};
use super::sync::Syncer;
use super::{recover, sample};

pub(super) const PARTITIONS: i32 = 3;
const WRITER: WriterId = WriterId(7);
/// Rounds in which a shipper with a good sink is done, whatever came before.
pub(super) const ROUNDS_MAX: usize = 100;

/// A spool without threads: every step is taken by the test.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub(super) space: Arc<Space>,
    pub(super) lane: Arc<Lane>,
    pub(super) writer: Writer,
    pub(super) syncer: Syncer,
}

impl Bench {
    pub(super) fn new(cap: u64, segment_bytes: u64) -> Self {
        let dir = scratch();
        let space = Arc::new(Space::create(dir.path(), cap));
        let lane = Lane::create(dir.path(), WRITER, PARTITIONS, segment_bytes, space.clone()).unwrap();
        let lane = Arc::new(lane);
        Self {
            dir,
            space: space.clone(),
            writer: Writer::new(lane.clone()),
            syncer: Syncer::new(vec![lane.clone()], space),
            lane,
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.lane.extent.dir
    }

    pub(super) fn shipper(&self, script: &Script) -> Shipper {
        let mut shipper = Shipper::new(script.open(), Arc::new(ShipTotals::default()));
        shipper.tidy_when_told();
        shipper.add(self.lane.extent.clone(), false).unwrap();
        shipper
    }
}

/// A folder in memory where there is one: thousands of recoveries each wait for their fsync.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Recovery on a disk that works.
pub(super) fn recovered(folder: &Path) -> std::io::Result<Option<recover::Recovered>> {
    let mut fsync: super::sync::Fsync = Box::new(|_| Ok(()));
    recover::complete(folder, PARTITIONS, &mut BTreeSet::new(), &mut fsync)
}

/// What a folder's segments take.
pub(super) fn bytes_in(folder: &Path) -> u64 {
    let sizes = segment::list(folder).unwrap().into_iter();
    sizes
        .map(|number| std::fs::metadata(segment::path(folder, number)).unwrap().len())
        .sum()
}

/// Every record of a writer's folder, in order.
pub(super) fn records(folder: &Path) -> Vec<SpoolRecord> {
    let mut all = Vec::new();
    for number in segment::list(folder).unwrap() {
        let start = Position {
            segment: number,
            offset: 0,
        };
        let mut cursor = Cursor::open(folder, start).unwrap();
        let limit = cursor.file_bytes().unwrap();
        while let Some(found) = cursor.next(limit).unwrap() {
            all.push(found.record);
        }
    }
    all
}

pub(super) fn outcomes(folder: &Path) -> Vec<OutcomeRecord> {
    let outcome = |record| match record {
        SpoolRecord::Outcome(outcome) => Some(outcome),
        _ => None,
    };
    records(folder).into_iter().filter_map(outcome).collect()
}

fn intents(folder: &Path) -> Vec<UsageEvent> {
    let intent = |record| match record {
        SpoolRecord::Intent(intent) => Some(*intent),
        _ => None,
    };
    records(folder).into_iter().filter_map(intent).collect()
}

/// Each intent has exactly one outcome, and sequences count from 1 without a hole.
pub(super) fn assert_complete(folder: &Path, context: &str) {
    let mut per_request: HashMap<String, u32> = HashMap::new();
    let mut next: BTreeMap<i32, u64> = BTreeMap::new();
    for outcome in outcomes(folder) {
        *per_request.entry(outcome.request_id.to_string()).or_default() += 1;
        let expected = next.entry(outcome.partition).or_insert(1);
        assert_eq!(outcome.sequence, *expected, "{context}");
        *expected += 1;
        let event: UsageEvent = serde_json::from_slice(&outcome.event).unwrap();
        assert_eq!(
            (event.partition, event.sequence, event.writer),
            (outcome.partition, outcome.sequence, WRITER)
        );
    }
    for intent in intents(folder) {
        let count = per_request.get(intent.request_id.as_str());
        assert_eq!(count, Some(&1), "{context}: {}", intent.request_id);
    }
}

/// A copy of a spool folder whose only segment is `bytes`.
pub(super) fn folder_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let folder = dir.path().join(WRITER.to_string());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(segment::path(&folder, 1), bytes).unwrap();
    (dir, folder)
}

#[test]
fn a_crash_at_any_byte_leaves_each_request_with_exactly_one_event() {
    let bench = Bench::new(1 << 20, 1 << 20);
    for (request, organization) in [("one", "acme"), ("two", "globex")] {
        bench
            .writer
            .intent(&sample::event(request, organization))
            .unwrap();
    }
    bench.writer.outcome(sample::event("two", "globex"));
    bench.writer.intent(&sample::event("three", "globex")).unwrap();
    let whole = std::fs::read(segment::path(bench.folder(), 1)).unwrap();
    for length in 0..=whole.len() {
        let (_dir, folder) = folder_with(&whole[..length]);
        let Some(recovered) = recovered(&folder).unwrap() else {
            assert!(!folder.exists(), "a spool without a header is no spool");
            continue;
        };
        assert_complete(&folder, &format!("cut at {length}"));
        assert_eq!(recovered.damaged_bytes, 0);
        assert_eq!(recovered.extent.bytes(), bytes_in(&folder));
    }
}

#[test]
fn a_crash_at_any_byte_of_the_recovery_changes_nothing() {
    let bench = Bench::new(1 << 20, 1 << 20);
    for request in ["one", "two"] {
        bench.writer.intent(&sample::event(request, "acme")).unwrap();
    }
    let first = std::fs::read(segment::path(bench.folder(), 1)).unwrap();
    recovered(bench.folder()).unwrap().unwrap();
    let expected = outcomes(bench.folder());
    let second = std::fs::read(segment::path(bench.folder(), 2)).unwrap();
    for length in 0..=second.len() {
        let (_dir, folder) = folder_with(&first);
        std::fs::write(segment::path(&folder, 2), &second[..length]).unwrap();
        recovered(&folder).unwrap().unwrap();
        assert!(outcomes(&folder) == expected, "cut at {length}");
    }
}

#[test]
fn a_damaged_record_is_passed_over_and_counted() {
    let bench = Bench::new(1 << 20, 1 << 20);
    bench.writer.outcome(sample::event("one", "acme"));
    let first_end = bench.lane.extent.written().offset;
    bench.writer.outcome(sample::event("two", "acme"));
    let mut whole = std::fs::read(segment::path(bench.folder(), 1)).unwrap();
    whole[usize::try_from(first_end).unwrap() - 1] ^= 1;
    let (_dir, folder) = folder_with(&whole);
    let recovered = recovered(&folder).unwrap().unwrap();
    assert!(recovered.damaged_bytes > 1000);
    let left = outcomes(&folder);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].sequence, 2, "the hole shows: the ledger raises an alarm");
}

#[test]
fn a_full_spool_sheds_intents_and_still_takes_the_outcomes_of_running_requests() {
    let mut bench = Bench::new(1 << 20, 64 << 10);
    let mut running = 0;
    let refused = loop {
        match bench
            .writer
            .intent(&sample::event(&format!("r{running}"), "acme"))
        {
            Ok(()) => running += 1,
            Err(fault) => break fault,
        }
        bench.syncer.round(0);
        assert!(running < 10_000, "never sheds");
    };
    assert_eq!(refused, SpoolFault::Full);
    assert_eq!(bench.space.state(), SpoolState::Full);
    for request in 0..running {
        bench
            .writer
            .outcome(sample::event(&format!("r{request}"), "acme"));
    }
    bench.syncer.round(0);
    assert!(
        bench.lane.extent.bytes() <= 1 << 20,
        "{} bytes",
        bench.lane.extent.bytes()
    );
    assert_complete(bench.folder(), "full");

    let script = Script::default();
    let mut shipper = bench.shipper(&script);
    while !shipper.idle() {
        shipper.round();
    }
    shipper.tidy();
    bench.syncer.round(0);
    assert_eq!(
        bench.space.state(),
        SpoolState::Open,
        "room again once all is delivered"
    );
    bench.writer.intent(&sample::event("next", "acme")).unwrap();
}

#[test]
fn nothing_is_shipped_before_it_is_durable() {
    let mut bench = Bench::new(1 << 20, 1 << 20);
    let script = Script::default();
    let mut shipper = bench.shipper(&script);
    bench.writer.outcome(sample::event("one", "acme"));
    shipper.round();
    assert_eq!(script.taken().len(), 0);
    bench.syncer.round(0);
    shipper.round();
    assert_eq!(script.taken().len(), 1);
}

#[test]
fn a_segment_stays_while_one_of_its_intents_runs() {
    let mut bench = Bench::new(1 << 20, 8 << 10);
    let script = Script::default();
    let mut shipper = bench.shipper(&script);
    bench.writer.intent(&sample::event("long", "acme")).unwrap();
    for n in 0..20 {
        bench.writer.outcome(sample::event(&format!("r{n}"), "acme"));
    }
    let mut settle = |bench: &mut Bench| {
        bench.syncer.round(0);
        while !shipper.idle() {
            shipper.round();
        }
        shipper.tidy();
        segment::list(bench.folder()).unwrap()
    };
    let segments = settle(&mut bench);
    assert!(segments.len() > 3 && segments[0] == 1, "{segments:?}");
    bench.writer.outcome(sample::event("long", "acme"));
    let segments = settle(&mut bench);
    assert_eq!(segments.len(), 1);
    assert_eq!(script.taken().len(), 21);
}

#[test]
fn a_recovered_spool_goes_once_it_is_delivered_and_is_not_sent_again_from_its_note() {
    let mut bench = Bench::new(1 << 20, 1 << 20);
    let script = Script::default();
    let mut first = bench.shipper(&script);
    bench.writer.outcome(sample::event("one", "acme"));
    bench.writer.intent(&sample::event("two", "acme")).unwrap();
    bench.syncer.round(0);
    while !first.idle() {
        first.round();
    }
    first.tidy(); // notes the delivery; the process dies now
    drop(first);

    let recovered = recovered(bench.folder()).unwrap().unwrap();
    let mut second = Shipper::new(script.open(), Arc::new(ShipTotals::default()));
    second.add(Arc::new(recovered.extent), true).unwrap();
    while !second.idle() {
        second.round();
    }
    second.tidy();
    assert!(!bench.folder().exists());
    let taken: Vec<_> = script.taken().into_iter().map(|(_, sequence)| sequence).collect();
    assert_eq!(taken, [1, 2]);
    assert!(recover::leftovers(bench.dir.path()).unwrap().is_empty());
}

/// A sink that follows a script and keeps what it took.
#[derive(Clone, Default)]
pub(super) struct Script(Arc<Mutex<Scripted>>);

#[derive(Default)]
struct Scripted {
    /// What the next calls do; the default is to take and to deliver.
    steps: VecDeque<Step>,
    /// (partition, sequence) of every record taken by any sink, in order.
    taken: Vec<(i32, u64)>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The record is taken; its delivery waits.
    Take,
    /// The record is taken and everything taken is delivered.
    Deliver,
    /// No room.
    Busy,
    /// The sink breaks: what it took may have arrived, but is not known to have.
    Break,
}

struct ScriptedSink {
    script: Script,
    waiting: Vec<Ticket>,
    deliver: bool,
}

impl Script {
    fn open(&self) -> super::sink::Open {
        let script = self.clone();
        Box::new(move || {
            Ok(Box::new(ScriptedSink {
                script: script.clone(),
                waiting: Vec::new(),
                deliver: true,
            }))
        })
    }

    pub(super) fn taken(&self) -> Vec<(i32, u64)> {
        self.0.lock().unwrap().taken.clone()
    }
}

impl Sink for ScriptedSink {
    fn hand(&mut self, ticket: Ticket, record: &OutcomeRecord) -> Result<Handed, SinkFault> {
        let mut script = self.script.0.lock().unwrap();
        let step = script.steps.pop_front().unwrap_or(Step::Deliver);
        match step {
            Step::Busy => return Ok(Handed::Busy),
            Step::Break => return Err(SinkFault("scripted".into())),
            Step::Take | Step::Deliver => {}
        }
        assert_eq!(
            (ticket.partition, ticket.sequence),
            (record.partition, record.sequence)
        );
        script.taken.push((ticket.partition, ticket.sequence));
        self.waiting.push(ticket);
        self.deliver = matches!(step, Step::Deliver);
        Ok(Handed::Taken)
    }

    fn delivered(&mut self, tickets: &mut Vec<Ticket>) -> Result<(), SinkFault> {
        if self.deliver || self.script.0.lock().unwrap().steps.is_empty() {
            tickets.append(&mut self.waiting);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_sink_does_it_gets_every_event_in_order_and_repeats_only_whole_tails(
        organizations in prop::collection::vec((0..5u8, any::<bool>()), 1..40),
        steps in prop::collection::vec(prop_oneof![4 => Just(Step::Take), 3 => Just(Step::Deliver), 1 => Just(Step::Busy), 1 => Just(Step::Break)], 0..60),
    ) {
        let mut bench = Bench::new(1 << 20, 8 << 10);
        let script = Script::default();
        script.0.lock().unwrap().steps = steps.into();
        let mut shipper = bench.shipper(&script);
        for (n, (organization, tidy)) in organizations.iter().enumerate() {
            let event = sample::event(&format!("r{n}"), &format!("org-{organization}"));
            bench.writer.intent(&event).unwrap();
            bench.writer.outcome(event);
            bench.syncer.round(0);
            shipper.round();
            shipper.retry_now();
            if *tidy {
                shipper.tidy(); // as the clock does, wherever it happens to stand
            }
        }
        script.0.lock().unwrap().steps.clear();
        let needed = (0..ROUNDS_MAX).position(|_| {
            shipper.round();
            shipper.retry_now();
            shipper.idle()
        });
        prop_assert!(needed.is_some(), "a sink that takes and delivers gets everything");
        shipper.tidy();
        prop_assert_eq!(segment::list(bench.folder()).unwrap().len(), 1);
        // What a consumer that drops repeats sees is 1, 2, 3, … in every partition, without a hole.
        let mut reached: BTreeMap<i32, u64> = BTreeMap::new();
        for (partition, sequence) in script.taken() {
            let high = reached.entry(partition).or_default();
            prop_assert!(sequence <= *high + 1, "partition {partition}: {sequence} after {high}");
            *high = (*high).max(sequence);
        }
        prop_assert_eq!(reached.values().sum::<u64>(), organizations.len() as u64);
    }
}
