//! Operators: they take a replica out for good and put a new one with an empty disk in its place, faults or not.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::time::{sleep, timeout};
use tollway_control::raft::MembersFault;
use tollway_shared::ids::ReplicaId;

use crate::clients::some_replica;
use crate::plan::chance;
use crate::replicas::{self, member};
use crate::world::World;

/// How long an operator waits for one call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replaces replicas until the faults are over, and finishes what it began.
pub(crate) async fn run(world: Arc<World>) {
    let mut rng = chance(world.plan.seed, "members");
    loop {
        let wait = Duration::from_millis(rng.random_range(3_000..=20_000));
        let wake = tokio::time::Instant::now() + wait;
        while tokio::time::Instant::now() < wake {
            sleep(Duration::from_millis(50)).await;
            if world.is_calm() {
                return;
            }
        }
        let Some(old) = world.replicas.ids().choose(&mut rng).copied() else {
            return;
        };
        let new = world.replicas.next_id();
        world
            .trace
            .note(&format!("replica {new} is to replace replica {old}"));
        // The new one first, so that there is never one voter less than planned.
        world.replicas.make(new..=new);
        replicas::start(&world, new).await;
        loop {
            if let Some((_, cluster)) = some_replica(&world, &mut rng)
                && cluster.id() != ReplicaId(new)
                && let Ok(Ok(())) = timeout(PATIENCE, cluster.add_replica(ReplicaId(new), member(new))).await
            {
                break;
            }
            sleep(Duration::from_millis(rng.random_range(20..=300))).await;
        }
        world.trace.note(&format!("replica {new} votes"));
        loop {
            if let Some((_, cluster)) = some_replica(&world, &mut rng)
                && cluster.id() != ReplicaId(old)
                && let Ok(Ok(()) | Err(MembersFault::NotFound(_))) =
                    timeout(PATIENCE, cluster.remove_replica(ReplicaId(old))).await
            {
                break;
            }
            sleep(Duration::from_millis(rng.random_range(20..=300))).await;
        }
        world.trace.note(&format!("replica {old} is out"));
        replicas::scrap(&world, old).await;
    }
}
