//! Replicas that come, go, lead and hand over, and those that do not belong.

use super::*;

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
