//! A hard budget of one dollar, eight nodes in two regions, 64 callers, and whatever can happen to a cluster: nodes killed, leaders
//! killed, nodes, leaders and a region cut off while they run.
//!
//! The providers' own count, at the prices of the catalog, is not a nano-dollar above the dollar. Once everything is mended the
//! rest of the dollar is spent too, but for what was set aside by requests that died. The faults come from a seed, which is
//! printed; `TOLLWAY_SEED` repeats one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tollway_tests::cluster::Plan;
use tollway_tests::network::{Network, Place};
use tollway_tests::wait;

use crate::spend::{self, Callers, Question};
use crate::world::{self, World};

/// Callers on each of the eight nodes.
const CALLERS: usize = 8;
/// Some two thousand and four hundred of these cost a dollar, more than the callers spend before the last fault.
const QUESTION: Question = Question {
    tokens: 1_000,
    stall_ms: 400,
};
/// Faults, of each kind at least one.
const FAULTS: usize = 8;
/// How long one lasts, and the pause before the next, in milliseconds.
const LASTS_MS: std::ops::Range<u64> = 500..5_000;
const PAUSE_MS: std::ops::Range<u64> = 200..1_500;
/// When to give up waiting for one thing.
const DEADLINE: Duration = Duration::from_secs(120);

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NodeKilled,
    LeaderKilled,
    NodeCutOff,
    LeaderCutOff,
    RegionCutOff,
}

const KINDS: [Fault; 5] = [
    Fault::NodeKilled,
    Fault::LeaderKilled,
    Fault::NodeCutOff,
    Fault::LeaderCutOff,
    Fault::RegionCutOff,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dollar_is_a_dollar_whoever_dies_or_is_cut_off() -> Result<()> {
    let _turn = crate::turn().await;
    let name = "partition::a_dollar_is_a_dollar_whoever_dies_or_is_cut_off";
    let Some(network) = tokio::task::block_in_place(|| Network::enter(name))? else {
        return Ok(());
    };
    let seed = match std::env::var("TOLLWAY_SEED") {
        Ok(seed) => seed.parse().context("TOLLWAY_SEED is a number")?,
        Err(_) => rand::random(),
    };
    println!("TOLLWAY_SEED={seed}");
    let mut world = World::start_in(
        Some(network),
        Plan {
            replicas: 3,
            nodes: vec!["eu", "us", "eu", "us", "eu", "us", "eu", "us"],
            brokers: 1,
        },
    )
    .await?;
    // The consensus library may call a peer's death an error; what it means to the cluster is told by our own lines.
    world.cluster.announce(" openraft::");
    let callers = Callers::start(&world, CALLERS, QUESTION).await?;
    let kills = all_faults(&mut world, &callers, &mut ChaCha8Rng::seed_from_u64(seed)).await?;
    let tally = callers.spent(DEADLINE).await?;
    // A caller that gave an answer up asks again while the node reads that answer on: a kill hits up to two of each.
    spend::a_dollar_was_spent(&world, &tally, QUESTION, kills * 2 * CALLERS).await?;

    let records = world.events(DEADLINE).await?;
    let events = tollway_tests::events::deduplicated(&records)?;
    let found = world::compare(&world.seen(), &events, world::listed)?;
    let billed = world.ledger_agrees(&events, DEADLINE).await?;
    println!(
        "{} events, {found:?}; the ledger has {billed} dollars",
        events.len()
    );
    Ok(())
}

/// One fault after the other, each mended before the next. Says how many nodes were killed.
async fn all_faults(world: &mut World, callers: &Callers, rng: &mut ChaCha8Rng) -> Result<usize> {
    let mut faults = KINDS.to_vec();
    faults.resize_with(FAULTS, || *KINDS.choose(rng).expect("there are kinds"));
    faults.shuffle(rng);
    let begun = Instant::now();
    let mut kills = 0;
    for fault in faults {
        tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let lasts = Duration::from_millis(rng.random_range(LASTS_MS));
        let node = rng.random_range(0..world.cluster.nodes.len());
        let leader = leader(world).await;
        println!(
            "{:?}: {fault:?} for {lasts:?}: node {node}, leader {leader}; {} served",
            begun.elapsed(),
            callers.served()
        );
        let replicas: Vec<Place> = places(world.cluster.replicas.iter());
        let nodes = world.cluster.nodes.iter();
        match fault {
            Fault::NodeKilled => {
                kills += 1;
                let member = &mut world.cluster.nodes[node].member;
                member.kill();
                tokio::time::sleep(lasts).await;
                member.start()?;
                member.ready(&world.cluster.http).await;
            }
            Fault::LeaderKilled => {
                let member = &mut world.cluster.replicas[leader];
                member.kill();
                tokio::time::sleep(lasts).await;
                member.start()?;
            }
            Fault::NodeCutOff => {
                let one = [world.cluster.nodes[node].member.place.clone()];
                cut_off(world, &one, &replicas, lasts).await?;
            }
            Fault::LeaderCutOff => {
                let mut others = replicas;
                let one = [others.remove(leader)];
                cut_off(world, &one, &others, lasts).await?;
            }
            Fault::RegionCutOff => {
                let region = world.cluster.nodes[node].region.clone();
                let cut = nodes.filter(|node| node.region == region);
                let cut = places(cut.map(|node| &node.member));
                cut_off(world, &cut, &replicas, lasts).await?;
            }
        }
    }
    Ok(kills)
}

/// Cuts some off from others for a while.
async fn cut_off(world: &World, some: &[Place], others: &[Place], lasts: Duration) -> Result<()> {
    let network = world.cluster.network.as_ref().context("a network of its own")?;
    let pairs = || {
        some.iter()
            .flat_map(|one| others.iter().map(move |other| (one, other)))
    };
    pairs().try_for_each(|(one, other)| network.cut(one, other))?;
    tokio::time::sleep(lasts).await;
    pairs().try_for_each(|(one, other)| network.mend(one, other))
}

fn places<'a>(members: impl Iterator<Item = &'a tollway_tests::cluster::Member>) -> Vec<Place> {
    members.map(|member| member.place.clone()).collect()
}

/// The leading replica, once there is one that all can reach.
async fn leader(world: &World) -> usize {
    wait::until_ok(DEADLINE, "there is a leader", || async {
        let leader = world.cluster.leader().await?;
        ensure!(leader < world.cluster.replicas.len(), "{leader} is none of ours");
        Ok::<_, anyhow::Error>(leader)
    })
    .await
}
