use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::disk::{MemoryDisk, RedbDisk};
use super::*;
use crate::raft::checkpoint::{MemoryShelf, Shelf};
use crate::raft::machine::Machine;

struct OnDisk;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let disk = RedbDisk::open(&folder.path().join("raft.redb"), Arc::default()).unwrap();
        let shelf = Shelf::folder(folder.path().join("checkpoints")).unwrap();
        let log = LogStore::open(Arc::new(disk)).unwrap();
        Ok((folder, log, Machine::open(shelf).unwrap().0))
    }
}

struct InMemory;

impl StoreBuilder<Types, LogStore, Machine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<Types>> {
        let log = LogStore::open(Arc::new(MemoryDisk::default())).unwrap();
        let shelf = Shelf::Memory(MemoryShelf::default());
        Ok(((), log, Machine::open(shelf).unwrap().0))
    }
}

#[tokio::test]
async fn the_log_on_disk_passes_the_librarys_conformance_suite() {
    Suite::test_all(OnDisk).await.unwrap();
}

#[tokio::test]
async fn the_log_in_memory_passes_the_librarys_conformance_suite() {
    Suite::test_all(InMemory).await.unwrap();
}

fn id(term: u64, index: u64) -> LogIdOf {
    crate::raft::types::Position {
        term,
        leader: 1,
        index,
    }
    .into()
}

fn entry(term: u64, index: u64) -> EntryOf {
    EntryOf {
        log_id: id(term, index),
        payload: openraft::EntryPayload::Blank,
    }
}

async fn append(log: &mut LogStore, entries: Vec<EntryOf>) -> io::Result<()> {
    let (done, synced) = <Types as openraft::type_config::TypeConfigExt>::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    synced.await.unwrap()
}

fn open(folder: &TempDir) -> io::Result<LogStore> {
    let disk = RedbDisk::open(&folder.path().join("raft.redb"), Arc::default())?;
    LogStore::open(Arc::new(disk))
}

#[tokio::test]
async fn a_log_that_is_longer_than_memory_keeps_is_read_whole_and_again_after_a_restart() {
    const ENTRIES: u64 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder).unwrap();
    append(&mut log, (0..ENTRIES).map(|index| entry(1, index)).collect())
        .await
        .unwrap();
    log.save_committed(Some(id(1, 9_000))).await.unwrap();
    log.save_vote(&openraft::Vote::new_committed(1, 1)).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            log.close().await;
            log = open(&folder).unwrap();
        }
        let all = log.try_get_log_entries(..).await.unwrap();
        assert!(all.iter().map(|entry| entry.log_id.index).eq(0..ENTRIES));
        // Across the border between disk and memory, wherever it is.
        let some = log.try_get_log_entries(5_000..7_000).await.unwrap();
        assert!(some.iter().map(|entry| entry.log_id.index).eq(5_000..7_000));
        assert_eq!(log.read_committed().await.unwrap(), Some(id(1, 9_000)));
    }

    log.truncate_after(Some(id(1, 99))).await.unwrap();
    append(&mut log, vec![entry(2, 100)]).await.unwrap();
    log.purge(id(1, 49)).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            log.close().await;
            log = open(&folder).unwrap();
        }
        let left = log.try_get_log_entries(0..).await.unwrap();
        assert!(left.iter().map(|entry| entry.log_id.index).eq(50..=100));
        assert_eq!(left.last().unwrap().log_id, id(2, 100));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(
            (state.last_purged_log_id, state.last_log_id),
            (Some(id(1, 49)), Some(id(2, 100)))
        );
    }
}

#[tokio::test]
async fn entries_written_before_a_truncation_do_not_count_for_those_after_it() {
    let disk = MemoryDisk::default();
    let mut log = LogStore::open(Arc::new(disk.clone())).unwrap();
    for term in 1..50 {
        let last = (term > 1).then(|| id(1, 0));
        log.truncate_after(last).await.unwrap();
        let from = u64::from(term > 1);
        // Not waited for: the next truncation overtakes the writer.
        let entries = (from..5_000).map(|index| entry(if index == 0 { 1 } else { term }, index));
        log.append(entries, IOFlushed::noop()).await.unwrap();
        let read = log.try_get_log_entries(1..5_000).await.unwrap();
        assert_eq!(read.len(), 4_999);
        assert!(
            read.iter().all(|entry| entry.log_id.leader_id.term == term),
            "term {term}"
        );
    }
}

#[tokio::test]
async fn a_gap_is_refused_and_a_flipped_bit_on_disk_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder).unwrap();
    append(&mut log, (0..3).map(|index| entry(1, index)).collect())
        .await
        .unwrap();
    assert!(log.append(vec![entry(1, 4)], IOFlushed::noop()).await.is_err());
    log.close().await;
    assert!(
        append(&mut log, vec![entry(1, 3)]).await.is_err(),
        "a closed log takes nothing"
    );

    let path = folder.path().join("raft.redb");
    let mut damaged = encode_entry(&entry(1, 1));
    *damaged.last_mut().unwrap() ^= 1;
    let disk = RedbDisk::open(&path, Arc::default()).unwrap();
    disk.commit(&[Write::Entry(1, damaged)]).unwrap();
    disk.close();
    let fault = open(&folder).err().unwrap();
    assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
}
