//! Consensus: one log on a majority of replicas, one state on each. The consensus library is named only in here.
//!
//! | file | what |
//! |---|---|
//! | `propose`, `rounds` | writes and linearizable reads, from any replica |
//! | `windows` | windows of budgets that have to begin before a write |
//! | `members` | making a cluster, adding and removing replicas, who leads |
//! | `machine`, `changes`, `checkpoint` | the applied state, what changed lately, checkpoints |
//! | `log` | the log on disk |
//! | `network`, `serve`, `service`, `message` | messages between replicas: out, in, over gRPC, their form |
//! | `types` | the library's types and our stored form of them |
//!
//! Promises: a write that was answered is on the disks of a majority; a barrier that passed has applied every write answered before
//! it was asked for; a replica whose disk is in doubt stops ([`EXIT_STORAGE`]) and never guesses.

mod changes;
mod checkpoint;
mod log;
mod machine;
mod members;
mod message;
mod network;
mod propose;
mod rounds;
mod serve;
mod service;
mod types;
mod windows;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Config, Raft, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use tollway_shared::ids::{ClusterId, ReplicaId, Revision};
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::ResourceKey;
use tollway_shared::time::UnixMillis;

use self::checkpoint::Shelf;
use self::log::LogStore;
use self::log::disk::{Disk, RedbDisk};
use self::machine::{Machine, Published};
use self::network::Network;
use self::rounds::Rounds;
use self::types::Types;
use crate::state::State;

pub use self::changes::{CHANGES_KEPT, Change};
pub use self::checkpoint::MemoryShelf;
pub use self::log::disk::MemoryDisk;
pub use self::machine::Apply;
pub use self::members::{CHANGE_WITHIN, ClusterStatus, MemberStatus, MembersFault};
pub use self::message::{Call, Proposal, Reply};
pub use self::network::{GrpcTransport, PeerConnector, Transport, TransportFault};
pub use self::propose::{ENTRY_BYTES_MAX, PROPOSE_WITHIN, ProposeFault};
pub use self::service::{NoExtras, PeerExtras, PeerService};
pub use self::types::{log_entry_bytes, log_entry_text};

/// What the process exits with when [`Cluster::failed`] says that this replica's storage is in doubt.
pub const EXIT_STORAGE: u8 = 70;
/// How long a leader that stops waits for another replica to take over.
const HANDOVER_WITHIN: Duration = Duration::from_secs(2);

/// Timings and sizes. The defaults are for replicas in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timings {
    /// Milliseconds between a leader's signs of life. An append that takes longer than three quarters of it is given up and sent
    /// again, so it must be well above a slow disk's fsync.
    pub heartbeat_ms: u64,
    /// Milliseconds without one before a replica stands for election: between this and twice this, drawn each time.
    pub election_timeout_ms: u64,
    /// Entries between two checkpoints.
    pub checkpoint_entries: u64,
    /// Entries that are kept behind a checkpoint, for followers that lag a little.
    pub kept_entries: u64,
    /// Milliseconds that sending a whole checkpoint to a replica may take.
    pub install_timeout_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 250,
            election_timeout_ms: 1_000,
            checkpoint_entries: 20_000,
            kept_entries: 1_000,
            install_timeout_ms: 60_000,
        }
    }
}

impl Timings {
    fn config(&self, cluster: &ClusterId) -> io::Result<Config> {
        let election_max = self.election_timeout_ms.saturating_mul(2);
        let config = Config {
            cluster_name: cluster.to_string(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_timeout_ms,
            election_timeout_max: election_max,
            install_snapshot_timeout: self.install_timeout_ms,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.checkpoint_entries),
            max_in_snapshot_log_to_keep: self.kept_entries,
            // A restarted leader that resumed its term could read before it applied everything it had answered.
            enable_leader_restore: Some(false),
            // A replica that was cut off must not depose a working leader when it returns.
            enable_pre_vote: Some(true),
            // A leader without a majority goes quiet, so that those who still hear it can elect another.
            quorum_loss_probe_interval: Some(election_max.saturating_mul(2)),
            ..Config::default()
        };
        config
            .validate()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("[raft]: {e}")))
    }
}

/// What a replica is.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// Its id.
    pub id: ReplicaId,
    /// Its cluster; messages of another one are refused.
    pub cluster: ClusterId,
    /// Where log and checkpoints are kept; made if needed.
    pub data_dir: PathBuf,
    /// Timings and sizes.
    pub timings: Timings,
}

/// Reads the wall clock.
pub type Now = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// Starts a replica on disk that speaks gRPC. Serve [`Cluster::service`] on its peer port.
pub async fn start(config: RaftConfig, connector: Arc<dyn PeerConnector>, now: Now) -> io::Result<Cluster> {
    let transport = Arc::new(GrpcTransport::new(config.cluster.clone(), connector));
    let syncs = Arc::new(AtomicU64::new(0));
    let (folder, counter) = (config.data_dir.clone(), syncs.clone());
    // Opening reads and may repair the file: not on a runtime thread.
    let (disk, shelf) = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder)?;
        let disk = RedbDisk::open(&folder.join("raft.redb"), counter)?;
        Ok::<_, io::Error>((disk, Shelf::folder(folder.join("checkpoints"))?))
    })
    .await
    .map_err(io::Error::other)??;
    let run = (now, Arc::new(crate::state::apply) as Apply);
    start_with(&config, Arc::new(disk), shelf, transport, run, syncs).await
}

