//! The control plane's replicas: started, crashed, restarted from what their disks kept.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tollway_control::raft::{
    Cluster, MemoryDisk, MemoryShelf, Now, RaftConfig, Timings, start_in_memory_with,
};
use tollway_control::state;
use tollway_proto::command::Member;
use tollway_shared::ids::{ClusterId, ReplicaId};
use tollway_shared::time::UnixMillis;

use crate::network::Port;
use crate::plan::Planted;
use crate::world::World;

/// 2026-11-22T12:00:00Z, when every run begins.
pub(crate) const BEGIN: UnixMillis = UnixMillis(1_795_348_800_000);
/// What a lying disk loses in a crash.
const FORGOTTEN_ENTRIES: usize = 6;

/// Every replica, up or down.
#[derive(Default)]
pub(crate) struct Replicas(Mutex<BTreeMap<u64, Slot>>);

#[derive(Default)]
struct Slot {
    disk: MemoryDisk,
    shelf: MemoryShelf,
    running: Option<Cluster>,
    /// Counts starts.
    life: u64,
    /// How far its clock is off.
    skew_ms: i64,
    /// Its disk was told to fail, so it may stop.
    excused: bool,
    /// A start or a crash is underway.
    busy: bool,
}

impl Replicas {
    /// Makes room for replicas with empty disks.
    pub(crate) fn make(&self, ids: RangeInclusive<u64>) {
        let mut slots = self.0.lock().unwrap();
        slots.extend(ids.map(|id| (id, Slot::default())));
    }

    /// An id that no replica ever had: members are only taken out once a younger one is in.
    pub(crate) fn next_id(&self) -> u64 {
        self.0
            .lock()
            .unwrap()
            .keys()
            .next_back()
            .map_or(1, |last| last + 1)
    }

    /// A replica that is up, and which of its lives this is.
    pub(crate) fn running(&self, id: u64) -> Option<(u64, Cluster)> {
        let slots = self.0.lock().unwrap();
        let slot = slots.get(&id)?;
        Some((slot.life, slot.running.clone()?))
    }

