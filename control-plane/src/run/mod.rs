//! Start and stop of one replica: the wiring of everything else in this crate.
//!
//! | file | what |
//! |---|---|
//! | `init` | makes a cluster of one replica |
//! | `join` | makes this machine a replica of an existing cluster |
//! | `home` | who this replica is, and its sealing key, on disk |
//! | `serve`, `peer` | the two listeners |
//! | `fleet` | the nodes of every replica |

mod fleet;
mod home;
mod init;
mod join;
mod peer;
mod serve;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollway_proto::command::Member;
use tollway_proto::private_file::FileFault;
use tollway_shared::ids::ReplicaId;
use tollway_shared::seal::Key;
use tollway_shared::time::UnixMillis;

use self::fleet::AllReplicas;
use self::home::Home;
use crate::admin;
use crate::billing::publish::Publish;
use crate::billing::tail::Tail;
use crate::billing::topic::Channel;
use crate::billing::{Billing, Place, check};
use crate::config::{AdminTls, Config, ConfigFault};
use crate::identity::authority::{LEAF_LIFE, host_of};
use crate::identity::connect::MutualTls;
use crate::identity::renew::Renewal;
use crate::identity::{Authority, IdentityFault, LiveCertificate, Material, PeerIdentity, tls};
use crate::ledger::SourceKind;
use crate::publish::Publisher;
use crate::raft::{self, Cluster, MembersFault, ProposeFault, RaftConfig};
use crate::reading::Reading;
use crate::{clock, grantor, ledger, metrics};

pub use self::init::{Initialized, exists, init};
pub use self::join::{Joined, join};

/// How long open answers may take to finish when the replica stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long everything else may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The wait before a new replica asks again to be let in.
const ENTER_AGAIN: Duration = Duration::from_secs(1);

/// Why a replica cannot be made or started.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// There is no replica in the data folder.
    #[error(
        "{0} holds no replica; make a cluster with `tollway-control init`, or join one with `tollway-control join`"
    )]
    NoReplica(String),
    /// There is one already.
    #[error("{0} holds a replica already; start it with `tollway-control run`")]
    Exists(String),
    /// Something is left of an attempt that did not finish.
    #[error("{0} holds what is left of an attempt that did not finish; remove it and try again")]
    Unfinished(String),
    /// The sealing key cannot be read.
    #[error("the sealing key cannot be read: {0}")]
    NoKey(String),
    /// The sealing key is another one.
    #[error(
        "the sealing key from {0} is not the one this cluster was made with: it does not open the certificate authority's key"
    )]
    WrongKey(String),
    /// A setting.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigFault),
    /// A setting of the usage log.
    #[error(transparent)]
    Usage(#[from] ledger::SettingFault),
    /// Certificates.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileFault),
    /// An address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A voter without its log could vote against what it promised.
    #[error(
        "the replicated log in {0} is gone, and this replica has voted: remove it from the cluster, empty its data folder and join again"
    )]
    LostLog(String),
    /// The replicated log.
    #[error("the replicated log cannot be opened: {0}")]
    Log(io::Error),
    /// The first member.
    #[error(transparent)]
    Members(#[from] MembersFault),
    /// The first entry.
    #[error(transparent)]
    Propose(#[from] ProposeFault),
    /// The cluster did not let this machine in.
    #[error("the cluster did not let this machine in: {0}")]
    Join(String),
}

impl StartFault {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File(FileFault::new(path, source))
    }
}

/// A running replica.
pub struct Running {
    /// The base URL of its admin API.
    pub admin_url: String,
    /// `host:port` of Raft and push.
    pub peer_address: String,
    /// The address its admin listener is bound to.
    pub admin_bound: SocketAddr,
    /// The address its peer listener is bound to.
    pub peer_bound: SocketAddr,
    /// Its part of the replicated log.
    pub cluster: Cluster,
    stop: CancellationToken,
    stop_listening: CancellationToken,
    tasks: TaskTracker,
    listeners: TaskTracker,
}

/// Whether a replica can run on these settings, apart from what is in its data folder.
pub fn check(config: &Config) -> Result<(), StartFault> {
    config.check()?;
    ledger::open(&config.usage)?;
    Ok(())
}

