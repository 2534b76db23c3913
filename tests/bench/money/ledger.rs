//! How fast a replica folds usage events from a real broker, and where the time goes.
//!
//! All events are on Kafka before the replica starts; time runs from the first that it has counted to the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::broker::Broker;
use super::flood::PARTITIONS;
use super::scrape::Metrics;
use crate::node::{Making, Replica};
use crate::proc::{Cpu, run_by_thread};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one more event.
const STALL_MAX: Duration = Duration::from_secs(60);

/// The two that read the log: what they count, and their stages.
pub(crate) const READERS: [(&str, &str, &str, [&str; 3]); 2] = [
    (
        "ledger",
        "tollway_ledger_events_total",
        "tollway_ledger_batch_seconds_sum",
        ["read", "fold", "record"],
    ),
    (
        "billing store",
        "tollway_billing_events_total",
        "tollway_billing_batch_seconds_sum",
        ["read", "fold", "write"],
    ),
];

/// What one reader did.
pub(crate) struct Pace {
    pub(crate) reader: &'static str,
    pub(crate) events_per_s: f64,
    /// Wall time of each stage per event, microseconds.
    pub(crate) stages: Vec<(&'static str, f64)>,
}

/// What a run gave.
pub(crate) struct Fold {
    pub(crate) paces: Vec<Pace>,
    /// Processor time per event, microseconds: of the replica by thread, and of the broker.
    pub(crate) threads: BTreeMap<String, f64>,
    pub(crate) broker_us: f64,
}

impl Fold {
    /// How it is printed.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .paces
            .iter()
            .map(|pace| {
                let stages = pace.stages.iter();
                let stages: Vec<String> = stages.map(|(name, us)| format!("{name} {us:.1}")).collect();
                format!(
                    "{}: {:.0} events/s; time of its stages, µs per event: {}",
                    pace.reader,
                    pace.events_per_s,
                    stages.join(", ")
                )
            })
            .collect();
        let threads: Vec<String> = self
            .threads
            .iter()
            .filter(|(_, us)| **us >= 0.05)
            .map(|(name, us)| format!("{name} {us:.1}"))
            .collect();
        lines.push(format!(
            "processor time, µs per event: replica {:.1} ({}), broker {:.1}",
            self.threads.values().sum::<f64>(),
            threads.join(", "),
            self.broker_us
        ));
        lines
    }
}

/// Starts a replica on the broker's events and waits until it has counted all.
///
/// - `store`: `billing.store` of the replica; with `none` only the replicated sums are kept.
pub(crate) fn measure(mut making: Making<'_>, broker: &Broker, events: u64, store: &str) -> Result<Fold> {
    let config = format!(
        "[usage]\nsource = \"kafka\"\nbrokers = \"{}\"\npartitions = {PARTITIONS}\nreplication = 1\n[billing]\nstore = \"{store}\"\n",
        broker.address()
    );
    let readers = &READERS[..if store == "none" { 1 } else { 2 }];
    let Replica { mut part, admin, .. } = making.replica("http", &config)?;
    let mut ran: Vec<Option<Ran>> = readers.iter().map(|_| None).collect();
    let mut start: Option<(Cpu, BTreeMap<String, f64>)> = None;
    let (mut seen, mut moved) = (0.0, Instant::now());
    loop {
        if let Some(status) = part.ended()? {
            bail!("the replica ended with {status}:\n{}", making.last_words());
        }
        std::thread::sleep(PAUSE);
        let Ok(metrics) = Metrics::of(admin) else {
            ensure!(moved.elapsed() < STALL_MAX, "the replica does not answer");
            continue; // it is starting
        };
        let mut all = 0.0;
        for (ran, (_, counter, busy, stages)) in ran.iter_mut().zip(readers) {
            let count = metrics.sum(counter);
            all += count;
            if count > 0.0 {
                let stages = stages.map(|stage| metrics.of_label(busy, "stage", stage));
                ran.get_or_insert_with(|| Ran::from(count, stages))
                    .to(count, stages);
            }
        }
        if all > seen {
            (seen, moved) = (all, Instant::now());
        }
        if all > 0.0 && start.is_none() {
            start = Some((Cpu::read(broker.pid()?)?, run_by_thread(part.pid())?));
        }
        if ran
            .iter()
            .all(|ran| ran.as_ref().is_some_and(|ran| ran.last >= events as f64))
        {
            break;
        }
        ensure!(
            moved.elapsed() < STALL_MAX,
            "stands still at {seen} of {events} events:\n{}",
            making.last_words()
        );
    }
    let Some((broker_cpu, threads)) = start else {
        bail!("no event was counted");
    };
    let all = events as f64;
    let broker_us = Cpu::read(broker.pid()?)?.since(broker_cpu).run_us / all;
    let mut used = run_by_thread(part.pid())?;
    for (name, us) in &mut used {
        *us = (*us - threads.get(name).copied().unwrap_or_default()) / all;
    }
    let paces = ran.into_iter().flatten().zip(readers);
    let paces = paces.map(|(ran, (reader, _, _, stages))| ran.pace(reader, stages));
    Ok(Fold {
        paces: paces.collect(),
        threads: used,
        broker_us,
    })
}

/// How far a reader was when it was first seen to have counted something, and how far it came.
struct Ran {
    begun: Instant,
    first: f64,
    before: [f64; 3],
    ended: Instant,
    last: f64,
    after: [f64; 3],
}

impl Ran {
    fn from(count: f64, stages: [f64; 3]) -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            first: count,
            before: stages,
            ended: now,
            last: count,
            after: stages,
        }
    }

    fn to(&mut self, count: f64, stages: [f64; 3]) {
        if count > self.last {
            (self.ended, self.last, self.after) = (Instant::now(), count, stages);
        }
    }

    fn pace(self, reader: &'static str, stages: &[&'static str; 3]) -> Pace {
        let events = self.last - self.first;
        let spent = self.after.iter().zip(self.before);
        let each = spent.map(|(after, before)| (after - before) * 1e6 / events);
        Pace {
            reader,
            events_per_s: events / (self.ended - self.begun).as_secs_f64(),
            stages: stages.iter().copied().zip(each).collect(),
        }
    }
}