    /// Every replica's id.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    /// The ids of those that are up.
    pub(crate) fn up(&self) -> Vec<u64> {
        let slots = self.0.lock().unwrap();
        slots
            .iter()
            .filter(|(_, slot)| slot.running.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// The one that believes it leads in the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let slots = self.0.lock().unwrap();
        let leads = |slot: &Slot| {
            slot.running
                .as_ref()
                .filter(|cluster| cluster.is_leader())
                .map(|c| c.status().term)
        };
        slots
            .iter()
            .filter_map(|(id, slot)| leads(slot).map(|term| (term, *id)))
            .max()
            .map(|(_, id)| id)
    }

    /// Synced entries that logs took back.
    pub(crate) fn reverted(&self) -> u64 {
        self.0
            .lock()
            .unwrap()
            .values()
            .map(|slot| slot.disk.taken_back())
            .sum()
    }

    /// Sets how long a replica's disk takes to sync.
    pub(crate) fn slow_disk(&self, id: u64, takes: Duration) {
        if let Some(slot) = self.0.lock().unwrap().get(&id) {
            slot.disk.set_sync_takes(takes);
        }
    }

    /// Makes a replica's disk fail from now on; the replica has to stop.
    pub(crate) fn break_disk(&self, id: u64) {
        if let Some(slot) = self.0.lock().unwrap().get_mut(&id) {
            slot.disk.set_fails(true);
            slot.excused = true;
        }
    }

    /// Sets how far a replica's clock is off.
    pub(crate) fn skew(&self, id: u64, ms: i64) {
        if let Some(slot) = self.0.lock().unwrap().get_mut(&id) {
            slot.skew_ms = ms;
        }
    }

    fn skew_of(&self, id: u64) -> i64 {
        self.0.lock().unwrap().get(&id).map_or(0, |slot| slot.skew_ms)
    }

    /// Whether this life of the replica was told that it may stop.
    fn may_stop(&self, id: u64, life: u64) -> bool {
        let slots = self.0.lock().unwrap();
        slots
            .get(&id)
            .is_none_or(|slot| slot.excused || slot.life != life || slot.running.is_none())
    }

    fn claim(&self, id: u64, up: bool) -> bool {
        let mut slots = self.0.lock().unwrap();
        match slots.get_mut(&id) {
            Some(slot) if !slot.busy && slot.running.is_some() == up => {
                slot.busy = true;
                true
            }
            _ => false,
        }
    }
}

/// Where a replica is found; the simulated network goes by id alone.
pub(crate) fn member(id: u64) -> Member {
    Member {
        peer_address: format!("replica-{id}:7601"),
        admin_url: format!("https://replica-{id}:7600"),
    }
}

/// Starts a replica that is down from what its disk kept.
pub(crate) async fn start(world: &Arc<World>, id: u64) {
    if !world.replicas.claim(id, false) {
        return;
    }
    let (disk, shelf, life) = {
        let mut slots = world.replicas.0.lock().unwrap();
        let slot = slots.get_mut(&id).expect("it was claimed");
        slot.life += 1;
        slot.excused = false;
        slot.disk.set_fails(false);
        (slot.disk.clone(), slot.shelf.clone(), slot.life)
    };
    world.trace.note(&format!("replica {id} starts"));
    let config = RaftConfig {
        id: ReplicaId(id),
        cluster: ClusterId::trusted("simulation"),
        data_dir: std::path::PathBuf::new(),
        timings: Timings {
            heartbeat_ms: world.plan.heartbeat_ms,
            election_timeout_ms: world.plan.election_timeout_ms,
            checkpoint_entries: world.plan.checkpoint_entries,
            kept_entries: world.plan.kept_entries,
            install_timeout_ms: 2_000,
        },
    };
    let port = Arc::new(Port {
        world: Arc::downgrade(world),
        id,
    });
    let clock = Arc::downgrade(world);
    let now: Now = Arc::new(move || match clock.upgrade() {
        Some(world) => BEGIN.plus_ms(world.trace.elapsed_ms() + world.replicas.skew_of(id)),
        None => BEGIN,
    });
    let watched = Arc::downgrade(world);
    let apply = Arc::new(move |state: &mut state::State, index: u64, entry: &_| {
        let world = watched.upgrade();
        let plant = world.as_ref().and_then(|world| world.plant);
        let applied = apply_with(plant, id, state, index, entry);
        if let Some(world) = world {
            world
                .properties
                .applied(&world, id, index, entry, &applied, state);
        }
        applied
    });
    match start_in_memory_with(config, disk, shelf, port, now, apply).await {
        Ok(cluster) => {
            {
                let mut slots = world.replicas.0.lock().unwrap();
                let slot = slots.get_mut(&id).expect("it was claimed");
                slot.running = Some(cluster.clone());
                slot.busy = false;
            }
            tokio::spawn(watch(world.clone(), id, life, cluster));
        }
        Err(fault) => world.broken("replicas_run", format!("replica {id} does not start: {fault}")),
    }
}

/// `state::apply`, or what a planted bug makes of it.
fn apply_with(
    plant: Option<Planted>,
    replica: u64,
    state: &mut state::State,
    index: u64,
    entry: &tollway_proto::command::Entry,
) -> state::Applied {
    use tollway_proto::command::Command;
    let mut entry = std::borrow::Cow::Borrowed(entry);
    match (plant, &entry.command) {
        (Some(Planted::CountsTwice), Command::RecordSpend(_)) => {
            let mut looser = entry.into_owned();
            if let Command::RecordSpend(stretch) = &mut looser.command {
                let reached = state.usage_offsets.get(&stretch.partition).copied().unwrap_or(0);
                stretch.from = reached;
                stretch.to = stretch.to.max(reached);
            }
            entry = std::borrow::Cow::Owned(looser);
        }
        (Some(Planted::ForgetsIdempotency), _) => entry.to_mut().idempotency = None,
        (Some(Planted::SkipsEntry), _) if replica == 2 && index.is_multiple_of(40) => {
            let mut elsewhere = state.clone();
            let applied = state::apply(&mut elsewhere, index, &entry);
            state.applied = index;
            return applied;
        }
        _ => {}
    }
    state::apply(state, index, &entry)
}

/// A replica may only stop when its disk was made to fail; then its process ends, and somebody starts it again.
fn watch(world: Arc<World>, id: u64, life: u64, cluster: Cluster) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let reason = cluster.failed().await;
        if world.replicas.may_stop(id, life) {
            world
                .trace
                .note(&format!("replica {id} stopped: its disk failed"));
            crash(&world, id).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            start(&world, id).await;
        } else {
            world.broken("replicas_run", format!("replica {id} stopped: {reason}"));
        }
    })
}

/// Takes a replica and its disk away for good, once whatever happens to it right now is over.
pub(crate) async fn scrap(world: &Arc<World>, id: u64) {
    loop {
        crash(world, id).await;
        {
            let mut slots = world.replicas.0.lock().unwrap();
            if slots
                .get(&id)
                .is_none_or(|slot| slot.running.is_none() && !slot.busy)
            {
                slots.remove(&id);
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Crashes a replica that is up: what it had not synced is gone.
pub(crate) async fn crash(world: &Arc<World>, id: u64) {
    if !world.replicas.claim(id, true) {
        return;
    }
    world.trace.note(&format!("replica {id} crashes"));
    let (cluster, disk) = {
        let mut slots = world.replicas.0.lock().unwrap();
        let slot = slots.get_mut(&id).expect("it was claimed");
        (slot.running.take(), slot.disk.clone())
    };
    if let Some(cluster) = cluster {
        cluster.crash().await;
    }
    if world.plant == Some(Planted::LyingDisk) {
        disk.forget_newest(FORGOTTEN_ENTRIES);
    }
    let mut slots = world.replicas.0.lock().unwrap();
    slots.get_mut(&id).expect("it was claimed").busy = false;
}
