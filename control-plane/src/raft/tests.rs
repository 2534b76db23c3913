//! Replicas in one process over plain gRPC on loopback.

use std::net::SocketAddr;
use std::path::Path;

use futures::TryStreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tollway_proto::command::{Command, Member, Outcome};
use tollway_shared::ids::OrganizationId;
use tollway_shared::tenant::Organization;
use tonic::transport::{Channel, Endpoint};

use super::*;

struct PlainTcp;

impl PeerConnector for PlainTcp {
    fn channel(&self, _id: ReplicaId, address: &str) -> Channel {
        Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_timeout(Duration::from_millis(500))
            .connect_lazy()
    }
}

/// One replica and its peer port.
struct Replica {
    cluster: Cluster,
    address: SocketAddr,
    served: CancellationToken,
}

fn timings() -> Timings {
    Timings {
        heartbeat_ms: 50,
        election_timeout_ms: 300,
        ..Timings::default()
    }
}

impl Replica {
    async fn start(id: u64, folder: &Path, timings: Timings) -> Self {
        Self::start_at(id, folder, timings, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(id: u64, folder: &Path, timings: Timings, address: SocketAddr) -> Self {
        let config = RaftConfig {
            id: ReplicaId(id),
            cluster: ClusterId::trusted("test"),
            data_dir: folder.join(id.to_string()),
            timings,
        };
        let now: Now = Arc::new(|| UnixMillis(1_700_000_000_000));
        let cluster = start(config, Arc::new(PlainTcp), now).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let served = CancellationToken::new();
        let server = tonic::transport::Server::builder().add_service(cluster.service(Arc::new(NoExtras)));
        let ended = served.clone();
        // As on the real peer port: without it, each answer of a few bytes waits 40 ms for the caller's delayed ACK.
        let incoming =
            TcpListenerStream::new(listener).inspect_ok(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move {
            tokio::select! {
                result = server.serve_with_incoming(incoming) => result.unwrap(),
                () = ended.cancelled() => {}
            }
        });
        Self {
            cluster,
            address,
            served,
        }
    }

    fn member(&self) -> Member {
        Member {
            peer_address: self.address.to_string(),
            admin_url: format!("http://{}", self.address),
        }
    }

    /// Stops like a crash: no handing over, connections cut.
    async fn kill(self) -> SocketAddr {
        self.served.cancel();
        self.cluster.crash().await;
        self.address
    }
}

fn organization(id: &str) -> Proposal {
    Proposal::system(Command::PutOrganization(Organization {
        id: OrganizationId::trusted(id),
        name: id.into(),
        enabled: true,
    }))
}

/// Writes, repeating while it is certain that nothing was written.
async fn write(cluster: &Cluster, id: &str) -> Revision {
    match within(10, cluster.propose(organization(id))).await.unwrap() {
        Outcome::Done(receipt) => receipt.revision,
        Outcome::Refused(refusal) => panic!("{refusal}"),
    }
}

fn has(cluster: &Cluster, id: &str) -> bool {
    cluster
        .state()
        .organizations
        .contains_key(&OrganizationId::trusted(id))
}

async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), work)
        .await
        .expect("it takes no longer than the test allows")
}

#[test]
fn the_defaults_are_accepted_and_nonsense_is_refused() {
    let cluster = ClusterId::trusted("c");
    Timings::default().config(&cluster).unwrap();
    let inverted = Timings {
        heartbeat_ms: 5_000,
        ..Timings::default()
    };
    assert!(
        inverted
            .config(&cluster)
            .unwrap_err()
            .to_string()
            .contains("[raft]")
    );
}

#[tokio::test]
async fn a_single_replica_answers_reads_its_writes_and_restarts_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let one = Replica::start(1, folder.path(), timings()).await;
    assert!(one.cluster.was_empty());
    one.cluster.init(one.member()).await.unwrap();
    assert_eq!(
        one.cluster.init(one.member()).await,
        Err(MembersFault::AlreadyInitialized)
    );
    let first = write(&one.cluster, "acme").await;
    assert!(has(&one.cluster, "acme"));
    let second = write(&one.cluster, "globex").await;
    assert!(second > first);
    one.cluster.barrier().await.unwrap();
    one.served.cancel();
    one.cluster.shutdown().await;

    let one = Replica::start(1, folder.path(), timings()).await;
    assert!(!one.cluster.was_empty());
    within(5, one.cluster.barrier()).await.unwrap();
    assert!(has(&one.cluster, "acme") && has(&one.cluster, "globex"));
    one.kill().await;
}

