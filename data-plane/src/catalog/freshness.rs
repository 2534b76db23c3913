//! How fresh a snapshot is: when the control plane last said that nothing newer than it had been answered.
//!
//! A heartbeat names the revision that it vouches for. What is in force becomes fresher only once it has come that far: a node that
//! refuses what it is sent, or has only heard of it, stays as old as it is.

use tollway_shared::ids::Revision;
use tollway_shared::time::UnixMillis;

/// What has been vouched for, and how fresh what is in force is by that.
#[derive(Debug)]
pub(super) struct Freshness {
    newest: (Revision, UnixMillis),
    in_force: UnixMillis,
}

impl Freshness {
    /// Starts with what is in force, as fresh as `at`.
    pub(super) fn new(at: UnixMillis) -> Self {
        Self {
            newest: (Revision::default(), at),
            in_force: at,
        }
    }

    /// A heartbeat; `current` is the revision in force. Returns whether that one is fresher now.
    pub(super) fn vouched(&mut self, revision: Revision, at: UnixMillis, current: Option<Revision>) -> bool {
        self.newest = (revision, at);
        let covers = current.is_some_and(|current| current >= revision);
        if covers {
            self.in_force = at;
        }
        covers
    }

    /// How fresh a snapshot of `revision` is.
    pub(super) fn of(&self, revision: Revision) -> UnixMillis {
        let (vouched, at) = self.newest;
        if revision >= vouched { at } else { self.in_force }
    }

    /// A snapshot of `revision` comes into force; returns how fresh it is.
    pub(super) fn comes_into_force(&mut self, revision: Revision) -> UnixMillis {
        self.in_force = self.of(revision);
        self.in_force
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_snapshot_that_has_come_as_far_as_a_heartbeat_is_as_fresh_as_it() {
        let mut freshness = Freshness::new(UnixMillis(10));
        assert!(!freshness.vouched(Revision(5), UnixMillis(20), None));
        assert!(!freshness.vouched(Revision(5), UnixMillis(30), Some(Revision(4))));
        assert_eq!(freshness.of(Revision(4)), UnixMillis(10));
        assert_eq!(freshness.comes_into_force(Revision(4)), UnixMillis(10));
        assert_eq!(freshness.comes_into_force(Revision(5)), UnixMillis(30));
        assert!(freshness.vouched(Revision(5), UnixMillis(40), Some(Revision(5))));
        assert!(!freshness.vouched(Revision(7), UnixMillis(50), Some(Revision(5))));
        assert_eq!(freshness.of(Revision(6)), UnixMillis(40));
        assert_eq!(freshness.of(Revision(8)), UnixMillis(50));
    }
}
