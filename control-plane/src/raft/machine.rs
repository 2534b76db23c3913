//! The shell around `state::apply`: committed entries in, published states and changes out; checkpoints now and then.
//!
//! Invariant: a state is published before anyone hears the outcome of its last entry, so whoever got an answer reads its own write.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StoredMembership};
use tokio::sync::{broadcast, watch};
use tollway_proto::command::{Entry, Member, Outcome, StoredEntry};
use tollway_shared::ids::Revision;
use tollway_shared::lease::message::Effect;
use tollway_shared::snapshot::ResourceKey;

use super::changes::{Change, Ring};
use super::checkpoint::{Checkpoint, Meta, Shelf};
use super::types::{EntryOf, LeaderId, LogIdOf, StoredMembershipOf, Types, damaged};
use crate::state::{Applied, State};

/// Entries that are applied before the state is published and their proposers hear of it.
const BATCH_ENTRIES_MAX: usize = 256;
/// Changes that a slow reader may lag behind before it has to ask the ring.
const CHANGES_WAITING_MAX: usize = 1_024;
/// Effects that a slow reader may lag behind. What it misses of recalls is told again with the next report of their holder.
const EFFECTS_WAITING_MAX: usize = 4_096;

/// What runs every entry: `state::apply`, unless a simulation watches it or breaks it on purpose.
pub type Apply = Arc<dyn Fn(&mut State, u64, &Entry) -> Applied + Send + Sync>;

type SnapshotOf = Snapshot<LeaderId, u64, Member, Bytes>;

/// What readers see of the state machine.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) state: watch::Sender<Arc<State>>,
    /// The index of the last applied entry.
    pub(super) applied: watch::Sender<u64>,
    pub(super) changes: broadcast::Sender<Arc<Change>>,
    pub(super) effects: broadcast::Sender<Effect>,
    ring: Mutex<Ring>,
}

impl Published {
    /// What changed after `revision`; see [`Ring::since`].
    pub(super) fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
        self.ring
            .lock()
            .expect("no code panics while it holds the ring")
            .since(revision)
    }
}

/// The replicated state of one replica.
pub(super) struct Machine {
    /// What was applied so far.
    current: Checkpoint,
    shelf: Shelf,
    published: Arc<Published>,
    apply: Apply,
}

impl Machine {
    /// Starts from the newest checkpoint, or from nothing.
    pub(super) fn open(shelf: Shelf, apply: Apply) -> io::Result<(Self, Arc<Published>)> {
        let current = shelf
            .newest()?
            .map(|(checkpoint, _)| checkpoint)
            .unwrap_or_default();
        check_version(&current.state)?;
        let published = Arc::new(Published {
            applied: watch::Sender::new(current.at.map_or(0, |id| id.index)),
            changes: broadcast::Sender::new(CHANGES_WAITING_MAX),
            effects: broadcast::Sender::new(EFFECTS_WAITING_MAX),
            ring: Mutex::new(Ring::at(current.state.revision)),
            state: watch::Sender::new(Arc::new(current.state.clone())),
        });
        let machine = Self {
            current,
            shelf,
            published: published.clone(),
            apply,
        };
        Ok((machine, published))
    }

    /// The position up to which it starts out.
    pub(super) fn position(&self) -> Option<LogIdOf> {
        self.current.at
    }

    fn apply_entry(&mut self, entry: EntryOf, batch: &mut Batch) -> io::Result<Option<Outcome>> {
        let index = entry.log_id.index;
        self.current.at = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Normal(StoredEntry::V1(command)) => {
                let applied = (self.apply)(&mut self.current.state, index, &command);
                check_version(&self.current.state)?;
                if !applied.changed.is_empty() {
                    batch.changes.push(Arc::new(Change {
                        revision: self.current.state.revision,
                        keys: applied.changed,
                        reset: false,
                    }));
                }
                batch.effects.extend(applied.effects);
                Ok(Some(applied.outcome))
            }
            EntryPayload::Blank => {
                self.current.state.applied = index;
                Ok(None)
            }
            EntryPayload::Membership(membership) => {
                self.current.state.applied = index;
                self.current.members = StoredMembership::new(Some(entry.log_id), membership);
                Ok(None)
            }
        }
    }

    /// Shows readers the state, then tells proposers.
    fn publish(&self, batch: &mut Batch) {
        {
            // The ring first: a reader of the new state must find its changes.
            let mut ring = self
                .published
                .ring
                .lock()
                .expect("no code panics while it holds the ring");
            batch.changes.iter().for_each(|change| ring.push(change.clone()));
        }
        self.published
            .state
            .send_replace(Arc::new(self.current.state.clone()));
        self.published
            .applied
            .send_replace(self.current.at.map_or(0, |id| id.index));
        // Nobody may be listening.
        for change in batch.changes.drain(..) {
            let _ = self.published.changes.send(change);
        }
        for effect in batch.effects.drain(..) {
            let _ = self.published.effects.send(effect);
        }
        for (answerer, outcome) in batch.answers.drain(..) {
            answerer.send(outcome);
        }
    }
}

