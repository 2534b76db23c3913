//! Writes asked of a follower that does not hear of what happened elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use tollway_proto::command::{Command, InitCluster, Member, Outcome, Role};
use tollway_shared::ids::{AdminId, ClusterId, ReplicaId};
use tollway_shared::seal::Key;

use super::credits::{SECRET, signed};
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

async fn run(leader: &Cluster, command: Command) {
    let done = leader.propose(Proposal::system(command)).await.unwrap();
    assert!(matches!(done, Outcome::Done(_)), "{done:?}");
}

/// Three replicas: the leader, and the follower that may lag over HTTP with the key of an admin `other`.
async fn started(wires: &Wires) -> (Cluster, World) {
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
    let id = ClusterId::trusted("c-test");
    let authority = Authority::create(id.clone(), clock::now()).unwrap();
    let (_, owner) = new_admin(&root, AdminId::trusted("owner"), String::new(), Role::Owner);
    let init = Command::InitCluster(InitCluster {
        cluster: id,
        authority_pem: authority.certificate_pem().to_owned(),
        authority_key: authority.sealed_key(&root),
        admin: owner,
    });
    run(&leader, init).await;
    let (key, other) = new_admin(&root, AdminId::trusted("other"), String::new(), Role::Admin);
    run(&leader, Command::CreateAdmin(other)).await;
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
    (leader, follower)
}

/// The follower hears again, and has heard everything.
async fn caught_up(wires: &Wires, follower: &World) {
    wires.lags.store(false, Ordering::SeqCst);
    let caught_up = async { while follower.cluster.barrier().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), caught_up)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_admin_removed_elsewhere_writes_nothing_through_a_follower_that_lags() {
    let wires = Wires::default();
    let (leader, follower) = started(&wires).await;
    wires.lags.store(true, Ordering::SeqCst);
    run(&leader, Command::RemoveAdmin(AdminId::trusted("other"))).await;
    let refused = follower.call("PUT", "organizations/after", Some(json!({}))).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(leader.state().organizations.len(), 1);
    caught_up(&wires, &follower).await;
    let late = follower.call("PUT", "organizations/after", Some(json!({}))).await;
    late.refused(401, "unauthenticated");
}

#[tokio::test(start_paused = true)]
async fn a_sender_removed_elsewhere_books_nothing_through_a_follower_that_lags() {
    let wires = Wires::default();
    let (leader, follower) = started(&wires).await;
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    let id = AdminId::trusted("payer");
    let (key, owner) = new_admin(&Key::new([7; 32]), id, String::new(), Role::Owner);
    run(&leader, Command::CreateAdmin(owner)).await;
    let owner = World {
        owner: key,
        ..follower
    };
    owner.put("webhooks/payments", json!({"secrets": [secret]})).await;
    let message = |secret: &[u8]| {
        let paid = json!({"type": "payment.succeeded",
            "data": {"organization": "before", "amount": "5", "reference": "pi_1"}});
        owner.send(signed(secret, "msg_1", clock::now().0 / 1_000, &paid))
    };
    wires.lags.store(true, Ordering::SeqCst);
    run(&leader, Command::PutPaymentSecrets(Vec::new())).await;
    message(&[6; 32]).await.refused(401, "unauthenticated");
    let refused = message(&SECRET).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(leader.state().accounts.len(), 0);
    caught_up(&wires, &owner).await;
    message(&SECRET).await.refused(401, "unauthenticated");
}
