//! Data-plane nodes: the real intake, a disk that survives restarts, and streams to whichever replica answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::time::sleep;
use tollway_control::raft::Cluster;
use tollway_data::catalog::intake::{Action, Caps, Intake};
use tollway_proto::push::v1::control_message::Message;
use tollway_proto::push::v1::{Ack, ControlMessage, Hello, Nack};
use tollway_shared::ids::Revision;
use tollway_shared::snapshot::Snapshot;

use crate::clients::some_replica;
use crate::plan::{Plan, Planted, chance};
use crate::push::Session;
use crate::world::World;

/// Old full snapshots that the network may bring up again, per node.
const OLD_STREAMS: usize = 4;

/// Every node.
pub(crate) struct Nodes(Vec<Node>);

struct Node {
    inner: Mutex<Inner>,
    /// Breaks the stream, or the process with it.
    broken: Notify,
}

#[derive(Default)]
struct Inner {
    intake: Intake,
    /// What is in force.
    live: Option<Arc<Snapshot>>,
    /// What a restart finds.
    disk: Option<Arc<Snapshot>>,
    /// Whole full snapshots that came once.
    old: Vec<Vec<ControlMessage>>,
    restarts: bool,
}

impl Nodes {
    pub(crate) fn new(plan: &Plan) -> Self {
        let node = |_| Node {
            inner: Mutex::default(),
            broken: Notify::new(),
        };
        Self((0..plan.nodes).map(node).collect())
    }

    /// What is in force at every node.
    pub(crate) fn live(&self) -> Vec<Option<Arc<Snapshot>>> {
        self.0
            .iter()
            .map(|node| node.inner.lock().unwrap().live.clone())
            .collect()
    }

    /// The first node that is not at `newest`, in words.
    pub(crate) fn behind(&self, newest: Revision) -> Option<String> {
        let revision = |live: &Option<Arc<Snapshot>>| live.as_ref().map(|live| live.revision);
        let live = self.live();
        let late = live.iter().position(|live| revision(live) != Some(newest))?;
        Some(format!(
            "node {late} runs on {:?}, not on {newest}",
            revision(&live[late])
        ))
    }

    /// Breaks one node's stream, restarts it, or brings it an old snapshot once more.
    pub(crate) fn disturb(&self, world: &World, rng: &mut ChaCha8Rng) {
        let number = rng.random_range(0..self.0.len());
        let node = &self.0[number];
        match rng.random_range(0..3) {
            0 => world.trace.note(&format!("the stream of node {number} breaks")),
            1 => {
                world.trace.note(&format!("node {number} restarts"));
                node.inner.lock().unwrap().restarts = true;
            }
            _ => {
                let old = node.inner.lock().unwrap().old.choose(rng).cloned();
                world
                    .trace
                    .note(&format!("node {number} gets an old snapshot again"));
                if let Some(messages) = old {
                    if world.plant == Some(Planted::NodeGoesBack) {
                        node.inner.lock().unwrap().intake = Intake::new(None, Caps::default(), None);
                    } else {
                        node.inner.lock().unwrap().intake.reconnected();
                    }
                    for message in messages {
                        take(world, number, message);
                    }
                }
            }
        }
        node.broken.notify_waiters();
    }
}

/// One node, for the whole run.
pub(crate) async fn run(world: Arc<World>, number: usize) {
    let mut rng = chance(world.plan.seed, &format!("node {number}"));
    loop {
        sleep(Duration::from_millis(rng.random_range(5..=300))).await;
        start_again(&world, number);
        let Some((replica, cluster)) = some_replica(&world, &mut rng) else {
            continue;
        };
        let Some((life, _)) = world.replicas.running(replica) else {
            continue;
        };
        let most = if world.is_calm() { 60_000 } else { 6_000 };
        let lasts = Duration::from_millis(rng.random_range(50..=most));
        world.trace.note(&format!("node {number} asks replica {replica}"));
        tokio::select! {
            biased;
            () = world.nodes.0[number].broken.notified() => {}
            () = stream(&world, number, &cluster) => {}
            () = gone(&world, replica, life) => {}
            () = sleep(lasts) => {}
        }
        world.nodes.0[number].inner.lock().unwrap().intake.reconnected();
    }
}

