//! The conformance suite of openraft, and what our log adds to it.

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
        Ok((
            folder,
            log,
            Machine::open(shelf, std::sync::Arc::new(crate::state::apply))
                .unwrap()
                .0,
        ))
    }
}

struct InMemory;

impl StoreBuilder<Types, LogStore, Machine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<Types>> {
        let log = LogStore::open(Arc::new(MemoryDisk::default())).unwrap();
        let shelf = Shelf::Memory(MemoryShelf::default());
        Ok((
            (),
            log,
            Machine::open(shelf, std::sync::Arc::new(crate::state::apply))
                .unwrap()
                .0,
        ))
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

#[test]
fn a_sync_from_before_a_truncation_does_not_count_for_the_entries_after_it() {
    const ENTRIES: u64 = 10_000; // more than memory keeps of what is on the disk
    let mut view = View::default();
    for index in 0..ENTRIES {
        view.push(entry(1, index), 100).unwrap();
    }
    let before = view.epoch;
    view.truncate(Some(id(1, 0)));
    for index in 1..ENTRIES {
        view.push(entry(2, index), 100).unwrap();
    }
    view.set_synced(ENTRIES, before);
    let (on_disk, in_memory) = view.range(0, ENTRIES);
    assert!(
        on_disk.is_empty(),
        "nothing of term 2 is on the disk: {on_disk:?}"
    );
    assert_eq!(in_memory.len() as u64, ENTRIES);
    view.set_synced(ENTRIES, view.epoch);
    let (on_disk, in_memory) = view.range(0, ENTRIES);
    assert_eq!(on_disk.end + in_memory.len() as u64, ENTRIES);
    assert!(!on_disk.is_empty());
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
