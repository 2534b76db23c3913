//! Where the log is kept: a redb file, or memory with faults for the simulation.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::raft::types::{EntryOf, LogIdOf, StoredMeta, VoteOf, damaged, decode_entry, decode_meta};

const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
/// Memory for the redb file's pages.
const CACHE_BYTES: usize = 16 << 20;

/// One change of what is stored.
#[derive(Debug)]
pub(in crate::raft) enum Write {
    Entry(u64, Vec<u8>),
    Vote(Vec<u8>),
    Committed(Vec<u8>),
    Purged(Vec<u8>),
    /// Removes entries from this index on.
    RemoveFrom(u64),
    /// Removes entries up to this index, inclusive.
    RemoveTo(u64),
}

impl Write {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Entry(_, bytes) | Self::Vote(bytes) | Self::Committed(bytes) | Self::Purged(bytes) => {
                bytes.len()
            }
            Self::RemoveFrom(_) | Self::RemoveTo(_) => 0,
        }
    }
}

/// What is stored: the log's own values and its first and last index.
#[derive(Debug, Default)]
pub(in crate::raft) struct Stored {
    pub(super) vote: Option<VoteOf>,
    pub(super) committed: Option<LogIdOf>,
    pub(super) purged: Option<LogIdOf>,
    pub(super) entries: Option<(u64, u64)>,
}

impl Stored {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match decode_meta(bytes)? {
            StoredMeta::Vote(vote) => self.vote = Some(vote.into()),
            StoredMeta::Committed(at) => self.committed = at.map(Into::into),
            StoredMeta::Purged(at) => self.purged = Some(at.into()),
        }
        Ok(())
    }
}

/// Something that keeps a log.
pub(in crate::raft) trait Disk: Send + Sync + 'static {
    /// The log's own values and its ends.
    fn load(&self) -> io::Result<Stored>;
    /// Makes all of it durable, or none.
    fn commit(&self, writes: &[Write]) -> io::Result<()>;
    /// Entries with their sizes; stops once `bytes_max` is passed.
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(EntryOf, usize)>>;
    /// Whether calls wait for hardware, so that they need threads of their own.
    fn blocks(&self) -> bool;
    /// How long the hardware takes, when it is simulated.
    fn settle(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
    /// Lets go of the file.
    fn close(&self) {}
}

/// A log in a redb file.
pub(in crate::raft) struct RedbDisk {
    database: RwLock<Option<Arc<Database>>>,
    syncs: Arc<AtomicU64>,
}

impl RedbDisk {
    /// Opens or makes the file. `syncs` counts its syncs.
    pub(in crate::raft) fn open(path: &Path, syncs: Arc<AtomicU64>) -> io::Result<Self> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| io::Error::other(format!("`{}`: {e}", path.display())))?;
        let start = database.begin_write().map_err(io::Error::other)?;
        start.open_table(ENTRIES).map_err(io::Error::other)?;
        start.open_table(META).map_err(io::Error::other)?;
        start.commit().map_err(io::Error::other)?;
        Ok(Self {
            database: RwLock::new(Some(Arc::new(database))),
            syncs,
        })
    }

    fn database(&self) -> io::Result<Arc<Database>> {
        let database = self
            .database
            .read()
            .expect("no code panics while it holds the database");
        database
            .clone()
            .ok_or_else(|| io::Error::other("the log is closed"))
    }
}

impl Disk for RedbDisk {
    fn load(&self) -> io::Result<Stored> {
        let read = self.database()?.begin_read().map_err(io::Error::other)?;
        let mut stored = Stored::default();
        let meta = read.open_table(META).map_err(io::Error::other)?;
        for value in meta.iter().map_err(io::Error::other)? {
            let (_, bytes) = value.map_err(io::Error::other)?;
            stored.take(bytes.value())?;
        }
        let entries = read.open_table(ENTRIES).map_err(io::Error::other)?;
        let first = entries
            .first()
            .map_err(io::Error::other)?
            .map(|(index, _)| index.value());
        let last = entries
            .last()
            .map_err(io::Error::other)?
            .map(|(index, _)| index.value());
        if let (Some(first), Some(last)) = (first, last) {
            let count = entries.len().map_err(io::Error::other)?;
            if count != last - first + 1 {
                return Err(damaged(format!(
                    "the log has {count} entries in {first}..={last}"
                )));
            }
            stored.entries = Some((first, last));
        }
        Ok(stored)
    }

