//! What a node is sent, question by question, and that whatever gets lost, doubled or refused, it ends where the control plane is.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tollway_proto::command::{Command, Entry};
use tollway_proto::push::decode_resource;
use tollway_proto::push::v1::Change;
use tollway_shared::ids::Region;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::{ResourceKind, Snapshot};

use super::super::build::Builder;
use super::*;
use crate::state::samples::{self, NOON};
use crate::state::{State, apply};

/// A control plane of one state, with the history that raft keeps.
struct Control {
    state: State,
    builder: Builder,
    changed: BTreeMap<Revision, Vec<ResourceKey>>,
}

impl Control {
    fn new() -> Self {
        let state = samples::catalog();
        Self {
            builder: Builder::new(Key::new([3; 32]), Arc::new(state.clone())),
            changed: BTreeMap::from([(state.revision, Vec::new())]),
            state,
        }
    }

    fn run(&mut self, command: Command) {
        let index = self.state.applied + 1;
        let entry = Entry {
            at: NOON,
            actor: "root".into(),
            idempotency: None,
            if_revision: None,
            command,
        };
        let changed = apply(&mut self.state, index, &entry).changed;
        self.builder.update(
            Arc::new(self.state.clone()),
            Some(&changed.iter().cloned().collect()),
        );
        self.changed.insert(self.state.revision, changed);
    }

    fn price(&mut self, n: i64) {
        let id = format!("p{}", self.state.applied);
        self.run(Command::AddPrice(samples::price(&id, n, NOON.plus_ms(n))));
    }

    fn view(&mut self) -> RegionView {
        self.builder.region(&Region::trusted("eu"))
    }

    fn changes(&self, after: Revision) -> Changes {
        self.changed.contains_key(&after).then(|| {
            let since = self.changed.range(after..).skip(1);
            (
                self.state.revision,
                since.flat_map(|(_, keys)| keys.clone()).collect(),
            )
        })
    }

    fn turn(&mut self, core: &mut SessionCore) -> Vec<Send> {
        let view = self.view();
        core.turn(&view, |revision| self.changes(revision))
    }
}

fn hello(revision: Revision, hash: Option<StateHash>) -> Hello {
    Hello {
        have_revision: revision.0,
        have_hash: hash
            .map(|hash| hash.to_bytes().to_vec().into())
            .unwrap_or_default(),
        ..Hello::default()
    }
}

fn ack(view: &RegionView, nonce: u64) -> Ack {
    Ack {
        revision: view.revision.0,
        nonce,
        hash: view.hash().to_bytes().to_vec().into(),
    }
}

fn nack(kept: u64, nonce: u64) -> Nack {
    Nack {
        kept_revision: kept,
        nonce,
        ..Nack::default()
    }
}

/// A session whose node runs on what the control plane has.
fn in_step(control: &mut Control) -> SessionCore {
    let view = control.view();
    let mut core = SessionCore::new(&hello(view.revision, Some(view.hash())));
    assert_eq!(control.turn(&mut core), []);
    core
}

#[test]
fn a_new_node_gets_everything_and_a_known_one_nothing() {
    let mut control = Control::new();
    let mut core = SessionCore::new(&hello(Revision(0), None));
    assert_eq!(control.turn(&mut core), [Send::Full(1)]);
    assert_eq!(control.turn(&mut core), [], "one question at a time");
    assert!(core.acked(&ack(&control.view(), 1)));
    assert_eq!(control.turn(&mut core), []);
    in_step(&mut control);
}

