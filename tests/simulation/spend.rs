//! A usage log and two consumers that both believe they lead: stretches are proposed late, twice and out of order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::time::sleep;
use tollway_control::ledger::rollup::{self, Record};
use tollway_control::raft::{Cluster, Proposal};
use tollway_proto::command::{Command, Outcome, RecordSpend, UsageCell, UsageSums};
use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::cost;
use tollway_shared::ids::{ApiKeyId, OrganizationId, ProjectId, WriterId};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant::TenantPath;

use crate::clients::some_replica;
use crate::plan::chance;
use crate::world::World;

/// Longest stretch that is proposed at once.
const STRETCH_MAX: i64 = 25;
/// Proposals that a consumer remembers, to bring them up again.
const REMEMBERED: usize = 8;

/// The log: one list per partition, only ever appended to. Writers repeat themselves in it.
pub(crate) struct UsageLog(Mutex<Vec<Partition>>);

#[derive(Default, Clone)]
struct Partition {
    events: Vec<UsageEvent>,
    /// The last sequence of each writer.
    sequences: BTreeMap<WriterId, u64>,
}

impl UsageLog {
    pub(crate) fn new(partitions: i32) -> Self {
        Self(Mutex::new(vec![
            Partition::default();
            partitions.unsigned_abs() as usize
        ]))
    }

    /// The end of every partition.
    pub(crate) fn ends(&self) -> BTreeMap<i32, i64> {
        let log = self.0.lock().unwrap();
        (0..)
            .zip(log.iter())
            .map(|(number, partition)| (number, partition.events.len() as i64))
            .collect()
    }

    /// What the log holds up to `offsets`, each event once: the simple way, to compare with.
    pub(crate) fn sums(&self, offsets: impl Iterator<Item = (i32, i64)>) -> BTreeMap<UsageCell, UsageSums> {
        let mut sums: BTreeMap<UsageCell, UsageSums> = BTreeMap::new();
        for (partition, to) in offsets {
            let mut seen = BTreeSet::new();
            for event in self.stretch(partition, 0, to) {
                if !seen.insert((event.writer, event.sequence)) {
                    continue;
                }
                let charge = cost::charge(&event.tokens, &event.prices).expect("small numbers");
                let owed = event.bill(&charge).expect("small numbers").billed;
                let cell = UsageCell {
                    day: event.started_at.0.day(),
                    path: event.tenant,
                    model: event.model,
                    provider: event.provider,
                };
                let kept = sums.entry(cell).or_default();
                kept.requests += 1;
                kept.served += u64::from(event.usage_source != UsageSource::None);
                kept.cost = NanoUsd(kept.cost.0 + charge.total.0);
                kept.billed = NanoUsd(kept.billed.0 + owed.0);
                kept.tokens.add(&event.tokens);
            }
        }
        sums
    }

    fn stretch(&self, partition: i32, from: i64, to: i64) -> Vec<UsageEvent> {
        let log = self.0.lock().unwrap();
        let events = &log[partition.unsigned_abs() as usize].events;
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0).min(events.len());
        events.get(range).unwrap_or_default().to_vec()
    }

    /// A stretch as a consumer reads it.
    fn records(&self, partition: i32, from: i64, to: i64) -> Vec<Record> {
        let events = self.stretch(partition, from, to);
        (from..)
            .zip(events)
            .map(|(offset, event)| Record {
                partition,
                offset,
                next: offset + 1,
                value: serde_json::to_vec(&event).expect("an event is JSON"),
            })
            .collect()
    }
}

/// Appends events until the faults are over; one in ten comes twice.
pub(crate) async fn produce(world: Arc<World>) {
    let mut rng = chance(world.plan.seed, "usage");
    let sample: UsageEvent = serde_json::from_str(include_str!("../../proto/examples/usage-event.v1.json"))
        .expect("the example is an event");
    while !world.is_calm() {
        sleep(Duration::from_millis(rng.random_range(5..=120))).await;
        let mut log = world.usage.0.lock().unwrap();
        let number = rng.random_range(0..log.len());
        let partition = &mut log[number];
        if rng.random_bool(0.1)
            && let Some(again) = partition.events.last().cloned()
        {
            partition.events.push(again);
            continue;
        }
        let writer = WriterId(rng.random_range(1..=3));
        let sequence = partition.sequences.entry(writer).or_default();
        *sequence += 1;
        let mut event = sample.clone();
        (event.writer, event.sequence, event.partition) = (writer, *sequence, number as i32);
        event.tenant = TenantPath {
            organization: OrganizationId::trusted("o"),
            team: None,
            project: ProjectId::trusted("j"),
            key: ApiKeyId::trusted(format!("key-{}", rng.random_range(0..3))),
        };
        event.tokens.input = rng.random_range(1..5_000);
        partition.events.push(event);
    }
}

/// One consumer that believes it leads. Done when everything is counted and the faults are over.
pub(crate) async fn consume(world: Arc<World>, number: u32) {
    let mut rng = chance(world.plan.seed, &format!("consumer {number}"));
    let mut remembered: Vec<RecordSpend> = Vec::new();
    loop {
        sleep(Duration::from_millis(rng.random_range(10..=250))).await;
        let Some((_, reader)) = some_replica(&world, &mut rng) else {
            continue;
        };
        let state = reader.state();
        let offsets = &state.usage_offsets;
        let reached = |partition: i32| offsets.get(&partition).copied().unwrap_or(0);
        let ends = world.usage.ends();
        let waiting: Vec<i32> = ends
            .iter()
            .filter(|(p, end)| reached(**p) < **end)
            .map(|(p, _)| *p)
            .collect();
        if waiting.is_empty() && world.is_calm() {
            return;
        }
        let stretch = match waiting.choose(&mut rng) {
            Some(partition) if world.is_calm() || !rng.random_bool(0.15) => {
                let from = reached(*partition);
                let to = ends[partition].min(from + rng.random_range(1..=STRETCH_MAX));
                let records = world.usage.records(*partition, from, to);
                let seen = |writer| {
                    let mark = state.usage_writers.get(&(*partition, writer));
                    mark.map(|mark| mark.sequence)
                };
                rollup::fold(*partition, from, &records, state.now, seen).0
            }
            _ => match remembered.choose(&mut rng) {
                Some(old) => old.clone(),
                None => continue,
            },
        };
        remembered.push(stretch.clone());
        if remembered.len() > REMEMBERED {
            remembered.remove(0);
        }
        if rng.random_bool(0.3)
            && let Some((_, other)) = some_replica(&world, &mut rng)
        {
            tokio::spawn(propose(world.clone(), other, stretch.clone()));
        }
        if let Some((_, cluster)) = some_replica(&world, &mut rng) {
            propose(world.clone(), cluster, stretch).await;
        }
    }
}

async fn propose(world: Arc<World>, cluster: Cluster, stretch: RecordSpend) {
    let (partition, from, to) = (stretch.partition, stretch.from, stretch.to);
    let outcome = cluster
        .propose(Proposal::system(Command::RecordSpend(stretch)))
        .await;
    let told = match outcome {
        Ok(Outcome::Done(_)) => "counted",
        Ok(Outcome::Refused(_)) => "refused",
        Err(_) => "unknown",
    };
    world
        .trace
        .note(&format!("usage {partition} {from}..{to}: {told}"));
}