    fn commit(&self, writes: &[Write]) -> io::Result<()> {
        let mut write = self.database()?.begin_write().map_err(io::Error::other)?;
        write
            .set_durability(Durability::Immediate)
            .map_err(io::Error::other)?;
        {
            let mut entries = write.open_table(ENTRIES).map_err(io::Error::other)?;
            let mut meta = write.open_table(META).map_err(io::Error::other)?;
            for change in writes {
                match change {
                    Write::Entry(index, bytes) => {
                        entries
                            .insert(index, bytes.as_slice())
                            .map_err(io::Error::other)?;
                    }
                    Write::Vote(bytes) => {
                        meta.insert(VOTE, bytes.as_slice()).map_err(io::Error::other)?;
                    }
                    Write::Committed(bytes) => {
                        meta.insert(COMMITTED, bytes.as_slice())
                            .map_err(io::Error::other)?;
                    }
                    Write::Purged(bytes) => {
                        meta.insert(PURGED, bytes.as_slice()).map_err(io::Error::other)?;
                    }
                    Write::RemoveFrom(index) => {
                        entries
                            .retain_in(*index.., |_, _| false)
                            .map_err(io::Error::other)?;
                    }
                    Write::RemoveTo(index) => {
                        entries
                            .retain_in(..=*index, |_, _| false)
                            .map_err(io::Error::other)?;
                    }
                }
            }
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        write.commit().map_err(io::Error::other)
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(EntryOf, usize)>> {
        let read = self.database()?.begin_read().map_err(io::Error::other)?;
        let entries = read.open_table(ENTRIES).map_err(io::Error::other)?;
        let mut found = Vec::new();
        let mut total = 0usize;
        for entry in entries.range(range).map_err(io::Error::other)? {
            let (index, bytes) = entry.map_err(io::Error::other)?;
            total = total.saturating_add(bytes.value().len());
            found.push((stored_at(index.value(), bytes.value())?, bytes.value().len()));
            if total > bytes_max {
                break;
            }
        }
        Ok(found)
    }

    fn blocks(&self) -> bool {
        true
    }

    fn close(&self) {
        self.database
            .write()
            .expect("no code panics while it holds the database")
            .take();
    }
}

fn stored_at(index: u64, bytes: &[u8]) -> io::Result<EntryOf> {
    let entry = decode_entry(bytes)?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(damaged(format!(
            "entry {} is stored as entry {index}",
            entry.log_id.index
        )))
    }
}

/// A log in memory, for the simulation: it survives a crash of its replica, unsynced writes do not.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<u64, Vec<u8>>,
    meta: BTreeMap<&'static str, Vec<u8>>,
    sync_takes: Duration,
    fails: bool,
    syncs: u64,
    taken_back: u64,
}

impl MemoryDisk {
    /// How long each sync takes from now on; a crash in that time loses what was to be synced.
    pub fn set_sync_takes(&self, time: Duration) {
        self.memory().sync_takes = time;
    }

    /// Whether writes fail from now on.
    pub fn set_fails(&self, fails: bool) {
        self.memory().fails = fails;
    }

    /// Flips a bit of a stored entry: what a bad disk would do. False when there is no such entry.
    pub fn damage(&self, index: u64) -> bool {
        let mut memory = self.memory();
        let Some(last) = memory.entries.get_mut(&index).and_then(|bytes| bytes.last_mut()) else {
            return false;
        };
        *last ^= 1;
        true
    }

    /// Forgets the newest `count` entries: what a disk does that said "synced" too early and then lost power.
    pub fn forget_newest(&self, count: usize) {
        let mut memory = self.memory();
        for _ in 0..count {
            memory.entries.pop_last();
        }
    }

    /// The first and the last stored index.
    pub fn ends(&self) -> Option<(u64, u64)> {
        let memory = self.memory();
        let (first, _) = memory.entries.first_key_value()?;
        let (last, _) = memory.entries.last_key_value()?;
        Some((*first, *last))
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.memory().syncs
    }

    /// Synced entries that a new leader had the log take back, so far.
    pub fn taken_back(&self) -> u64 {
        self.memory().taken_back
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("no code panics while it holds the memory")
    }
}

impl Disk for MemoryDisk {
    fn load(&self) -> io::Result<Stored> {
        let memory = self.memory();
        let mut stored = Stored::default();
        for bytes in memory.meta.values() {
            stored.take(bytes)?;
        }
        drop(memory);
        stored.entries = self.ends();
        Ok(stored)
    }

    fn commit(&self, writes: &[Write]) -> io::Result<()> {
        let mut memory = self.memory();
        if memory.fails {
            return Err(io::Error::other("the simulated disk fails"));
        }
        for change in writes {
            match change {
                Write::Entry(index, bytes) => drop(memory.entries.insert(*index, bytes.clone())),
                Write::Vote(bytes) => drop(memory.meta.insert(VOTE, bytes.clone())),
                Write::Committed(bytes) => drop(memory.meta.insert(COMMITTED, bytes.clone())),
                Write::Purged(bytes) => drop(memory.meta.insert(PURGED, bytes.clone())),
                Write::RemoveFrom(index) => {
                    let gone = memory.entries.split_off(index);
                    memory.taken_back += gone.len() as u64;
                }
                Write::RemoveTo(index) => memory.entries = memory.entries.split_off(&(index + 1)),
            }
        }
        memory.syncs += 1;
        Ok(())
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<(EntryOf, usize)>> {
        let memory = self.memory();
        let mut found = Vec::new();
        let mut total = 0usize;
        for (index, bytes) in memory.entries.range(range) {
            total = total.saturating_add(bytes.len());
            found.push((stored_at(*index, bytes)?, bytes.len()));
            if total > bytes_max {
                break;
            }
        }
        Ok(found)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn settle(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let takes = self.memory().sync_takes;
        Box::pin(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
        })
    }
}
