//! Admins: they write through any replica with idempotency keys, repeat what was not answered, and read.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;
use tollway_control::raft::{Cluster, Proposal};
use tollway_proto::codec::{self, Kind};
use tollway_proto::command::Idempotency;
use tollway_shared::seal::sha256;

use crate::catalog;
use crate::plan::{Planted, chance};
use crate::world::World;

/// One admin, until the faults are over and everything it asked for is answered.
pub(crate) async fn run(world: Arc<World>, number: usize) {
    let mut rng = chance(world.plan.seed, &format!("client {number}"));
    let mut writes = 0;
    while !world.is_calm() {
        sleep(Duration::from_millis(rng.random_range(1..=120))).await;
        if rng.random_bool(0.25) {
            read(&world, &mut rng).await;
        } else {
            writes += 1;
            write(&world, &mut rng, format!("c{number}-{writes}")).await;
        }
    }
}

/// A replica that is up, any of them.
pub(crate) fn some_replica(world: &World, rng: &mut ChaCha8Rng) -> Option<(u64, Cluster)> {
    let id = *world.replicas.up().choose(rng)?;
    Some((id, world.replicas.running(id)?.1))
}

async fn write(world: &Arc<World>, rng: &mut ChaCha8Rng, key: String) {
    let command = catalog::command(rng, &key);
    let register = catalog::register(&command);
    // One write in five is a compare-and-set on what some replica shows right now.
    let if_revision = match (&register, some_replica(world, rng)) {
        (Some(register), Some((_, cluster))) if rng.random_bool(0.2) => {
            catalog::written_at(&cluster.state(), register)
        }
        _ => None,
    };
    let proposal = Proposal {
        actor: "root".into(),
        idempotency: Some(Idempotency {
            key: key.clone(),
            request: sha256(&codec::encode(Kind::Peer, &command)),
            answer: None,
        }),
        if_revision,
        command,
    };
    if world.plant == Some(Planted::AnswersEarly)
        && let Some((_, cluster)) = some_replica(world, rng)
    {
        world.properties.answered_early(&key);
        tokio::spawn(async move { cluster.propose(proposal).await });
        return;
    }
    let mut attempts = 0;
    loop {
        let Some((id, cluster)) = some_replica(world, rng) else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        attempts += 1;
        match cluster.propose(proposal.clone()).await {
            Ok(outcome) => {
                world.trace.note(&format!("{key} by replica {id}: {outcome:?}"));
                world.properties.answer(world, &key, register.as_ref(), &outcome);
                // One caller in ten does not hear the answer and asks again.
                if world.is_calm() || !rng.random_bool(0.1) {
                    return;
                }
            }
            Err(fault) => {
                world.trace.note(&format!("{key} by replica {id}: {fault:?}"));
                if !world.is_calm() && rng.random_bool(0.1) {
                    if attempts == 1 && fault.nothing_written() {
                        world.properties.never_written(&key);
                    }
                    return;
                }
            }
        }
        sleep(Duration::from_millis(rng.random_range(5..=300))).await;
    }
}

async fn read(world: &Arc<World>, rng: &mut ChaCha8Rng) {
    let Some((id, cluster)) = some_replica(world, rng) else {
        return;
    };
    let floor = world.properties.read_begins();
    let passed = world.plant == Some(Planted::StaleReads) || cluster.barrier().await.is_ok();
    if passed {
        world.properties.read_ends(world, id, &floor, &cluster.state());
    }
}
