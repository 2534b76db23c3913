//! One run: a cluster, its clients, its nodes and its faults, first with faults and then without.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tollway_control::raft::Cluster;

use crate::network::Net;
use crate::nodes::Nodes;
use crate::plan::{Plan, Planted};
use crate::properties::Properties;
use crate::replicas::{self, Replicas};
use crate::spend::UsageLog;
use crate::trace::Trace;
use crate::{catalog, clients, faults, members, nodes, spend};

/// How long making the cluster may take, in simulated time.
const SETUP_WITHIN: Duration = Duration::from_secs(30);
/// How long everything may take to become whole once the faults end, in simulated time.
const HEAL_WITHIN: Duration = Duration::from_secs(60);
/// How often the healing is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A property that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) text: String,
}

/// What a run that kept every promise did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) entries: usize,
    pub(crate) answered: usize,
    /// Checkpoints that replicas sent to each other.
    pub(crate) installs: u64,
    /// Entries that a replica's log took back.
    pub(crate) reverted: u64,
}

/// Everything in a run that its tasks share.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) plant: Option<Planted>,
    pub(crate) trace: Trace,
    pub(crate) net: Net,
    pub(crate) replicas: Replicas,
    pub(crate) nodes: Nodes,
    pub(crate) usage: UsageLog,
    pub(crate) properties: Properties,
    calm: AtomicBool,
    violation: Mutex<Option<Violation>>,
    violated: Notify,
}

impl World {
    fn new(plan: Plan, plant: Option<Planted>) -> Arc<Self> {
        Arc::new(Self {
            trace: Trace::new(),
            net: Net::new(&plan),
            replicas: Replicas::default(),
            nodes: Nodes::new(&plan),
            usage: UsageLog::new(plan.partitions),
            properties: Properties::default(),
            calm: AtomicBool::new(false),
            violation: Mutex::new(None),
            violated: Notify::new(),
            plan,
            plant,
        })
    }

    /// Whether the faults are over.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    /// Ends the run: a property does not hold. The first one counts.
    pub(crate) fn broken(&self, property: &'static str, text: String) {
        self.trace.note(&format!("BROKEN {property}: {text}"));
        let mut first = self.violation.lock().unwrap();
        first.get_or_insert(Violation { property, text });
        self.violated.notify_waiters();
        self.violated.notify_one();
    }

    fn violation(&self) -> Option<Violation> {
        self.violation.lock().unwrap().clone()
    }
}