/// Waits until `condition` holds; the test fails when it does not within ten seconds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within ten seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Replicas 1, 2 and 3 of one cluster, all voters.
async fn three(folder: &Path, timings: Timings) -> Vec<Replica> {
    let one = Replica::start(1, folder, timings.clone()).await;
    one.cluster.init(one.member()).await.unwrap();
    let mut replicas = vec![one];
    for id in [2, 3] {
        let next = Replica::start(id, folder, timings.clone()).await;
        let added = replicas[0].cluster.add_replica(ReplicaId(id), next.member());
        within(20, added).await.unwrap();
        replicas.push(next);
    }
    replicas
}

async fn leader_of(replicas: &[Replica]) -> usize {
    let leading = || {
        replicas.iter().position(|replica| {
            let status = replica.cluster.status();
            status.leader == Some(status.replica)
        })
    };
    until("someone leads", || leading().is_some()).await;
    leading().unwrap()
}

#[tokio::test]
async fn a_write_to_a_follower_is_seen_after_a_barrier_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = three(folder.path(), timings()).await;
    for (turn, replica) in replicas.iter().enumerate() {
        let id = format!("o{turn}");
        write(&replica.cluster, &id).await;
        assert!(has(&replica.cluster, &id), "whoever wrote reads its write");
        for reader in &replicas {
            within(5, reader.cluster.barrier()).await.unwrap();
            assert!(has(&reader.cluster, &id), "{id} on {}", reader.cluster.id());
        }
    }
    let leader = leader_of(&replicas).await;
    let status = replicas[leader].cluster.status();
    assert_eq!(status.members.len(), 3);
    assert!(
        status
            .members
            .iter()
            .all(|member| member.voter && member.matched.is_some())
    );
    let states: Vec<_> = replicas.iter().map(|replica| replica.cluster.state()).collect();
    assert_eq!(states[0], states[1]);
    assert_eq!(states[0], states[2]);
    // Adding a member again changes nothing but its addresses.
    let moved = Member {
        admin_url: "https://moved".into(),
        ..replicas[2].member()
    };
    within(10, replicas[1].cluster.add_replica(ReplicaId(3), moved))
        .await
        .unwrap();
    let urls = || {
        replicas[0]
            .cluster
            .status()
            .members
            .into_iter()
            .map(|member| member.admin_url)
    };
    until("the address is known", || {
        urls().any(|url| url == "https://moved")
    })
    .await;
    // A refusal by the state machine comes back through a follower as well.
    let stale = Proposal {
        if_revision: Some(Revision(1)),
        ..organization("o0")
    };
    for replica in &replicas {
        let outcome = replica.cluster.propose(stale.clone()).await.unwrap();
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_the_leaders_crash_and_everyones_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut replicas = three(folder.path(), timings()).await;
    write(&replicas[0].cluster, "before").await;
    let leader = leader_of(&replicas).await;
    let dead = replicas.remove(leader);
    let id = dead.cluster.id().0;
    let address = dead.kill().await;
    // The first attempts may meet the dead leader; a write that is not confirmed may be repeated here, it only sets a name.
    let written = async { while replicas[0].cluster.propose(organization("after")).await.is_err() {} };
    within(15, written).await;
    let back = Replica::start_at(id, folder.path(), timings(), address).await;
    within(10, async { while back.cluster.barrier().await.is_err() {} }).await;
    assert!(has(&back.cluster, "before") && has(&back.cluster, "after"));
    replicas.push(back);

    let mut addresses = Vec::new();
    for replica in replicas {
        let id = replica.cluster.id().0;
        addresses.push((id, replica.kill().await));
    }
    let mut replicas = Vec::new();
    for (id, address) in addresses {
        replicas.push(Replica::start_at(id, folder.path(), timings(), address).await);
    }
    for replica in &replicas {
        within(15, async { while replica.cluster.barrier().await.is_err() {} }).await;
        assert!(has(&replica.cluster, "before") && has(&replica.cluster, "after"));
    }
}

