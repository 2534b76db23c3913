//! Replicated state and push under one printed seed: faults first, then healing.
//!
//! Real: consensus with the log store's group commit, `state::apply`, the view and session of the push, the nodes' intake, the
//! ledger's fold. Simulated: the network, disks, clocks, clients and the usage log.
//!
//! One seed is one process, one thread and a paused clock, so that it runs the same way every time: `one_seed` is that process,
//! the other tests start it. `TOLLWAY_SIM_SEEDS=1000` runs that many seeds, `TOLLWAY_SEED=7` starts with that one.
//!
//! | file | what |
//! |---|---|
//! | [`budget`] | leased budgets: many more seeds of a smaller world |
//! | [`world`] | a run from the first message to the last check |
//! | [`replicas`], [`network`] | the control plane, and what happens to its messages |
//! | [`nodes`], [`push`] | data-plane nodes and the streams to them |
//! | [`clients`], [`catalog`], [`spend`] | who writes what |
//! | [`faults`], [`members`] | what goes wrong, and who changes the cluster meanwhile |
//! | [`properties`] | what must hold all the same |
//! | [`plan`], [`entropy`], [`trace`] | what a seed decides, and the record of what it did |

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod budget;
mod catalog;
mod clients;
mod entropy;
mod faults;
mod members;
mod network;
mod nodes;
mod plan;
mod properties;
mod push;
mod replicas;
mod spend;
mod trace;
mod world;

use std::process::Command;
use std::sync::{Condvar, Mutex};

use plan::Planted;

/// Seeds that are run when nobody says otherwise: about two minutes on two cores.
const SEEDS: u64 = 30;
/// A planted bug has to be found within this many seeds.
const SEEDS_TO_FIND: u64 = 20;
/// Processes at the same time, whatever number of tests runs them.
const AT_ONCE: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}=`{text}` is not a number")),
    )
}

/// What one process said.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    /// `kept trace=… …`, or `broken property=… …`.
    verdict: String,
    output: String,
}

impl Report {
    /// The property that did not hold.
    fn broken(&self) -> Option<&str> {
        let rest = self.verdict.strip_prefix("broken property=")?;
        rest.split_whitespace().next()
    }
}

impl Report {
    /// A number of the verdict.
    fn figure(&self, name: &str) -> u64 {
        let words = self
            .verdict
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        let mut found = words.filter(|(key, _)| *key == name);
        found
            .next()
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0)
    }
}

/// Runs a seed in a process of its own.
///
/// - `test`: the ignored test that is one seed. `plant`: the name of the bug that is put in.
fn process(test: &str, seed: u64, plant: Option<String>) -> Report {
    let mut command = Command::new(std::env::current_exe().expect("a test has a binary"));
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("TOLLWAY_SEED", seed.to_string());
    match plant {
        Some(bug) => command.env("TOLLWAY_SIM_PLANT", bug),
        None => command.env_remove("TOLLWAY_SIM_PLANT"),
    };
    {
        let running = RUNNING.lock().unwrap();
        *ENDED.wait_while(running, |running| *running == AT_ONCE).unwrap() += 1;
    }
    let ended = command.output();
    *RUNNING.lock().unwrap() -= 1;
    ENDED.notify_one();
    let ended = ended.expect("this binary can be started again");
    let output =
        String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    let verdict = output
        .lines()
        .find_map(|line| line.strip_prefix("verdict: "))
        .unwrap_or_default();
    Report {
        verdict: verdict.to_owned(),
        output,
    }
}

/// A seed of the whole cluster.
fn cluster(seed: u64, plant: Option<Planted>) -> Report {
    process("one_seed", seed, plant.map(|bug| format!("{bug:?}")))
}

/// Runs seeds, some at a time. Returns those that broke a promise, in order.
fn seeds(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Report + Sync) -> Vec<(u64, Report)> {
    let (waiting, failed) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(seed) = waiting.lock().unwrap().next() else {
                        return;
                    };
                    let report = run(seed);
                    if !report.verdict.starts_with("kept ") {
                        failed.lock().unwrap().push((seed, report));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, _)| *seed);
    failed
}

/// How to see a failure again.
fn replay(seed: u64) -> String {
    format!(
        "TOLLWAY_SEED={seed} cargo test -p tollway-tests --test simulation one_seed -- --exact --ignored --nocapture"
    )
}

