//! The Raft log: entries are readable at once and acknowledged after they are on the disk.
//!
//! One writer takes everything that waits, writes it in one transaction, syncs, and only then reports each write in order (group
//! commit). What is not yet on the disk, and the newest entries, are kept in memory; older ones are read from the disk. The first
//! I/O or checksum error is reported once, and every later write fails: a replica whose log is in doubt must stop.
//!
//! | file | what |
//! |---|---|
//! | [`view`] | what is in the log, as its readers see it |
//! | [`writer`] | group commit |
//! | [`disk`] | where it is kept: a redb file, or memory for the simulation |

pub(super) mod disk;
mod view;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use self::disk::{Disk, Write};
use self::view::View;
use self::writer::{JOBS_WAITING_MAX, Job};
use super::types::{EntryOf, LogIdOf, StoredMeta, Types, VoteOf, encode_entry, encode_meta};

/// A read for replication stops after this many bytes of entries, so that a message stays well below what a peer accepts.
const READ_BYTES_MAX: usize = 8 << 20;

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub(super) struct LogStore {
    view: Arc<Mutex<View>>,
    disk: Arc<dyn Disk>,
    jobs: mpsc::Sender<Job>,
    writer: Arc<writer::Running>,
}

impl LogStore {
    /// Reads what is on the disk and starts the writer.
    pub(super) fn open(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let view = Arc::new(Mutex::new(View::load(disk.as_ref())?));
        let (jobs, waiting) = mpsc::channel(JOBS_WAITING_MAX);
        let writer = Arc::new(writer::start(disk.clone(), view.clone(), waiting)?);
        Ok(Self {
            view,
            disk,
            jobs,
            writer,
        })
    }

    /// Whether nothing was ever written: a replica that has not joined yet.
    pub(super) fn is_empty(&self) -> bool {
        let view = self.view();
        view.vote.is_none() && view.last_id().is_none()
    }

    /// An error when entries between a checkpoint and the start of the log are gone.
    pub(super) fn check_reaches(&self, checkpoint: Option<LogIdOf>) -> io::Result<()> {
        let purged = self.view().purged;
        if purged.map(|id| id.index) > checkpoint.map(|id| id.index) {
            return Err(super::types::damaged(
                "the log starts after the newest whole checkpoint; remove this replica, delete its data and join again",
            ));
        }
        Ok(())
    }

    /// Writes out what waits and lets go of the disk.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close { done }).await.is_ok() {
            // An error means that the writer has ended already, which is what is wanted.
            let _ = closed.await;
        }
        self.disk.close();
    }

    /// Stops as a crash would: what is not on the disk yet never gets there. Only for disks in memory.
    pub(super) fn crash(&self) {
        self.writer.abort();
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view
            .lock()
            .expect("no code panics while it holds the log's view")
    }

    async fn write(&self, writes: Vec<Write>) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        let job = Job::Write {
            writes,
            done: Some(done),
        };
        self.jobs.send(job).await.map_err(|_| stopped())?;
        written.await.map_err(|_| stopped())?
    }

    async fn queue(&self, writes: Vec<Write>) -> io::Result<()> {
        let job = Job::Write { writes, done: None };
        self.jobs.send(job).await.map_err(|_| stopped())
    }

    /// Entries of `start..end` that the log has, at most `bytes_max` of them but at least one.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<EntryOf>> {
        let (on_disk, mut recent) = self.view().range(start, end);
        if on_disk.is_empty() {
            return Ok(view::limited(recent, bytes_max));
        }
        let (first, last) = (on_disk.start, on_disk.end);
        let disk = self.disk.clone();
        let read = move || disk.read(on_disk, bytes_max);
        let mut entries = if self.disk.blocks() {
            tokio::task::spawn_blocking(read)
                .await
                .map_err(io::Error::other)?
        } else {
            read()
        }
        .inspect_err(|e| self.writer.report(e))?;
        let expected = entries
            .iter()
            .map(|(entry, _)| entry.log_id.index)
            .eq(first..first + entries.len() as u64);
        let complete = entries.len() as u64 == last - first;
        if !expected || (!complete && bytes_max == usize::MAX) || entries.is_empty() {
            let fault = io::Error::new(
                io::ErrorKind::InvalidData,
                format!("log entries {first}..{last} are not all there"),
            );
            self.writer.report(&fault);
            return Err(fault);
        }
        if complete {
            entries.append(&mut recent);
        }
        Ok(view::limited(entries, bytes_max))
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => at.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => at.saturating_add(1),
        Bound::Excluded(at) => *at,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<EntryOf>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf>, io::Error> {
        Ok(self.view().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let view = self.view();
        Ok(LogState {
            last_purged_log_id: view.purged,
            last_log_id: view.last_id(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf) -> Result<(), io::Error> {
        self.write(vec![Write::Vote(encode_meta(&StoredMeta::Vote((*vote).into())))])
            .await?;
        self.view().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf>) -> Result<(), io::Error> {
        self.view().committed = committed;
        // Not waited for: it goes to the disk with the next group, or alone after a moment of quiet.
        let value = encode_meta(&StoredMeta::Committed(committed.map(Into::into)));
        self.queue(vec![Write::Committed(value)]).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf>, io::Error> {
        Ok(self.view().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(EntryOf, Vec<u8>)> = entries
            .into_iter()
            .map(|entry| {
                let bytes = encode_entry(&entry);
                (entry, bytes)
            })
            .collect();
        let slot = self.jobs.reserve().await.map_err(|_| stopped())?;
        // The view and the queue change together: no await between them.
        let mut view = self.view();
        let mut writes = Vec::with_capacity(entries.len());
        let mut end = 0;
        for (entry, bytes) in entries {
            end = entry.log_id.index + 1;
            view.push(entry, bytes.len())?;
            writes.push(Write::Entry(end - 1, bytes));
        }
        let epoch = view.epoch;
        drop(view);
        slot.send(Job::Append {
            writes,
            end,
            epoch,
            callback,
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf>) -> Result<(), io::Error> {
        let slot = self.jobs.reserve().await.map_err(|_| stopped())?;
        let from = last.map_or(0, |id| id.index + 1);
        self.view().truncate(last);
        slot.send(Job::Write {
            writes: vec![Write::RemoveFrom(from)],
            done: None,
        });
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf) -> Result<(), io::Error> {
        let slot = self.jobs.reserve().await.map_err(|_| stopped())?;
        self.view().purge(upto);
        slot.send(Job::Write {
            writes: vec![
                Write::Purged(encode_meta(&StoredMeta::Purged(upto.into()))),
                Write::RemoveTo(upto.index),
            ],
            done: None,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
