//! What changed lately, so that a node that was away for a moment gets a delta and not everything.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tollway_shared::ids::Revision;
use tollway_shared::snapshot::ResourceKey;

/// Changes that are remembered.
pub const CHANGES_KEPT: usize = 4_096;

/// One applied entry that nodes can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision it made.
    pub revision: Revision,
    /// The resources that are different now. Empty when `reset`.
    pub keys: Vec<ResourceKey>,
    /// The state was replaced by a peer's checkpoint: anything may be different.
    pub reset: bool,
}

/// The last [`CHANGES_KEPT`] changes.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Changes after this revision are all here.
    floor: Revision,
    newest: Revision,
    changes: VecDeque<Arc<Change>>,
}

impl Ring {
    /// An empty ring of a state at `revision`.
    pub(super) fn at(revision: Revision) -> Self {
        Self {
            floor: revision,
            newest: revision,
            changes: VecDeque::new(),
        }
    }

    /// Remembers a change, and forgets the oldest one when full.
    pub(super) fn push(&mut self, change: Arc<Change>) {
        if self.changes.len() == CHANGES_KEPT
            && let Some(oldest) = self.changes.pop_front()
        {
            self.floor = oldest.revision;
        }
        self.newest = change.revision;
        self.changes.push_back(change);
    }

    /// The newest revision, and what changed after `revision`; `None` when that is too long ago.
    pub(super) fn since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
        if revision < self.floor {
            return None;
        }
        let first = self.changes.partition_point(|change| change.revision <= revision);
        let keys = self
            .changes
            .range(first..)
            .flat_map(|change| change.keys.iter().cloned());
        Some((self.newest, keys.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollway_shared::snapshot::ResourceKind;

    fn change(revision: u64) -> Arc<Change> {
        Arc::new(Change {
            revision: Revision(revision),
            keys: vec![ResourceKey {
                kind: ResourceKind::Model,
                id: format!("a/{revision}").into(),
            }],
            reset: false,
        })
    }

    #[test]
    fn a_ring_answers_exactly_for_what_it_still_has() {
        let mut ring = Ring::at(Revision(10));
        assert_eq!(ring.since(Revision(9)), None);
        assert_eq!(ring.since(Revision(10)), Some((Revision(10), BTreeSet::new())));
        for revision in 11..11 + CHANGES_KEPT as u64 + 5 {
            ring.push(change(revision));
        }
        // 4,101 changes: the oldest five, revisions 11 to 15, are forgotten.
        assert_eq!(ring.since(Revision(14)), None);
        let (newest, keys) = ring.since(Revision(15)).unwrap();
        assert_eq!(
            (newest, keys.len()),
            (Revision(10 + CHANGES_KEPT as u64 + 5), CHANGES_KEPT)
        );
        assert_eq!(ring.since(newest), Some((newest, BTreeSet::new())));
    }
}
