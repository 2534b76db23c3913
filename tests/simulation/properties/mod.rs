//! What must hold, one file per promise. The run tells them what happens; the first that does not hold ends it.

mod acknowledged_kept;
mod applied_once;
mod nodes_equal;
mod reads_are_fresh;
mod replicas_equal;
mod revision_forward;
mod spend_once;

use std::sync::Mutex;

use tollway_control::state::{Applied, State};
use tollway_proto::command::{Entry, Outcome};
use tollway_shared::snapshot::{ResourceKey, Snapshot};

use crate::world::World;

pub(crate) use self::reads_are_fresh::Floor;

/// Whole states are compared at every index that this divides; entries and outcomes at every index.
const WHOLE_EVERY: u64 = 64;

/// Every property with what it has seen so far.
#[derive(Default)]
pub(crate) struct Properties(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    acknowledged_kept: acknowledged_kept::Property,
    applied_once: applied_once::Property,
    nodes_equal: nodes_equal::Property,
    reads_are_fresh: reads_are_fresh::Property,
    replicas_equal: replicas_equal::Property,
    revision_forward: revision_forward::Property,
}

type Verdict = Result<(), String>;

fn check(world: &World, property: &'static str, verdict: Verdict) {
    if let Err(text) = verdict {
        world.broken(property, text);
    }
}

impl Properties {
    /// A replica has applied an entry.
    pub(crate) fn applied(
        &self,
        world: &World,
        replica: u64,
        index: u64,
        entry: &Entry,
        applied: &Applied,
        state: &State,
    ) {
        let mut all = self.0.lock().unwrap();
        let Inner {
            applied_once,
            nodes_equal,
            replicas_equal,
            ..
        } = &mut *all;
        let whole = index.is_multiple_of(WHOLE_EVERY);
        let new = replicas_equal.entry(replica, index, entry, applied);
        if new == Ok(true) {
            world.trace.note(&format!("{index} is {}", entry.command.name()));
        }
        check(world, "replicas_equal", new.map(|_| ()));
        check(
            world,
            "applied_once",
            applied_once.applied(index, entry, &applied.outcome),
        );
        check(
            world,
            "nodes_equal",
            nodes_equal.applied(index, applied, state, whole),
        );
        if whole {
            check(
                world,
                "replicas_equal",
                replicas_equal.whole(replica, index, state),
            );
            check(world, "spend_once", spend_once::holds(world, state));
        }
    }

    /// A client got an answer to its write.
    pub(crate) fn answer(&self, world: &World, key: &str, register: Option<&ResourceKey>, outcome: &Outcome) {
        let mut all = self.0.lock().unwrap();
        check(
            world,
            "acknowledged_kept",
            all.acknowledged_kept.answered(key, register, outcome),
        );
        if let (Some(register), Outcome::Done(receipt)) = (register, outcome) {
            all.reads_are_fresh.wrote(register, receipt.revision);
        }
    }

    /// A client was told that its write is done before anybody knew; only a planted bug does that.
    pub(crate) fn answered_early(&self, key: &str) {
        self.0.lock().unwrap().acknowledged_kept.early(key);
    }

    /// A client was told that its write did not happen, and never repeats it.
    pub(crate) fn never_written(&self, key: &str) {
        self.0.lock().unwrap().acknowledged_kept.never(key);
    }

    /// A linearizable read begins.
    pub(crate) fn read_begins(&self) -> Floor {
        self.0.lock().unwrap().reads_are_fresh.begins()
    }

    /// A linearizable read that passed its barrier sees `state`.
    pub(crate) fn read_ends(&self, world: &World, replica: u64, floor: &Floor, state: &State) {
        let mut all = self.0.lock().unwrap();
        check(
            world,
            "reads_are_fresh",
            all.reads_are_fresh.ends(replica, floor, state),
        );
    }

    /// A node routes on `snapshot` from now on.
    pub(crate) fn in_force(&self, world: &World, node: usize, snapshot: &Snapshot) {
        let mut all = self.0.lock().unwrap();
        check(
            world,
            "revision_forward",
            all.revision_forward.in_force(node, snapshot.revision),
        );
        check(world, "nodes_equal", all.nodes_equal.in_force(node, snapshot));
    }

    /// Everything is whole again: the last look.
    pub(crate) fn at_the_end(&self, world: &World) {
        let mut all = self.0.lock().unwrap();
        for id in world.replicas.ids() {
            let Some((_, cluster)) = world.replicas.running(id) else {
                continue;
            };
            let state = cluster.state();
            check(
                world,
                "replicas_equal",
                all.replicas_equal.whole(id, state.applied, &state),
            );
            check(
                world,
                "spend_once",
                spend_once::holds(world, &state).and_then(|()| spend_once::all_counted(world, &state)),
            );
            check(
                world,
                "acknowledged_kept",
                all.acknowledged_kept.at_the_end(&all.applied_once, id, &state),
            );
            for (node, live) in world.nodes.live().into_iter().enumerate() {
                check(
                    world,
                    "nodes_equal",
                    nodes_equal::same(node, live.as_deref(), &state),
                );
            }
        }
    }

    /// Entries that were applied.
    pub(crate) fn entries(&self) -> usize {
        self.0.lock().unwrap().replicas_equal.entries()
    }

    /// Writes that were answered.
    pub(crate) fn answered(&self) -> usize {
        self.0.lock().unwrap().acknowledged_kept.count()
    }
}
