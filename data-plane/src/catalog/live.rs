//! The live snapshot behind an atomic swap: the request path loads it once per request and never waits for a writer.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use http::HeaderValue;
use tollway_shared::catalog::{AuthScheme, Credential};
use tollway_shared::ids::Revision;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::tenant::KeyDigest;
use tollway_shared::time::UnixMillis;

use super::opened::Opened;
use crate::clock;

/// What is refused ahead of the next snapshot: the fast lane of the push stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops {
    /// In force until a snapshot of this revision or later is in use.
    pub revision: Revision,
    /// Digests of keys that are refused.
    pub keys: HashSet<KeyDigest>,
    /// Ids of hard budgets that are spent.
    pub budgets: HashSet<Arc<str>>,
}

impl Stops {
    /// Whether nothing is stopped: the usual case.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.budgets.is_empty()
    }
}

/// What a node was given when it joined, and cannot read a snapshot without.
#[derive(Debug, Clone, Default)]
pub struct NodeSecrets {
    /// Opens the credentials of this node's region.
    pub region_key: Option<Key>,
    /// Digest API keys, by version; the newest version is tried first.
    pub peppers: BTreeMap<u32, Key>,
}

/// The newest good snapshot, shared by every core.
#[derive(Debug, Clone, Default)]
pub struct Live(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    snapshot: ArcSwapOption<Snapshot>,
    stops: ArcSwap<Stops>,
    secrets: ArcSwap<NodeSecrets>,
    opened: ArcSwap<Opened>,
    contact: AtomicI64,
    removed: AtomicBool,
}

impl Live {
    /// Nothing yet: every request is answered `no_snapshot`.
    pub fn new(secrets: NodeSecrets) -> Self {
        let live = Self::default();
        live.set_secrets(secrets);
        live
    }

    /// The snapshot to use for one whole request.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.0.snapshot.load_full()
    }

    /// What is refused ahead of the snapshot. Not to be held across an `.await`.
    pub fn stops(&self) -> Guard<Arc<Stops>> {
        self.0.stops.load()
    }

    /// Milliseconds since the control plane last vouched for what is in force; the age of the disk copy after a start without it.
    pub fn age_ms(&self) -> i64 {
        (clock::now().0 - self.0.contact.load(Ordering::Relaxed)).max(0)
    }

    /// Whether the control plane has said that this node is not registered: it takes no requests until it is again.
    pub fn is_removed(&self) -> bool {
        self.0.removed.load(Ordering::Relaxed)
    }

    /// Notes whether this node is registered; returns whether that is news.
    pub fn set_removed(&self, removed: bool) -> bool {
        self.0.removed.swap(removed, Ordering::Relaxed) != removed
    }

    /// The region's key, when this node was given one.
    pub fn region_key(&self) -> Option<Key> {
        self.0.secrets.load().region_key.clone()
    }

    /// The peppers, by version.
    pub fn peppers(&self) -> Guard<Arc<NodeSecrets>> {
        self.0.secrets.load()
    }

    /// Puts a checked snapshot in force, as vouched for at `at`. Stops that it covers end.
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>, at: UnixMillis) {
        let covered = self.0.stops.load().revision <= snapshot.revision;
        self.0.snapshot.store(Some(snapshot.clone()));
        // After the snapshot: one that is opened meanwhile is kept by the old snapshot and goes here, or by the new one.
        self.0.opened.rcu(|opened| Opened::clone(opened).kept(&snapshot));
        if covered {
            self.0.stops.store(Arc::default());
        }
        self.touch(at);
    }

    /// The header made of a credential for a scheme before.
    pub fn opened(&self, credential: &Credential, auth: AuthScheme) -> Option<HeaderValue> {
        self.0.opened.load().get(credential, auth)
    }

    /// Keeps the header made of a credential for a scheme, as long as the snapshot in force has it.
    pub fn keep_opened(&self, credential: &Credential, auth: AuthScheme, value: &HeaderValue) {
        self.0.opened.rcu(|opened| {
            let snapshot = self.0.snapshot.load_full().unwrap_or_default();
            opened.with(credential, auth, value, &snapshot)
        });
    }

    /// How many credentials are kept opened.
    #[cfg(test)]
    pub(super) fn opened_count(&self) -> usize {
        self.0.opened.load().len()
    }

    /// Puts stops in force.
    pub fn set_stops(&self, mut stops: Stops) {
        // Earlier ones stay until the snapshot in use covers them: the one that does may still be on its way to the disk.
        let held = self.0.stops.load();
        stops.revision = stops.revision.max(held.revision);
        stops.keys.extend(held.keys.iter().copied());
        stops.budgets.extend(held.budgets.iter().cloned());
        self.0.stops.store(Arc::new(stops));
    }

    /// Puts the node's secrets in force.
    pub fn set_secrets(&self, secrets: NodeSecrets) {
        self.0.secrets.store(Arc::new(secrets));
    }

    /// Notes that the control plane vouched for what is in force.
    pub fn touch(&self, at: UnixMillis) {
        self.0.contact.fetch_max(at.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_ends_the_stops_it_covers_and_only_those() {
        let live = Live::new(NodeSecrets::default());
        assert!(live.snapshot().is_none());
        let at = |revision| {
            let mut snapshot = Snapshot::default();
            snapshot.revision = Revision(revision);
            Arc::new(snapshot)
        };
        let stops = Stops {
            revision: Revision(7),
            keys: HashSet::from([[1; 32]]),
            budgets: HashSet::new(),
        };
        live.set_stops(stops.clone());
        live.set_snapshot(at(6), clock::now());
        assert_eq!(**live.stops(), stops);
        live.set_stops(Stops {
            revision: Revision(8),
            keys: HashSet::from([[2; 32]]),
            budgets: HashSet::new(),
        });
        let stopped = |digest| live.stops().keys.contains(&[digest; 32]);
        assert!(
            stopped(1) && stopped(2),
            "a later stop does not let an earlier key in again"
        );
        live.set_snapshot(at(8), clock::now());
        assert!(live.stops().is_empty());
        assert_eq!(live.snapshot().map(|s| s.revision), Some(Revision(8)));
    }
}
