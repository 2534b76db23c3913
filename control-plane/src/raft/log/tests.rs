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
