//! A partition, in one thread with a paused clock.

use super::*;

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
    assert_eq!(within(5, replica(3).barrier()).await, Err(ProposeFault::NoQuorum));
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
