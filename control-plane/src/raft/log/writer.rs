//! Group commit: everything that waits goes to the disk in one transaction and one sync, then each write is reported in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::disk::{Disk, Write};
use super::view::View;
use crate::raft::types::Types;

/// Writes that may wait for the disk; more make the consensus library wait.
pub(super) const JOBS_WAITING_MAX: usize = 4_096;
/// One transaction takes at most this many bytes.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// How long the committed position may stay off the disk when nothing else is written.
const COMMITTED_DELAY: Duration = Duration::from_millis(20);

/// What the writer is asked to do.
pub(super) enum Job {
    /// Entries `..end`; `callback` after the sync.
    Append {
        writes: Vec<Write>,
        end: u64,
        epoch: u64,
        callback: IOFlushed<Types>,
    },
    /// Anything else.
    Write {
        writes: Vec<Write>,
        done: Option<oneshot::Sender<io::Result<()>>>,
    },
    /// Write what waits, then end.
    Close { done: oneshot::Sender<()> },
}

/// The writer's handle.
pub(super) struct Running {
    faulty: Arc<AtomicBool>,
    task: Option<AbortHandle>,
}

impl Running {
    /// Logs the first error of this log, and only that.
    pub(super) fn report(&self, fault: &io::Error) {
        report(&self.faulty, fault);
    }

    /// Ends a writer that is a task, at once.
    pub(super) fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn report(faulty: &AtomicBool, fault: &io::Error) {
    if !faulty.swap(true, Ordering::SeqCst) {
        tracing::error!(error = %fault, "the Raft log cannot be trusted any more; this replica stops");
    }
}

/// Starts the writer: a thread for a disk that blocks, a task otherwise.
pub(super) fn start(
    disk: Arc<dyn Disk>,
    view: Arc<Mutex<View>>,
    waiting: mpsc::Receiver<Job>,
) -> io::Result<Running> {
    let faulty = Arc::new(AtomicBool::new(false));
    let blocks = disk.blocks();
    let writer = Writer {
        disk,
        view,
        faulty: faulty.clone(),
    };
    let task = if blocks {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || runtime.block_on(writer.run(waiting)))?;
        None
    } else {
        Some(tokio::spawn(writer.run(waiting)).abort_handle())
    };
    Ok(Running { faulty, task })
}

struct Writer {
    disk: Arc<dyn Disk>,
    view: Arc<Mutex<View>>,
    faulty: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Job>) {
        let mut lazy = Vec::new(); // positions that are not worth a sync of their own yet
        loop {
            let first = if lazy.is_empty() {
                waiting.recv().await
            } else {
                match tokio::time::timeout(COMMITTED_DELAY, waiting.recv()).await {
                    Ok(job) => job,
                    Err(_quiet) => {
                        self.commit(std::mem::take(&mut lazy), Vec::new()).await;
                        continue;
                    }
                }
            };
            let Some(first) = first else { break };
            let mut group = vec![first];
            let mut bytes = group[0].bytes();
            while bytes < GROUP_BYTES_MAX
                && group.len() < JOBS_WAITING_MAX
                && let Ok(job) = waiting.try_recv()
            {
                bytes += job.bytes();
                group.push(job);
            }
            let mut writes = std::mem::take(&mut lazy);
            let mut reports = Vec::with_capacity(group.len());
            let mut closed = None;
            let mut wanted = false;
            for job in group {
                match job {
                    Job::Append {
                        writes: entries,
                        end,
                        epoch,
                        callback,
                    } => {
                        wanted = true;
                        writes.extend(entries);
                        reports.push(Report::Append { end, epoch, callback });
                    }
                    Job::Write { writes: more, done } => {
                        wanted |=
                            done.is_some() || more.iter().any(|write| !matches!(write, Write::Committed(_)));
                        writes.extend(more);
                        reports.extend(done.map(Report::Done));
                    }
                    Job::Close { done } => {
                        wanted = true;
                        closed = Some(done);
                    }
                }
            }
            if !wanted {
                // Only the newest position matters.
                lazy.extend(writes.pop());
                continue;
            }
            self.commit(writes, reports).await;
            if let Some(done) = closed {
                waiting.close();
                self.disk.close();
                let _ = done.send(());
                return;
            }
        }
        self.commit(lazy, Vec::new()).await;
    }

    /// Writes, syncs and reports.
    async fn commit(&self, writes: Vec<Write>, reports: Vec<Report>) {
        let result = if self.faulty.load(Ordering::SeqCst) {
            Err(io::Error::other("an earlier write to the log failed"))
        } else if writes.is_empty() {
            Ok(())
        } else {
            self.disk.settle().await;
            self.disk.commit(&writes)
        };
        if let Err(fault) = &result {
            report(&self.faulty, fault);
        }
        for report in reports {
            let result = match &result {
                Ok(()) => Ok(()),
                Err(fault) => Err(io::Error::new(fault.kind(), fault.to_string())),
            };
            match report {
                Report::Append { end, epoch, callback } => {
                    if result.is_ok() {
                        let mut view = self
                            .view
                            .lock()
                            .expect("no code panics while it holds the log's view");
                        view.set_synced(end, epoch);
                    }
                    callback.io_completed(result);
                }
                // The caller may have stopped waiting.
                Report::Done(done) => drop(done.send(result)),
            }
        }
    }
}

/// Who hears about a write.
enum Report {
    Append {
        end: u64,
        epoch: u64,
        callback: IOFlushed<Types>,
    },
    Done(oneshot::Sender<io::Result<()>>),
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { writes, .. } | Self::Write { writes, .. } => writes.iter().map(Write::bytes).sum(),
            Self::Close { .. } => 0,
        }
    }
}