#[test]
fn an_added_price_is_one_change_and_what_comes_meanwhile_travels_together() {
    let mut control = Control::new();
    let mut core = in_step(&mut control);
    control.price(1);
    let first = control.view();
    let sent = control.turn(&mut core);
    let [Send::Delta(delta)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(delta.changes.len(), 1);
    assert_eq!(delta.changes[0].kind, ResourceKind::Price.as_str());
    for n in 2..5 {
        control.price(n);
        assert_eq!(control.turn(&mut core), []);
    }
    assert!(core.acked(&ack(&first, delta.nonce)));
    let sent = control.turn(&mut core);
    let [Send::Delta(delta)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!((delta.from_revision, delta.changes.len()), (first.revision.0, 3));
}

#[test]
fn a_revoked_key_stops_even_while_an_answer_is_awaited() {
    let mut control = Control::new();
    let mut core = in_step(&mut control);
    control.price(1);
    assert!(matches!(control.turn(&mut core)[..], [Send::Delta(_)]));
    control.run(Command::RevokeKey(samples::api_key("k", 1).id));
    let sent = control.turn(&mut core);
    let [Send::Stop(stop)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(stop.revision, control.state.revision.0);
    assert_eq!(stop.key_digests, [vec![1; 32]]);
    assert_eq!(control.turn(&mut core), [], "once");
}

#[test]
fn a_spent_budget_stops_and_comes_before_its_delta() {
    let mut control = Control::new();
    control.run(Command::PutBudget(samples::budget(5)));
    let mut core = in_step(&mut control);
    control.run(Command::RecordSpend(samples::spend(0, 1, 5)));
    let sent = control.turn(&mut core);
    let [Send::Stop(stop), Send::Delta(_)] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert_eq!(stop.budgets, ["b"]);
}

#[test]
fn a_refused_delta_is_followed_by_everything_and_a_refused_everything_by_nothing_until_something_changes() {
    let mut control = Control::new();
    let mut core = in_step(&mut control);
    let kept = core.revision().0;
    control.price(1);
    assert!(matches!(control.turn(&mut core)[..], [Send::Delta(_)]));
    assert!(!core.refused(&nack(kept, 99)), "an answer to nothing asked");
    assert!(core.refused(&nack(kept, 1)));
    assert_eq!(control.turn(&mut core), [Send::Full(2)]);
    assert!(core.refused(&nack(kept, 2)));
    for _ in 0..3 {
        assert_eq!(control.turn(&mut core), []);
    }
    control.price(2);
    assert_eq!(control.turn(&mut core), [Send::Full(3)]);
    assert!(core.acked(&ack(&control.view(), 3)));
    control.price(3);
    assert!(matches!(control.turn(&mut core)[..], [Send::Delta(_)]));
}

#[test]
fn a_node_with_another_state_of_the_same_revision_gets_everything() {
    let mut control = Control::new();
    let revision = control.view().revision;
    let mut core = SessionCore::new(&hello(revision, Some(StateHash::default())));
    assert_eq!(control.turn(&mut core), [Send::Full(1)]);
}

#[test]
fn a_node_that_was_away_too_long_gets_everything_and_a_replica_that_is_behind_waits() {
    let mut control = Control::new();
    let view = control.view();
    let mut core = in_step(&mut control);
    control.price(1);
    control.changed.remove(&view.revision);
    assert_eq!(control.turn(&mut core), [Send::Full(1)]);
    let mut ahead = SessionCore::new(&hello(Revision(control.state.revision.0 + 5), Some(view.hash())));
    assert_eq!(control.turn(&mut ahead), []);
}

/// What a node does, without the rest of a node: the other crate tests that.
#[derive(Default)]
struct Node {
    snapshot: Snapshot,
    /// Refuses the next question.
    balks: bool,
}

impl Node {
    fn answer(&mut self, send: &Send, view: &RegionView) -> Option<Result<Ack, Nack>> {
        let (nonce, next) = match send {
            Send::Stop(_) => return None,
            Send::Full(nonce) => (*nonce, whole(view)),
            Send::Delta(delta) => {
                let mut next = self.snapshot.clone();
                next.revision = Revision(delta.revision);
                for change in &delta.changes {
                    edit(&mut next, change);
                }
                let fits = delta.from_revision == self.snapshot.revision.0
                    && next.hash().to_bytes()[..] == delta.hash[..];
                if !fits {
                    return Some(Err(nack(self.snapshot.revision.0, delta.nonce)));
                }
                (delta.nonce, next)
            }
        };
        if std::mem::take(&mut self.balks) {
            return Some(Err(nack(self.snapshot.revision.0, nonce)));
        }
        assert!(next.revision >= self.snapshot.revision, "the revision went back");
        self.snapshot = next;
        Some(Ok(Ack {
            revision: self.snapshot.revision.0,
            nonce,
            hash: self.snapshot.hash().to_bytes().to_vec().into(),
        }))
    }

    fn hello(&self) -> Hello {
        hello(self.snapshot.revision, Some(self.snapshot.hash()))
    }
}

fn whole(view: &RegionView) -> Snapshot {
    let mut snapshot = Snapshot::at(view.revision);
    let mut after = None;
    while let Some((chunk, last)) = view.chunk(1, after.as_ref()) {
        for stored in chunk.resources {
            let (resource, digest) = decode_resource(&stored.data).unwrap();
            snapshot.put(resource, digest);
        }
        after = Some(last);
    }
    snapshot
}

fn edit(snapshot: &mut Snapshot, change: &Change) {
    match &change.data {
        Some(data) => {
            let (resource, digest) = decode_resource(data).unwrap();
            snapshot.put(resource, digest);
        }
        None => snapshot.remove(&ResourceKey {
            kind: ResourceKind::parse(&change.kind).unwrap(),
            id: change.id.as_str().into(),
        }),
    }
}

proptest! {
    /// Changes, lost and doubled answers, refusals, cut streams and forgotten history in any order: once they end, a few turns
    /// bring the node to the control plane's state.
    #[test]
    fn a_node_always_ends_where_the_control_plane_is(steps in prop::collection::vec(0u8..8, 1..60)) {
        let control = RefCell::new(Control::new());
        let mut node = Node::default();
        let mut core = SessionCore::new(&node.hello());
        let mut old_answers: Vec<Result<Ack, Nack>> = Vec::new();
        let hear = |core: &mut SessionCore, answer: &Result<Ack, Nack>| match answer {
            Ok(ack) => core.acked(ack),
            Err(nack) => core.refused(nack),
        };
        let turn = |core: &mut SessionCore, node: &mut Node, deliver: bool, old: &mut Vec<_>| {
            let mut control = control.borrow_mut();
            let view = control.view();
            for send in control.turn(core) {
                if deliver && let Some(answer) = node.answer(&send, &view) {
                    hear(core, &answer);
                    old.push(answer);
                }
            }
        };
        for step in steps {
            match step {
                0 | 1 => control.borrow_mut().price(i64::from(step) + 1),
                2 => {
                    let mut control = control.borrow_mut();
                    let id = format!("k{}", control.state.applied);
                    control.run(Command::CreateKey(samples::api_key(&id, 7)));
                    control.run(Command::RevokeKey(samples::api_key(&id, 7).id));
                }
                3 => turn(&mut core, &mut node, true, &mut old_answers),
                4 => { // the question is lost with its stream
                    turn(&mut core, &mut node, false, &mut old_answers);
                    core = SessionCore::new(&node.hello());
                }
                5 => node.balks = true,
                6 => for answer in &old_answers { hear(&mut core, answer); },
                _ => {
                    let mut control = control.borrow_mut();
                    let newest = control.state.revision;
                    control.changed.retain(|revision, _| *revision == newest);
                }
            }
        }
        node.balks = false;
        control.borrow_mut().price(9); // a refused revision is not sent again, the next one is
        core = SessionCore::new(&node.hello());
        for _ in 0..3 {
            turn(&mut core, &mut node, true, &mut old_answers);
        }
        let view = control.borrow_mut().view();
        prop_assert_eq!(node.snapshot.revision, view.revision);
        prop_assert_eq!(node.snapshot.hash(), view.hash());
    }
}