#[tokio::test]
async fn a_new_replica_receives_a_checkpoint_when_the_log_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let small = Timings {
        checkpoint_entries: 50,
        kept_entries: 5,
        ..timings()
    };
    let one = Replica::start(1, folder.path(), small.clone()).await;
    one.cluster.init(one.member()).await.unwrap();
    for turn in 0..120 {
        write(&one.cluster, &format!("o{turn}")).await;
    }
    let purged = || {
        one.cluster
            .0
            .raft
            .metrics()
            .borrow_watched()
            .purged
            .is_some_and(|at| at.index > 20)
    };
    until("the log was purged", purged).await;
    let two = Replica::start(2, folder.path(), small.clone()).await;
    let mut changes = two.cluster.changes();
    within(20, one.cluster.add_replica(ReplicaId(2), two.member()))
        .await
        .unwrap();
    within(5, two.cluster.barrier()).await.unwrap();
    assert!(has(&two.cluster, "o0") && has(&two.cluster, "o119"));
    assert!(changes.recv().await.unwrap().reset);
    assert_eq!(two.cluster.state(), one.cluster.state());

    // And it starts again from the checkpoint that it was sent.
    let address = two.kill().await;
    let two = Replica::start_at(2, folder.path(), small, address).await;
    assert!(has(&two.cluster, "o0"));
    within(10, two.cluster.barrier()).await.unwrap();
}

#[tokio::test]
async fn a_removed_replica_is_no_member_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = three(folder.path(), timings()).await;
    let leader = leader_of(&replicas).await;
    let (gone, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = replicas[gone].cluster.id();
    // Asked of a follower, which forwards it.
    within(20, replicas[asked].cluster.remove_replica(id))
        .await
        .unwrap();
    let members = || {
        replicas[asked]
            .cluster
            .status()
            .members
            .into_iter()
            .map(|member| member.id)
    };
    until("it is no member", || !members().any(|member| member == id)).await;
    write(&replicas[asked].cluster, "after").await;
    let again = within(20, replicas[asked].cluster.remove_replica(id)).await;
    assert_eq!(again, Err(MembersFault::NotFound(id.0)));
}

#[tokio::test]
async fn the_leader_can_be_removed_and_another_one_leads() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = three(folder.path(), timings()).await;
    let leader = leader_of(&replicas).await;
    let id = replicas[leader].cluster.id();
    within(20, replicas[leader].cluster.remove_replica(id))
        .await
        .unwrap();
    let other = &replicas[(leader + 1) % 3].cluster;
    until("another one leads", || {
        other.status().leader.is_some_and(|leads| leads != id)
    })
    .await;
    let written = async { while other.propose(organization("after")).await.is_err() {} };
    within(15, written).await;
}

#[tokio::test]
async fn without_a_majority_a_write_and_a_barrier_fail_within_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let mut replicas = three(folder.path(), timings()).await;
    let leader = leader_of(&replicas).await;
    let alive = replicas.remove(leader);
    for replica in replicas {
        replica.kill().await;
    }
    let lapsed = || {
        let metrics = alive.cluster.0.raft.metrics();
        let acknowledged = metrics.borrow_watched().last_quorum_acked;
        acknowledged.is_none_or(|at| openraft::Instant::elapsed(&*at) > Duration::from_millis(700))
    };
    until("the leader noticed", lapsed).await;
    let fault = within(5, alive.cluster.propose(organization("lost")))
        .await
        .unwrap_err();
    assert!(fault.nothing_written(), "{fault}");
    let fault = within(5, alive.cluster.barrier()).await.unwrap_err();
    assert_eq!(fault, ProposeFault::NoQuorum);
    assert!(!has(&alive.cluster, "lost"));
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_first() {
    let folder = tempfile::tempdir().unwrap();
    // Elections are slow here: only a handover is this fast.
    let slow = Timings {
        election_timeout_ms: 5_000,
        heartbeat_ms: 50,
        ..timings()
    };
    let replicas = three(folder.path(), slow).await;
    let leader = leader_of(&replicas).await;
    let id = replicas[leader].cluster.id();
    within(4, replicas[leader].cluster.shutdown()).await;
    let other = &replicas[(leader + 1) % 3].cluster;
    assert!(other.status().leader.is_some_and(|leads| leads != id));
    write(other, "after").await;
    let refused = replicas[leader].cluster.propose(organization("late")).await;
    assert_eq!(refused, Err(ProposeFault::Stopping));
}