/// Loads what is on disk, if the node's process ended.
fn start_again(world: &World, number: usize) {
    let loaded = {
        let mut node = world.nodes.0[number].inner.lock().unwrap();
        if !std::mem::take(&mut node.restarts) {
            return;
        }
        node.live = node.disk.clone();
        node.intake = Intake::new(node.disk.clone(), Caps::default(), None);
        node.live.clone()
    };
    if let Some(snapshot) = loaded {
        world.properties.in_force(world, number, &snapshot);
    }
}

/// Completes when that life of the replica is over.
async fn gone(world: &World, replica: u64, life: u64) {
    while world
        .replicas
        .running(replica)
        .is_some_and(|(now, _)| now == life)
    {
        sleep(Duration::from_millis(20)).await;
    }
}

/// The stream between a replica and a node: in order, late, cut anywhere.
async fn stream(world: &World, number: usize, cluster: &Cluster) {
    let mut states = cluster.watch();
    let hello = hello(world, number);
    sleep(world.net.delay()).await;
    let mut session = Session::new(&hello, states.borrow().clone());
    loop {
        let state = states.borrow_and_update().clone();
        let messages = session.turn(state, |from| cluster.changes_since(from));
        let whole = messages
            .iter()
            .any(|m| matches!(m.message, Some(Message::FullEnd(_))));
        let mut answered = false;
        for message in &messages {
            sleep(world.net.delay()).await;
            let Some(answer) = take(world, number, message.clone()) else {
                continue;
            };
            sleep(world.net.delay()).await;
            answered = true;
            match answer {
                Answer::Ack(ack) => session.core.acked(&ack),
                Answer::Nack(nack) => session.core.refused(&nack),
            };
        }
        if whole {
            let mut node = world.nodes.0[number].inner.lock().unwrap();
            node.old.push(messages);
            if node.old.len() > OLD_STREAMS {
                node.old.remove(1); // the very first one stays: the furthest way back
            }
        }
        // An answer may make room for the next message at once.
        if !answered && states.changed().await.is_err() {
            return;
        }
    }
}

fn hello(world: &World, number: usize) -> Hello {
    let node = world.nodes.0[number].inner.lock().unwrap();
    let current = node.intake.current();
    Hello {
        cluster: "simulation".into(),
        node: format!("node-{number}"),
        region: "eu".into(),
        version: String::new(),
        have_revision: current.map_or(0, |snapshot| snapshot.revision.0),
        have_hash: current
            .map(|snapshot| snapshot.hash().to_bytes().to_vec().into())
            .unwrap_or_default(),
    }
}

enum Answer {
    Ack(Ack),
    Nack(Nack),
}

/// One message arrives: intake, disk, swap, answer, in that order.
fn take(world: &World, number: usize, message: ControlMessage) -> Option<Answer> {
    let mut node = world.nodes.0[number].inner.lock().unwrap();
    match node.intake.feed(message)? {
        Action::Stop(_) => None,
        Action::Install { snapshot, ack } => {
            node.disk = Some(snapshot.clone());
            node.live = Some(snapshot.clone());
            drop(node);
            world
                .trace
                .note(&format!("node {number} runs on {}", snapshot.revision));
            world.properties.in_force(world, number, &snapshot);
            Some(Answer::Ack(ack))
        }
        Action::Ack(ack) => Some(Answer::Ack(ack)),
        Action::Nack(nack) => {
            let why = nack
                .reasons
                .first()
                .map_or("", |reason| reason.text.as_str())
                .to_owned();
            drop(node);
            world.trace.note(&format!(
                "node {number} refuses {}: {why}",
                nack.rejected_revision
            ));
            Some(Answer::Nack(nack))
        }
    }
}