/// Starts the replica that is in the data folder.
pub async fn start(config: Config) -> Result<Running, StartFault> {
    config.check()?;
    metrics::install();
    let home = Home::load(&config.data_dir)?;
    let root = home::read_key(&config)?;
    home.check_key(&root, &home::key_place(&config))?;
    let source = ledger::open(&config.usage)?;
    let (billing, tail) = billing(&config, &home)?;
    let material = Material::load(&config.data_dir)?;
    let live = LiveCertificate::new(&material)?;
    let doors = Doors::open(&config, &live, &material).await?;
    let member = Member {
        peer_address: config.peer_address(doors.peer_bound),
        admin_url: config.admin_url(doors.admin_bound),
    };
    let cluster = raft::start(
        raft_config(&config, &home),
        doors.connector.clone(),
        Arc::new(clock::now),
    )
    .await
    .map_err(StartFault::Log)?;
    if home.voted && cluster.was_empty() {
        cluster.shutdown().await;
        return Err(StartFault::LostLog(
            config.data_dir.join("raft").display().to_string(),
        ));
    }

    let (stop, stop_listening) = (CancellationToken::new(), CancellationToken::new());
    let (tasks, listeners) = (TaskTracker::new(), TaskTracker::new());
    let publisher = Publisher::start(Arc::new(cluster.clone()), root.clone(), clock::now, stop.clone());
    listeners.spawn(peer::serve(
        doors.peer_listener,
        doors.peer_tls,
        home.cluster.clone(),
        cluster.clone(),
        publisher.clone(),
        Reading::new(cluster.watch(), billing.clone(), clock::now),
        stop_listening.clone(),
    ));
    let fleet = Arc::new(AllReplicas {
        cluster: cluster.clone(),
        publisher,
        connector: doors.connector,
        channels: Mutex::default(),
    });
    let router = admin::router(
        cluster.clone(),
        root.clone(),
        fleet.clone(),
        billing.clone(),
        stop.clone(),
    );
    listeners.spawn(serve::serve(
        doors.admin_listener,
        doors.admin_tls,
        router,
        stop_listening.clone(),
    ));
    tasks.spawn(grantor::run(cluster.clone(), fleet, clock::now, stop.clone()));
    let stored = tail.as_ref().map(|_| billing.watch());
    tasks.spawn(ledger::run(source, cluster.clone(), stored, stop.clone()));
    if let Some(tail) = tail {
        tasks.spawn(tail.run(stop.clone()));
        tasks.spawn(check::run(billing.clone(), cluster.watch(), stop.clone()));
    }
    if let Some(publish) = publish(&config, &home, &cluster, billing) {
        tasks.spawn(publish.run(stop.clone()));
    }
    tasks.spawn(renew(
        &config,
        &home,
        live,
        material,
        root.clone(),
        member.clone(),
        cluster.clone(),
        stop.clone(),
    ));
    tasks.spawn(enter(
        cluster.clone(),
        home,
        config.data_dir.clone(),
        member.clone(),
        stop.clone(),
    ));
    tasks.spawn(upkeep(stop.clone()));
    tracing::info!(replica = %cluster.id(), admin = %member.admin_url, peer = %member.peer_address, "the replica is up");
    Ok(Running {
        admin_url: member.admin_url,
        peer_address: member.peer_address,
        admin_bound: doors.admin_bound,
        peer_bound: doors.peer_bound,
        cluster,
        stop,
        stop_listening,
        tasks,
        listeners,
    })
}

/// The billing store for those who read, and the loop that writes it, with a reader of the usage log of its own.
fn billing(config: &Config, home: &Home) -> Result<(Billing, Option<Tail>), StartFault> {
    let source = ledger::open(&config.usage)?;
    let place = Place::of(&config.billing, &config.data_dir, source.is_some());
    let place = place.map_err(|(key, detail)| ConfigFault::Value { key, detail })?;
    let (billing, shared) = Billing::new(place.clone());
    let tail = source
        .filter(|_| !matches!(place, Place::None))
        .map(|source| Tail {
            place,
            cluster: home.cluster.to_string(),
            generations_ms: config.billing.generations_ms(),
            source,
            shared,
            now: clock::now,
        });
    Ok((billing, tail))
}

/// What publishes sums by the hour: where there is Kafka and a billing store.
fn publish(config: &Config, home: &Home, cluster: &Cluster, billing: Billing) -> Option<Publish<Cluster>> {
    let wanted = config.usage.source == SourceKind::Kafka && !config.billing.topic.is_empty();
    let has_store = !matches!(billing.place(), Place::None);
    (wanted && has_store).then(|| Publish {
        log: cluster.clone(),
        billing,
        channel: Channel {
            topic: config.billing.topic.clone(),
            usage: config.usage.kafka_topic(),
        },
        cluster: home.cluster.clone(),
        now: clock::now,
    })
}

/// The ways in and out, opened before the replica takes part in anything.
struct Doors {
    peer_listener: TcpListener,
    peer_bound: SocketAddr,
    peer_tls: Arc<ServerConfig>,
    admin_listener: TcpListener,
    admin_bound: SocketAddr,
    admin_tls: Option<Arc<ServerConfig>>,
    connector: Arc<MutualTls>,
}