/// Starts a replica in memory over any transport. `disk` and `shelf` outlive a [`Cluster::crash`].
pub async fn start_in_memory(
    config: RaftConfig,
    disk: MemoryDisk,
    shelf: MemoryShelf,
    transport: Arc<dyn Transport>,
    now: Now,
) -> io::Result<Cluster> {
    let apply = Arc::new(crate::state::apply);
    start_in_memory_with(config, disk, shelf, transport, now, apply).await
}

/// [`start_in_memory`] with a wrapper around `state::apply`: the simulation's entry.
pub async fn start_in_memory_with(
    config: RaftConfig,
    disk: MemoryDisk,
    shelf: MemoryShelf,
    transport: Arc<dyn Transport>,
    now: Now,
    apply: Apply,
) -> io::Result<Cluster> {
    let syncs = Arc::new(AtomicU64::new(0));
    let (disk, shelf) = (Arc::new(disk), Shelf::Memory(shelf));
    start_with(&config, disk, shelf, transport, (now, apply), syncs).await
}

async fn start_with(
    config: &RaftConfig,
    disk: Arc<dyn Disk>,
    shelf: Shelf,
    transport: Arc<dyn Transport>,
    (now, apply): (Now, Apply),
    syncs: Arc<AtomicU64>,
) -> io::Result<Cluster> {
    let log = LogStore::open(disk)?;
    let (machine, published) = Machine::open(shelf, apply)?;
    log.check_reaches(machine.position())?;
    let empty = log.is_empty();
    let network = Network {
        id: config.id.0,
        transport: transport.clone(),
        install_within: Duration::from_millis(config.timings.install_timeout_ms),
    };
    let library = Arc::new(config.timings.config(&config.cluster)?);
    let raft = Raft::new(config.id.0, library, network, log.clone(), machine)
        .await
        .map_err(io::Error::other)?;
    Ok(Cluster(Arc::new(Inner {
        id: config.id,
        cluster: config.cluster.clone(),
        timings: config.timings.clone(),
        raft,
        log,
        published,
        transport,
        now,
        syncs,
        was_empty: empty,
        stopping: AtomicBool::new(false),
        reads: Rounds::default(),
        windows: tokio::sync::Mutex::default(),
    })))
}

/// A handle on this process's replica. Clones share it.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    id: ReplicaId,
    cluster: ClusterId,
    timings: Timings,
    raft: Raft<Types, Machine>,
    log: LogStore,
    published: Arc<Published>,
    transport: Arc<dyn Transport>,
    now: Now,
    syncs: Arc<AtomicU64>,
    was_empty: bool,
    stopping: AtomicBool,
    /// Read indexes, shared by those who wait at the same time.
    reads: Rounds<Result<u64, ProposeFault>>,
    /// Held by whoever begins windows of budgets: the others find it done.
    windows: tokio::sync::Mutex<()>,
}

impl Cluster {
    /// This replica's id.
    pub fn id(&self) -> ReplicaId {
        self.0.id
    }

    /// The cluster it belongs to.
    pub fn cluster_id(&self) -> &ClusterId {
        &self.0.cluster
    }

    /// Whether its disk was empty when it started: it has to be initialized, or added by the others.
    pub fn was_empty(&self) -> bool {
        self.0.was_empty
    }

    /// The newest applied state. Not a linearizable read by itself; see [`Cluster::barrier`].
    pub fn state(&self) -> Arc<State> {
        self.0.published.state.borrow().clone()
    }

    /// Follows the applied state. Intermediate states may be skipped.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.published.state.subscribe()
    }

    /// Follows the index of the last applied entry.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.published.applied.subscribe()
    }

    /// Follows changes. A receiver that lags asks [`Cluster::changes_since`].
    pub fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.0.published.changes.subscribe()
    }

    /// Follows what applied entries want told: to nodes, to people. Every replica sees all of it, once; one that lags misses some.
    pub fn effects(&self) -> broadcast::Receiver<Effect> {
        self.0.published.effects.subscribe()
    }

    /// The newest revision and every resource that changed after `revision`, from the last [`CHANGES_KEPT`] changes. `None` when
    /// that is too long ago: everything has to be sent. A `revision` ahead of this replica's gives its own, older one.
    pub fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
        self.0.published.changes_since(revision)
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.0.raft.is_leader()
    }

    /// Syncs of the log's file since the start.
    pub fn log_syncs(&self) -> u64 {
        self.0.syncs.load(Ordering::Relaxed)
    }

    /// Completes when this replica can do no more and was not asked to stop, with the reason. The process should then end with
    /// [`EXIT_STORAGE`].
    pub async fn failed(&self) -> String {
        let mut metrics = self.0.raft.metrics();
        loop {
            let running = metrics.borrow_watched().running_state.clone();
            let reason = match running {
                Ok(()) if metrics.changed().await.is_ok() => continue,
                Ok(()) => "it has ended".to_owned(),
                Err(fault) => fault.to_string(),
            };
            if !self.is_stopping() {
                return reason;
            }
            std::future::pending::<()>().await;
        }
    }

    /// Hands leadership over if this replica leads, writes out what waits and stops.
    pub async fn shutdown(&self) {
        if self.0.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        if tokio::time::timeout(HANDOVER_WITHIN, self.transfer_leader())
            .await
            .is_err()
        {
            tracing::info!("no other replica took over in time");
        }
        self.stop().await;
    }

    /// Stops as a crash would, without handing over; a log in memory loses what it has not synced. For tests.
    pub async fn crash(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.log.crash();
        self.stop().await;
    }

    async fn stop(&self) {
        if let Err(fault) = self.0.raft.shutdown().await {
            tracing::warn!(error = %fault, "the replica did not stop cleanly");
        }
        self.0.log.close().await;
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