/// Runs one seed from the first message to the last check.
pub(crate) fn run(seed: u64, plant: Option<Planted>) -> Result<Finished, Violation> {
    let thread = std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(16 << 20)
        .spawn(move || {
            crate::entropy::pin(seed);
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without I/O needs nothing from the system")
                .block_on(story(Plan::of(seed), plant))
        });
    let ended = thread.expect("one more thread is possible").join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn story(plan: Plan, plant: Option<Planted>) -> Result<Finished, Violation> {
    let world = World::new(plan, plant);
    let mut end = None;
    tokio::select! {
        biased;
        () = world.violated.notified() => {}
        () = whole_story(&world, &mut end) => {}
    }
    match world.violation() {
        Some(violation) => {
            println!(
                "{:#?}\nthe last events of seed {}:\n{}",
                world.plan,
                world.plan.seed,
                world.trace.tail()
            );
            Err(violation)
        }
        None => Ok(end.expect("the story came to its end")),
    }
}

async fn whole_story(world: &Arc<World>, end: &mut Option<Finished>) {
    if timeout(SETUP_WITHIN, set_up(world)).await.is_err() {
        return world.broken(
            "heals",
            format!("no cluster after {SETUP_WITHIN:?} without a fault"),
        );
    }
    let (lost, twice) = (world.plan.lost, world.plan.twice);
    world.net.rates(lost, twice, world.plan.delay_ms);
    let mut work = JoinSet::new();
    for number in 0..world.plan.clients {
        work.spawn(clients::run(world.clone(), number));
    }
    for number in 0..2 {
        work.spawn(spend::consume(world.clone(), number));
    }
    work.spawn(spend::produce(world.clone()));
    if world.plan.replaces {
        work.spawn(members::run(world.clone()));
    }
    for number in 0..world.plan.nodes {
        tokio::spawn(nodes::run(world.clone(), number));
    }
    faults::run(world).await;
    heal(world, work).await;
    world.properties.at_the_end(world);
    let (trace, events) = world.trace.hash();
    *end = Some(Finished {
        trace,
        events,
        entries: world.properties.entries(),
        answered: world.properties.answered(),
        installs: world.net.installs(),
        reverted: world.replicas.reverted(),
    });
}

/// A cluster of `plan.replicas` with a small catalog.
async fn set_up(world: &Arc<World>) {
    world.replicas.make(1..=world.plan.replicas);
    for id in world.replicas.ids() {
        replicas::start(world, id).await;
    }
    let Some((_, first)) = world.replicas.running(1) else {
        return;
    };
    if let Err(fault) = first.init(replicas::member(1)).await {
        return world.broken("heals", format!("a cluster of one: {fault}"));
    }
    for id in 2..=world.plan.replicas {
        while let Err(fault) = first
            .add_replica(tollway_shared::ids::ReplicaId(id), replicas::member(id))
            .await
        {
            world
                .trace
                .note(&format!("replica {id} is not added yet: {fault}"));
            sleep(LOOK_EVERY).await;
        }
    }
    catalog::seed(world, &first).await;
}

/// Ends every fault and waits until everything is whole.
async fn heal(world: &Arc<World>, mut work: JoinSet<()>) {
    world.trace.note("the faults end");
    world.calm.store(true, Ordering::SeqCst);
    world.net.mend();
    world.net.rates(0.0, 0.0, 3);
    let deadline = Instant::now() + HEAL_WITHIN;
    let mut missing = "nothing was looked at".to_owned();
    while Instant::now() < deadline {
        for id in world.replicas.ids() {
            world.replicas.skew(id, 0);
            world.replicas.slow_disk(id, Duration::ZERO);
            replicas::start(world, id).await;
        }
        while let Some(ended) = work.try_join_next() {
            if let Err(fault) = ended {
                return world.broken("heals", format!("a client panicked: {fault}"));
            }
        }
        match not_whole(world, work.len()) {
            None => return,
            Some(text) => missing = text,
        }
        sleep(LOOK_EVERY).await;
    }
    world.broken("heals", format!("{HEAL_WITHIN:?} after the last fault {missing}"));
}

/// What keeps the cluster from being whole, in words.
fn not_whole(world: &World, working: usize) -> Option<String> {
    let ids = world.replicas.ids();
    let up: Vec<Cluster> = ids
        .iter()
        .filter_map(|id| world.replicas.running(*id))
        .map(|(_, c)| c)
        .collect();
    if up.len() < ids.len() {
        return Some(format!("only {} of {} replicas are up", up.len(), ids.len()));
    }
    let status: Vec<_> = up.iter().map(Cluster::status).collect();
    let Some(leader) = status[0].leader else {
        return Some(format!("replica {} knows no leader", status[0].replica));
    };
    if let Some(other) = status.iter().find(|status| status.leader != Some(leader)) {
        return Some(format!(
            "replica {} follows {:?}, not {leader}",
            other.replica, other.leader
        ));
    }
    let last = status.iter().map(|status| status.last_log).max().unwrap_or(0);
    if let Some(behind) = status.iter().find(|status| status.applied < last) {
        return Some(format!(
            "replica {} has applied {} of {last}",
            behind.replica, behind.applied
        ));
    }
    if working > 0 {
        return Some(format!("{working} clients still wait for an answer"));
    }
    world.nodes.behind(up[0].state().revision)
}