#[tokio::test]
async fn many_writers_share_few_syncs() {
    const WRITERS: usize = 64;
    const WRITES: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let one = Replica::start(1, folder.path(), timings()).await;
    one.cluster.init(one.member()).await.unwrap();
    write(&one.cluster, "first").await;
    let before = one.cluster.log_syncs();
    let writers = (0..WRITERS).map(|writer| {
        let cluster = one.cluster.clone();
        tokio::spawn(async move {
            for turn in 0..WRITES {
                write(&cluster, &format!("o{writer}-{turn}")).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        within(60, writer).await.unwrap();
    }
    let syncs = one.cluster.log_syncs() - before;
    assert_eq!(one.cluster.state().organizations.len(), WRITERS * WRITES + 1);
    assert!(
        syncs < (WRITERS * WRITES / 4) as u64,
        "{syncs} syncs for {} writes",
        WRITERS * WRITES
    );
}

#[tokio::test]
async fn a_message_for_another_cluster_or_replica_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let one = Replica::start(1, folder.path(), timings()).await;
    one.cluster.init(one.member()).await.unwrap();
    write(&one.cluster, "first").await;
    let address = one.address.to_string();
    let ask = |cluster: &str, id: u64| {
        let transport = GrpcTransport::new(ClusterId::trusted(cluster), Arc::new(PlainTcp));
        let call = Call(message::Ask::ReadIndex);
        transport.call(ReplicaId(id), &address, call, Duration::from_secs(5))
    };
    assert!(ask("test", 1).await.is_ok());
    assert!(matches!(ask("other", 1).await, Err(TransportFault::Refused(_))));
    assert!(matches!(ask("test", 2).await, Err(TransportFault::Refused(_))));
    one.kill().await;
    assert!(matches!(
        ask("test", 1).await,
        Err(TransportFault::Unreachable(_))
    ));
}

/// Carries nothing: for clusters of one.
struct Nowhere;

impl Transport for Nowhere {
    fn call(
        &self,
        _to: ReplicaId,
        _address: &str,
        _call: Call,
        _within: Duration,
    ) -> futures::future::BoxFuture<'static, Result<Reply, TransportFault>> {
        Box::pin(std::future::ready(Err(TransportFault::Unreachable(
            "nowhere".into(),
        ))))
    }

    fn install(
        &self,
        to: ReplicaId,
        address: &str,
        call: Call,
        _checkpoint: bytes::Bytes,
        within: Duration,
    ) -> futures::future::BoxFuture<'static, Result<Reply, TransportFault>> {
        self.call(to, address, call, within)
    }
}

async fn in_memory(disk: &MemoryDisk, shelf: &MemoryShelf) -> io::Result<Cluster> {
    let config = RaftConfig {
        id: ReplicaId(1),
        cluster: ClusterId::trusted("test"),
        data_dir: PathBuf::new(),
        timings: timings(),
    };
    let now: Now = Arc::new(|| UnixMillis(1));
    start_in_memory(config, disk.clone(), shelf.clone(), Arc::new(Nowhere), now).await
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_of_a_sync_loses_only_what_was_not_acknowledged() {
    let (disk, shelf) = (MemoryDisk::default(), MemoryShelf::default());
    let one = in_memory(&disk, &shelf).await.unwrap();
    one.init(Member::default()).await.unwrap();
    write(&one, "kept").await;
    let end = disk.ends().unwrap().1;
    disk.set_sync_takes(Duration::from_secs(2));
    let unanswered = tokio::time::timeout(Duration::from_secs(1), one.propose(organization("lost"))).await;
    assert!(unanswered.is_err());
    one.crash().await;
    assert_eq!(disk.ends().unwrap().1, end);

    disk.set_sync_takes(Duration::ZERO);
    let one = in_memory(&disk, &shelf).await.unwrap();
    within(5, one.barrier()).await.unwrap();
    assert!(has(&one, "kept") && !has(&one, "lost"));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_stops_the_replica_and_damage_is_found_at_the_start() {
    let (disk, shelf) = (MemoryDisk::default(), MemoryShelf::default());
    let one = in_memory(&disk, &shelf).await.unwrap();
    one.init(Member::default()).await.unwrap();
    write(&one, "kept").await;
    disk.set_fails(true);
    let fault = one.propose(organization("lost")).await.unwrap_err();
    assert!(!has(&one, "lost"), "{fault}");
    let reason = within(5, one.failed()).await;
    assert!(reason.contains("the simulated disk fails"), "{reason}");
    one.crash().await;

    disk.set_fails(false);
    assert!(disk.damage(disk.ends().unwrap().1));
    let fault = in_memory(&disk, &shelf).await.err().unwrap();
    assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
}

/// An in-process network: hands calls over directly, and loses those to and from replicas that are cut off.
#[derive(Clone, Default)]
struct Wires {
    replicas: Arc<std::sync::Mutex<std::collections::BTreeMap<u64, Cluster>>>,
    cut: Arc<std::sync::Mutex<BTreeSet<u64>>>,
}

/// One replica's end.
struct Wire {
    from: u64,
    wires: Wires,
}

impl Wire {
    fn target(&self, to: ReplicaId) -> Result<Cluster, TransportFault> {
        let cut = self.wires.cut.lock().unwrap();
        let replicas = self.wires.replicas.lock().unwrap();
        match replicas.get(&to.0) {
            Some(target) if !cut.contains(&to.0) && !cut.contains(&self.from) => Ok(target.clone()),
            _ => Err(TransportFault::Unreachable("cut off".into())),
        }
    }
}

impl Transport for Wire {
    fn call(
        &self,
        to: ReplicaId,
        _address: &str,
        call: Call,
        within: Duration,
    ) -> futures::future::BoxFuture<'static, Result<Reply, TransportFault>> {
        let target = self.target(to);
        Box::pin(async move {
            let target = target?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            let reply = tokio::time::timeout(within, target.serve(call)).await;
            reply.map_err(|_| TransportFault::Late(within))
        })
    }

    fn install(
        &self,
        to: ReplicaId,
        _address: &str,
        call: Call,
        checkpoint: bytes::Bytes,
        _within: Duration,
    ) -> futures::future::BoxFuture<'static, Result<Reply, TransportFault>> {
        let target = self.target(to);
        Box::pin(async move { Ok(target?.serve_install(call, checkpoint).await) })
    }
}

#[tokio::test(start_paused = true)]
async fn in_one_thread_a_partitioned_follower_neither_deposes_the_leader_nor_reads_stale_data() {
    let wires = Wires::default();
    let now: Now = Arc::new(|| UnixMillis(1));
    for id in 1..=3 {
        let config = RaftConfig {
            id: ReplicaId(id),
            cluster: ClusterId::trusted("test"),
            data_dir: PathBuf::new(),
            timings: timings(),
        };
        let wire = Arc::new(Wire {
            from: id,
            wires: wires.clone(),
        });
        let started = start_in_memory(
            config,
            MemoryDisk::default(),
            MemoryShelf::default(),
            wire,
            now.clone(),
        );
        let cluster = started.await.unwrap();
        wires.replicas.lock().unwrap().insert(id, cluster);
    }
    let replica = |id: u64| wires.replicas.lock().unwrap()[&id].clone();
    replica(1).init(Member::default()).await.unwrap();
    for id in 2..=3 {
        replica(1)
            .add_replica(ReplicaId(id), Member::default())
            .await
            .unwrap();
    }
    write(&replica(3), "before").await;
    let term = replica(1).status().term;
    assert!(replica(1).is_leader());

    wires.cut.lock().unwrap().insert(3);
    write(&replica(2), "during").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(within(5, replica(3).barrier()).await, Err(ProposeFault::NoLeader));
    assert!(!has(&replica(3), "during"));
    wires.cut.lock().unwrap().clear();
    within(5, async { while replica(3).barrier().await.is_err() {} }).await;
    assert!(has(&replica(3), "during"));
    assert_eq!(replica(1).status().term, term, "its return caused no election");

    // The leader, cut off: the others elect, it can neither write nor read, and it follows when it returns.
    wires.cut.lock().unwrap().insert(1);
    within(20, async {
        while replica(2).propose(organization("elected")).await.is_err() {}
    })
    .await;
    assert_eq!(within(5, replica(1).barrier()).await, Err(ProposeFault::NoQuorum));
    assert_eq!(
        within(5, replica(1).propose(organization("lost"))).await,
        Err(ProposeFault::NoQuorum)
    );
    wires.cut.lock().unwrap().clear();
    within(20, async { while replica(1).barrier().await.is_err() {} }).await;
    assert!(has(&replica(1), "elected") && !has(&replica(1), "lost"));
    for id in 1..=3 {
        replica(id).crash().await;
    }
}

/// Prints what a write and a barrier cost here; run by hand with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn measure_writes_and_barriers() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = three(folder.path(), Timings::default()).await;
    let leader = &replicas[leader_of(&replicas).await].cluster;
    for writers in [1, 16, 64] {
        let (each, began) = (1_280 / writers, std::time::Instant::now());
        let tasks = (0..writers).map(|writer| {
            let cluster = leader.clone();
            tokio::spawn(async move {
                for turn in 0..each {
                    write(&cluster, &format!("m{writer}-{turn}")).await;
                }
            })
        });
        futures::future::join_all(tasks.collect::<Vec<_>>()).await;
        let rate = f64::from(each * writers) / began.elapsed().as_secs_f64();
        println!("{writers} writers: {rate:.0} writes/s");
    }
    let began = std::time::Instant::now();
    for _ in 0..200 {
        leader.barrier().await.unwrap();
    }
    println!("barrier: {:?} each", began.elapsed() / 200);
}