impl Doors {
    async fn open(
        config: &Config,
        live: &Arc<LiveCertificate>,
        material: &Material,
    ) -> Result<Self, StartFault> {
        let peer_listener = listen(config.peer.listen).await?;
        let admin_listener = listen(config.admin.listen).await?;
        Ok(Self {
            peer_bound: bound(&peer_listener)?,
            peer_listener,
            peer_tls: tls::peer_server(live.clone(), &material.authority_pem)?,
            admin_bound: bound(&admin_listener)?,
            admin_listener,
            admin_tls: match config.admin.tls {
                AdminTls::Cluster => Some(tls::admin_server(live.clone())?),
                AdminTls::Off => None,
            },
            connector: Arc::new(MutualTls::new(tls::peer_client(
                live.clone(),
                &material.authority_pem,
            )?)),
        })
    }
}

impl Running {
    /// Completes when the replica can do no more, with the reason. The process should then end with [`raft::EXIT_STORAGE`].
    pub async fn failed(&self) -> String {
        self.cluster.failed().await
    }

    /// Stops: not ready any more, leadership handed over, open answers finished, everything written.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_WITHIN, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some tasks did not end in time");
        }
        // Before the listeners close: who takes over has to be told, and writes that are under way have to be answered.
        self.cluster.shutdown().await;
        self.stop_listening.cancel();
        self.listeners.close();
        if tokio::time::timeout(DRAIN_WITHIN, self.listeners.wait())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not end in time");
        }
        tracing::info!("the replica has stopped");
    }
}

fn raft_config(config: &Config, home: &Home) -> RaftConfig {
    RaftConfig {
        id: home.replica,
        cluster: home.cluster.clone(),
        data_dir: config.data_dir.join("raft"),
        timings: config.raft.clone(),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartFault> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartFault::Listen { address, source })
}

fn bound(listener: &TcpListener) -> Result<SocketAddr, StartFault> {
    listener.local_addr().map_err(StartFault::Log)
}

/// The names under which a replica is reached, for its certificate.
fn hosts(member: &Member) -> Vec<String> {
    vec![host_of(&member.peer_address), host_of(&member.admin_url)]
}

/// Renews this replica's certificate with the authority's key, which every replica can open.
#[expect(
    clippy::too_many_arguments,
    reason = "called once, where all of them are made"
)]
fn renew(
    config: &Config,
    home: &Home,
    live: Arc<LiveCertificate>,
    material: Material,
    root: Key,
    member: Member,
    cluster: Cluster,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let renewal = Renewal {
        data_dir: config.data_dir.clone(),
        live,
        material,
        now: clock::now,
    };
    let replica = home.replica;
    let identity = PeerIdentity::Replica(replica);
    async move {
        let issue = |request: String| {
            let (cluster, root, member, identity) =
                (cluster.clone(), root.clone(), member.clone(), identity.clone());
            async move {
                if !cluster.lets_in(replica) {
                    return Err(IdentityFault::Removed);
                }
                let authority = Authority::of_state(&cluster.state(), &root)?;
                authority.issue(&request, &identity, &hosts(&member), now(), LEAF_LIFE)
            }
        };
        renewal.run(issue, stop).await;
    }
}

fn now() -> UnixMillis {
    clock::now()
}

/// Becomes a voter after a join, and tells the others when an address has changed. A replica that was removed is not a member of
/// its own log any more, and stays out.
async fn enter(cluster: Cluster, mut home: Home, data_dir: PathBuf, member: Member, stop: CancellationToken) {
    let seeds = home.seeds.iter().map(|seed| (seed.id, seed.peer_address.clone()));
    let seeds: Vec<(ReplicaId, String)> = seeds.collect();
    loop {
        let known = cluster
            .status()
            .members
            .into_iter()
            .find(|one| one.id == home.replica);
        let is_voter = known.as_ref().is_some_and(|one| one.voter);
        if is_voter && !home.voted {
            home.voted = true;
            if let Err(fault) = home.store(&data_dir) {
                tracing::error!(%fault, "cannot note that this replica votes");
            }
        }
        let reachable = known
            .as_ref()
            .is_some_and(|one| one.peer_address == member.peer_address && one.admin_url == member.admin_url);
        if is_voter && reachable {
            return;
        }
        if known.is_some() || cluster.was_empty() {
            let fault = tokio::select! {
                () = stop.cancelled() => return,
                asked = cluster.enter(&seeds, member.clone()) => asked.err(),
            };
            if let Some(fault) = fault {
                tracing::info!(%fault, "not a voter yet");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ENTER_AGAIN) => {}
        }
    }
}

async fn upkeep(stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(metrics::UPKEEP_EVERY) => metrics::upkeep(),
        }
    }
}

#[cfg(test)]
mod tests;