fn must_be_kept(seed: u64, report: &Report) {
    assert!(
        report.verdict.starts_with("kept "),
        "seed {seed}: {}\n{}\nto see it again: {}",
        report.verdict,
        report.output,
        replay(seed)
    );
}

#[test]
#[ignore = "one process per seed; the other tests start it"]
fn one_seed() {
    let seed = number("TOLLWAY_SEED").unwrap_or(1);
    let plant = std::env::var("TOLLWAY_SIM_PLANT").ok().map(|name| {
        Planted::named(&name)
            .unwrap_or_else(|| panic!("TOLLWAY_SIM_PLANT=`{name}` is none of {:?}", Planted::ALL))
    });
    println!("seed {seed}");
    match world::run(seed, plant) {
        Ok(run) => println!(
            "verdict: kept trace={:016x} events={} entries={} answered={} installs={} reverted={}",
            run.trace, run.events, run.entries, run.answered, run.installs, run.reverted
        ),
        Err(violation) => {
            println!(
                "verdict: broken property={} {}",
                violation.property, violation.text
            );
            panic!(
                "seed {seed}: {}: {}\nto see it again: {}",
                violation.property,
                violation.text,
                replay(seed)
            );
        }
    }
}

#[test]
fn every_promise_holds_under_faults_and_everything_heals_afterwards() {
    let first = number("TOLLWAY_SEED").unwrap_or(1);
    let count = number("TOLLWAY_SIM_SEEDS").unwrap_or(if first == 1 { SEEDS } else { 1 });
    println!("seeds {first}..{}", first + count);
    let reached = Mutex::new([("installs", 0), ("reverted", 0)]);
    let failed = seeds(first..first + count, |seed| {
        let report = cluster(seed, None);
        println!("seed {seed}: {}", report.verdict);
        for (name, sum) in &mut *reached.lock().unwrap() {
            *sum += report.figure(name);
        }
        report
    });
    if let Some((seed, report)) = failed.first() {
        must_be_kept(*seed, report);
    }
    // Checkpoints sent between replicas and logs that took entries back are where consensus libraries go wrong: without them the
    // faults are too tame to mean anything.
    let reached = reached.into_inner().unwrap();
    assert!(
        count < SEEDS || reached.iter().all(|(_, sum)| *sum > 0),
        "{reached:?}"
    );
}

#[test]
fn a_seed_runs_the_same_way_every_time() {
    let first = cluster(3, None);
    must_be_kept(3, &first);
    let again = cluster(3, None);
    assert_eq!(first.verdict, again.verdict);
    assert_ne!(
        first.verdict,
        cluster(4, None).verdict,
        "the trace says nothing about the run"
    );
}

/// Runs seeds until the bug shows; the same seed without it must be clean.
fn is_found(bug: Planted) {
    for seed in 1..=SEEDS_TO_FIND {
        let report = cluster(seed, Some(bug));
        if report.verdict.starts_with("kept ") {
            continue;
        }
        let property = report
            .broken()
            .unwrap_or_else(|| panic!("seed {seed} gave no verdict:\n{}", report.output));
        println!("{bug:?}: seed {seed}: {}", report.verdict);
        assert!(
            bug.caught_by().contains(&property),
            "{bug:?} was found by `{property}`, not by one of {:?}:\n{}",
            bug.caught_by(),
            report.output
        );
        return must_be_kept(seed, &cluster(seed, None));
    }
    panic!("{bug:?} was not found by any of {SEEDS_TO_FIND} seeds");
}

#[test]
fn a_planted_double_count_of_usage_is_found() {
    is_found(Planted::CountsTwice);
}

#[test]
fn a_planted_replica_that_skips_an_entry_is_found() {
    is_found(Planted::SkipsEntry);
}

#[test]
fn a_planted_loss_of_idempotency_is_found() {
    is_found(Planted::ForgetsIdempotency);
}

#[test]
fn a_planted_answer_before_the_commit_is_found() {
    is_found(Planted::AnswersEarly);
}

#[test]
fn a_planted_disk_that_lies_about_syncs_is_found() {
    is_found(Planted::LyingDisk);
}

#[test]
fn a_planted_read_without_its_barrier_is_found() {
    is_found(Planted::StaleReads);
}

#[test]
fn a_planted_node_that_goes_back_is_found() {
    is_found(Planted::NodeGoesBack);
}