type Answerer = ApplyResponder<Types>;

/// What entries that were applied together leave to be told.
#[derive(Default)]
struct Batch {
    changes: Vec<Arc<Change>>,
    effects: Vec<Effect>,
    answers: Vec<(Answerer, Option<Outcome>)>,
}

/// A state that asks for behaviour of a newer version stops this replica; it must not guess.
fn check_version(state: &State) -> io::Result<()> {
    if state.version > crate::state::VERSION {
        let (wanted, known) = (state.version, crate::state::VERSION);
        return Err(io::Error::other(format!(
            "the cluster runs version {wanted}, this replica knows {known}; install a newer release"
        )));
    }
    Ok(())
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf>, StoredMembershipOf), io::Error> {
        Ok((self.current.at, self.current.members.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        let mut waiting = 0;
        while let Some(entry) = entries.next().await {
            let (entry, answerer) = entry?;
            let outcome = self.apply_entry(entry, &mut batch)?;
            batch.answers.extend(answerer.map(|answerer| (answerer, outcome)));
            waiting += 1;
            if waiting == BATCH_ENTRIES_MAX {
                self.publish(&mut batch);
                waiting = 0;
            }
        }
        self.publish(&mut batch);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            checkpoint: self.current.clone(),
            shelf: self.shelf.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &Meta, bytes: Bytes) -> Result<(), io::Error> {
        let (shelf, said) = (self.shelf.clone(), meta.last_log_id);
        let checkpoint = off_thread(self.shelf.blocks(), move || {
            let checkpoint = Checkpoint::decode(&bytes)?;
            check_version(&checkpoint.state)?;
            // Before it is kept: what is refused here must not be what the next start begins with.
            if checkpoint.at != said {
                return Err(damaged("the checkpoint is of another position than was said"));
            }
            shelf.put(checkpoint.at, bytes)?;
            Ok(checkpoint)
        })
        .await?;
        self.current = checkpoint;
        let revision = self.current.state.revision;
        *self
            .published
            .ring
            .lock()
            .expect("no code panics while it holds the ring") = Ring::at(revision);
        self.published
            .state
            .send_replace(Arc::new(self.current.state.clone()));
        self.published
            .applied
            .send_replace(self.current.at.map_or(0, |id| id.index));
        let _ = self.published.changes.send(Arc::new(Change {
            revision,
            keys: Vec::new(),
            reset: true,
        }));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        let shelf = self.shelf.clone();
        let newest = off_thread(self.shelf.blocks(), move || shelf.newest()).await?;
        Ok(newest.map(|(checkpoint, bytes)| Snapshot {
            meta: checkpoint.meta(),
            snapshot: bytes,
        }))
    }
}

/// Makes a checkpoint of a state that stands still.
pub(super) struct Builder {
    checkpoint: Checkpoint,
    shelf: Shelf,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        let (checkpoint, shelf) = (self.checkpoint.clone(), self.shelf.clone());
        off_thread(self.shelf.blocks(), move || {
            let bytes = checkpoint.encode();
            shelf.put(checkpoint.at, bytes.clone())?;
            Ok(Snapshot {
                meta: checkpoint.meta(),
                snapshot: bytes,
            })
        })
        .await
    }
}

/// Runs work that waits for hardware on a thread of its own; in the simulation, right here.
async fn off_thread<T: Send + 'static>(
    blocks: bool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if blocks {
        tokio::task::spawn_blocking(work)
            .await
            .map_err(io::Error::other)?
    } else {
        work()
    }
}

#[cfg(test)]
mod tests {
    use openraft::LogId;
    use openraft::vote::RaftLeaderId as _;

    use super::super::checkpoint::MemoryShelf;
    use super::*;

    #[tokio::test]
    async fn a_checkpoint_of_another_position_than_was_said_is_not_kept() {
        let shelf = Shelf::Memory(MemoryShelf::default());
        let (mut machine, _) = Machine::open(shelf.clone(), Arc::new(crate::state::apply)).unwrap();
        let mut checkpoint = Checkpoint {
            at: Some(LogId::new(LeaderId::new(1, 1), 7)),
            ..Checkpoint::default()
        };
        let bytes = checkpoint.encode();
        checkpoint.at = Some(LogId::new(LeaderId::new(1, 1), 9));
        let refused = machine.install_snapshot(&checkpoint.meta(), bytes.clone()).await;
        assert!(refused.is_err() && shelf.newest().unwrap().is_none());
        checkpoint.at = Some(LogId::new(LeaderId::new(1, 1), 7));
        machine.install_snapshot(&checkpoint.meta(), bytes).await.unwrap();
        assert_eq!(machine.position(), checkpoint.at);
    }
}
