//! What goes wrong: partitions, crashes, slow and failing disks, clocks that jump, storms of loss.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep};

use crate::plan::chance;
use crate::replicas;
use crate::world::World;

/// An hour, for clocks.
const HOUR_MS: i64 = 3_600_000;

/// Faults at random moments, for as long as the plan says.
pub(crate) async fn run(world: &Arc<World>) {
    let mut rng = chance(world.plan.seed, "faults");
    let end = Instant::now() + world.plan.faults_for;
    let mean = u64::try_from(world.plan.fault_every.as_millis()).unwrap_or(1_000);
    while Instant::now() < end {
        sleep(Duration::from_millis(rng.random_range(mean / 4..=mean * 2))).await;
        one(world, &mut rng).await;
    }
}

async fn one(world: &Arc<World>, rng: &mut ChaCha8Rng) {
    let ids = world.replicas.ids();
    let some = *ids.choose(rng).unwrap_or(&1);
    let leader = world.replicas.leader().unwrap_or(some);
    match rng.random_range(0..100) {
        0..26 => mend(world),
        26..32 => isolate(world, leader),
        32..38 => isolate(world, some),
        38..46 => split(world, rng),
        46..52 => {
            let other = *ids.choose(rng).unwrap_or(&1);
            world.trace.note(&format!("cut {some} -> {other}"));
            world.net.cut(some, other);
        }
        52..62 => crash_for_a_while(world, some, rng).await,
        62..70 => crash_for_a_while(world, leader, rng).await,
        70..73 => {
            world.trace.note("everything loses power");
            for id in &ids {
                replicas::crash(world, *id).await;
            }
            sleep(Duration::from_millis(rng.random_range(10..=500))).await;
            for id in &ids {
                replicas::start(world, *id).await;
            }
        }
        73..80 => {
            let takes = Duration::from_millis(rng.random_range(5..=400));
            world.trace.note(&format!("disk {some} takes {takes:?}"));
            world.replicas.slow_disk(some, takes);
        }
        80..84 => ids
            .iter()
            .for_each(|id| world.replicas.slow_disk(*id, Duration::from_millis(1))),
        84..86 => {
            world.trace.note(&format!("disk {some} fails"));
            world.replicas.break_disk(some);
        }
        86..90 => {
            let ms = rng.random_range(-HOUR_MS..=HOUR_MS);
            world.trace.note(&format!("clock {some} is off by {ms} ms"));
            world.replicas.skew(some, ms);
        }
        90..94 => {
            world.trace.note("a storm");
            world.net.rates(0.3, 0.2, world.plan.delay_ms * 3);
            sleep(Duration::from_millis(rng.random_range(200..=2_000))).await;
            world
                .net
                .rates(world.plan.lost, world.plan.twice, world.plan.delay_ms);
        }
        94..96 => {
            if let Some((_, cluster)) = world.replicas.running(leader) {
                world.trace.note(&format!("replica {leader} hands over"));
                let _ = tokio::time::timeout(Duration::from_secs(1), cluster.transfer_leader()).await;
            }
        }
        _ => world.nodes.disturb(world, rng),
    }
}

fn mend(world: &World) {
    world.trace.note("mended");
    world.net.mend();
}

fn isolate(world: &World, id: u64) {
    world.trace.note(&format!("replica {id} is cut off"));
    for other in world.replicas.ids().into_iter().filter(|other| *other != id) {
        world.net.cut(id, other);
        world.net.cut(other, id);
    }
}

fn split(world: &World, rng: &mut ChaCha8Rng) {
    let mut ids = world.replicas.ids();
    ids.shuffle(rng);
    let (few, many) = ids.split_at(ids.len() / 2);
    world.trace.note(&format!("{few:?} and {many:?} are split"));
    for one in few {
        for other in many {
            world.net.cut(*one, *other);
            world.net.cut(*other, *one);
        }
    }
}

async fn crash_for_a_while(world: &Arc<World>, id: u64, rng: &mut ChaCha8Rng) {
    let away = Duration::from_millis(rng.random_range(20..=4_000));
    replicas::crash(world, id).await;
    let world = world.clone();
    tokio::spawn(async move {
        sleep(away).await;
        replicas::start(&world, id).await;
    });
}
