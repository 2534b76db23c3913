//! Writes asked of a follower that does not hear of what happened elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tollway_proto::command::{Command, InitCluster, Member, Outcome, Role};
use tollway_shared::ids::{AdminId, ClusterId, ReplicaId};
use tollway_shared::seal::Key;

use super::*;
use crate::raft::{Call, MemoryDisk, MemoryShelf, Reply as Answered, Transport, TransportFault};

/// Carries everything between replicas but the leader's news for the one that lags.
#[derive(Clone, Default)]
struct Wires {
    replicas: Arc<Mutex<BTreeMap<ReplicaId, Cluster>>>,
    lags: Arc<AtomicBool>,
}

impl Wires {
    fn target(&self, to: ReplicaId, is_news: bool) -> Result<Cluster, TransportFault> {
        let lost = is_news && to == ReplicaId(2) && self.lags.load(Ordering::SeqCst);
        let target = self.replicas.lock().unwrap().get(&to).cloned();
        target
            .filter(|_| !lost)
            .ok_or_else(|| TransportFault::Unreachable("lost".into()))
    }
}

impl Transport for Wires {
    fn call(
        &self,
        to: ReplicaId,
        _address: &str,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Answered, TransportFault>> {
        let target = self.target(to, call.name() == "append");
        Box::pin(async move {
            let reply = tokio::time::timeout(within, target?.serve(call)).await;
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
    ) -> BoxFuture<'static, Result<Answered, TransportFault>> {
        let target = self.target(to, true);
        Box::pin(async move { Ok(target?.serve_install(call, checkpoint).await) })
    }
}

#[tokio::test(start_paused = true)]
async fn an_admin_removed_elsewhere_writes_nothing_through_a_follower_that_lags() {
    let wires = Wires::default();
    for id in 1..=3 {
        let config = RaftConfig {
            id: ReplicaId(id),
            cluster: ClusterId::trusted("c-test"),
            data_dir: PathBuf::new(),
            timings: Timings::default(),
        };
        let (disk, shelf) = (MemoryDisk::default(), MemoryShelf::default());
        let wire = Arc::new(wires.clone());
        let started = raft::start_in_memory(config, disk, shelf, wire, Arc::new(clock::now));
        let cluster = started.await.unwrap();
        wires.replicas.lock().unwrap().insert(ReplicaId(id), cluster);
    }
    let replica = |id: u64| wires.replicas.lock().unwrap()[&ReplicaId(id)].clone();
    let leader = replica(1);
    leader.init(Member::default()).await.unwrap();
    for id in 2..=3 {
        leader
            .add_replica(ReplicaId(id), Member::default())
            .await
            .unwrap();
    }
    let root = Key::new([7; 32]);
    let run = async |command: Command| {
        let done = leader.propose(Proposal::system(command)).await.unwrap();
        assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    };
    let id = ClusterId::trusted("c-test");
    let authority = Authority::create(id.clone(), clock::now()).unwrap();
    let (_, owner) = new_admin(&root, AdminId::trusted("owner"), String::new(), Role::Owner);
    run(Command::InitCluster(InitCluster {
        cluster: id,
        authority_pem: authority.certificate_pem().to_owned(),
        authority_key: authority.sealed_key(&root),
        admin: owner,
    }))
    .await;
    let (key, other) = new_admin(&root, AdminId::trusted("other"), String::new(), Role::Admin);
    run(Command::CreateAdmin(other)).await;
    let follower = World {
        router: super::super::router(
            replica(2),
            root,
            Arc::new(NoFleet),
            Billing::new(Place::None).0,
            CancellationToken::new(),
        ),
        cluster: replica(2),
        owner: key,
        store: std::path::PathBuf::new(),
        _dir: tempfile::tempdir().unwrap(),
    };
    follower.put("organizations/before", json!({})).await;

    wires.lags.store(true, Ordering::SeqCst);
    run(Command::RemoveAdmin(AdminId::trusted("other"))).await;
    let refused = follower.call("PUT", "organizations/after", Some(json!({}))).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(leader.state().organizations.len(), 1);
    wires.lags.store(false, Ordering::SeqCst);
    let caught_up = async { while replica(2).barrier().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), caught_up)
        .await
        .unwrap();
    let late = follower.call("PUT", "organizations/after", Some(json!({}))).await;
    late.refused(401, "unauthenticated");
}
