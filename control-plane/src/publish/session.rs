//! Pure: what to send to one node next.
//!
//! One question is outstanding at a time, so changes that come meanwhile travel together. A delta that is refused or leads to
//! another hash is followed by a full snapshot; a full snapshot that is refused is not sent again until there is a newer
//! revision. Stops go ahead of everything.

use std::collections::BTreeSet;

use tollway_proto::push::v1::{Ack, Delta, Hello, Nack, Stop};
use tollway_shared::ids::Revision;
use tollway_shared::snapshot::{ResourceKey, StateHash};

use super::build::{Halt, RegionView};

/// A delta with more stored bytes than this is sent as a full snapshot: a message must fit what a node accepts.
pub const DELTA_BYTES_MAX: usize = 2 << 20;
/// A delta of more changes than this is sent as a full snapshot.
pub const DELTA_CHANGES_MAX: usize = 10_000;
/// Digests and ids per stop message.
const STOPS_PER_MESSAGE: usize = 10_000;

/// What changed after a revision, and up to which one that is known; `None` when the revision is too long ago.
pub type Changes = Option<(Revision, BTreeSet<ResourceKey>)>;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Send {
    /// Ahead of everything that is queued.
    Stop(Stop),
    /// The view that was given, in chunks, under this nonce.
    Full(u64),
    /// One message.
    Delta(Delta),
}

#[derive(Debug)]
struct Outstanding {
    nonce: u64,
    revision: Revision,
    hash: StateHash,
    full: bool,
}

/// The control plane's end of one node's stream.
#[derive(Debug)]
pub struct SessionCore {
    /// What the node runs on, as it said last.
    revision: Revision,
    hash: Option<StateHash>,
    outstanding: Option<Outstanding>,
    /// Only a full snapshot will do.
    full_needed: bool,
    /// The newest revision that was refused as a full snapshot.
    refused: Option<Revision>,
    /// Stops up to this revision have been sent.
    stopped: Revision,
    nonce: u64,
}

impl SessionCore {
    /// Starts with what the node says it has.
    pub fn new(hello: &Hello) -> Self {
        let revision = Revision(hello.have_revision);
        Self {
            revision,
            hash: StateHash::from_bytes(&hello.have_hash),
            outstanding: None,
            full_needed: hello.have_revision == 0 || hello.have_hash.is_empty(),
            refused: None,
            stopped: revision,
            nonce: 0,
        }
    }

    /// What the node runs on.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether an answer is awaited.
    pub fn is_waiting(&self) -> bool {
        self.outstanding.is_some()
    }

    /// What to send now that `view` is the newest. `changes` answers what changed after a revision.
    pub fn turn(&mut self, view: &RegionView, changes: impl Fn(Revision) -> Changes) -> Vec<Send> {
        let mut send: Vec<Send> = self.stops(view, &changes).into_iter().map(Send::Stop).collect();
        send.extend(self.next(view, &changes));
        send
    }

    /// The node runs on another revision now. Answers to other questions than the outstanding one mean nothing.
    pub fn acked(&mut self, ack: &Ack) -> bool {
        let Some(outstanding) = self.outstanding.take_if(|asked| asked.nonce == ack.nonce) else {
            return false;
        };
        self.revision = Revision(ack.revision);
        self.hash = StateHash::from_bytes(&ack.hash);
        let agreed = self.revision == outstanding.revision && self.hash == Some(outstanding.hash);
        self.full_needed = !agreed;
        if agreed {
            self.refused = None;
        }
        agreed
    }

    /// The node refused the outstanding revision.
    pub fn refused(&mut self, nack: &Nack) -> bool {
        let Some(outstanding) = self.outstanding.take_if(|asked| asked.nonce == nack.nonce) else {
            return false;
        };
        self.revision = Revision(nack.kept_revision);
        self.hash = None;
        self.full_needed = true;
        if outstanding.full {
            self.refused = Some(outstanding.revision);
        }
        true
    }

    /// Keys and budgets that stopped since the last turn. What is too long ago comes with the full snapshot.
    fn stops(&mut self, view: &RegionView, changes: &impl Fn(Revision) -> Changes) -> Vec<Stop> {
        if view.revision <= self.stopped {
            return Vec::new();
        }
        let since = std::mem::replace(&mut self.stopped, view.revision);
        let Some((_, keys)) = changes(since) else {
            return Vec::new();
        };
        let halts: Vec<&Halt> = keys.iter().filter_map(|key| view.halt(key)).collect();
        halts
            .chunks(STOPS_PER_MESSAGE)
            .map(|halts| {
                let mut stop = Stop {
                    revision: view.revision.0,
                    ..Stop::default()
                };
                for halt in halts {
                    match halt {
                        Halt::Key(digest) => stop.key_digests.push(digest.to_vec().into()),
                        Halt::Budget(id) => stop.budgets.push(id.to_string()),
                    }
                }
                stop
            })
            .collect()
    }

    fn next(&mut self, view: &RegionView, changes: &impl Fn(Revision) -> Changes) -> Option<Send> {
        let is_behind = view.revision < self.revision; // this replica, not the node: it will catch up
        let is_refused = self.refused.is_some_and(|refused| refused >= view.revision);
        if self.outstanding.is_some() || is_behind || is_refused || view.revision == Revision(0) {
            return None;
        }
        if view.revision == self.revision && !self.full_needed {
            if self.hash == Some(view.hash()) {
                return None;
            }
            self.full_needed = true;
        }
        self.nonce += 1;
        let delta = (!self.full_needed).then(|| self.delta(view, changes)).flatten();
        self.outstanding = Some(Outstanding {
            nonce: self.nonce,
            revision: view.revision,
            hash: view.hash(),
            full: delta.is_none(),
        });
        Some(delta.map_or(Send::Full(self.nonce), Send::Delta))
    }

    fn delta(&self, view: &RegionView, changes: &impl Fn(Revision) -> Changes) -> Option<Delta> {
        let (known, keys) = changes(self.revision)?;
        if known < view.revision || keys.len() > DELTA_CHANGES_MAX {
            return None;
        }
        let changes: Vec<_> = keys.iter().map(|key| view.change(key)).collect();
        let bytes: usize = changes
            .iter()
            .map(|change| change.data.as_ref().map_or(0, bytes::Bytes::len) + change.id.len())
            .sum();
        (bytes <= DELTA_BYTES_MAX).then(|| Delta {
            from_revision: self.revision.0,
            revision: view.revision.0,
            nonce: self.nonce,
            changes,
            hash: view.hash().to_bytes().to_vec().into(),
        })
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
