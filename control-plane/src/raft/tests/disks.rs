//! Disks that crash in the middle and disks that fail, in memory.

use super::*;

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
