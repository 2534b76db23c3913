//! What the intake takes and refuses, message by message, and that no order of messages leads it back or astray.

use proptest::prelude::*;
use tollway_proto::push::encode_resource;
use tollway_proto::push::v1::{Heartbeat, ResourceBytes};

use super::super::samples;
use super::*;

fn message(message: Message) -> ControlMessage {
    ControlMessage {
        message: Some(message),
    }
}

fn bytes(resource: &Resource) -> ResourceBytes {
    ResourceBytes {
        data: encode_resource(resource).into(),
    }
}

/// The messages of a full snapshot, one resource per chunk.
fn full(snapshot: &Snapshot, nonce: u64) -> Vec<ControlMessage> {
    let begin = Message::FullBegin(FullBegin {
        revision: snapshot.revision.0,
        nonce,
        resources: snapshot.len() as u64,
    });
    let chunks = snapshot.resources().map(|resource| {
        Message::FullChunk(FullChunk {
            nonce,
            resources: vec![bytes(resource)],
        })
    });
    let end = Message::FullEnd(FullEnd {
        nonce,
        hash: snapshot.hash().to_bytes().to_vec().into(),
    });
    std::iter::once(begin)
        .chain(chunks)
        .chain([end])
        .map(message)
        .collect()
}

/// The delta between two snapshots.
fn delta(from: &Snapshot, to: &Snapshot, nonce: u64) -> ControlMessage {
    let mut changes = Vec::new();
    for resource in to.resources() {
        if from.get(&resource.key()) != Some(resource) {
            changes.push(change(&resource.key(), Some(resource)));
        }
    }
    for resource in from.resources() {
        if to.get(&resource.key()).is_none() {
            changes.push(change(&resource.key(), None));
        }
    }
    message(Message::Delta(Delta {
        from_revision: from.revision.0,
        revision: to.revision.0,
        nonce,
        changes,
        hash: to.hash().to_bytes().to_vec().into(),
    }))
}

fn change(key: &ResourceKey, resource: Option<&Arc<Resource>>) -> Change {
    Change {
        kind: key.kind.as_str().into(),
        id: key.id.to_string(),
        data: resource.map(|resource| bytes(resource).data),
    }
}

fn feed_all(intake: &mut Intake, messages: Vec<ControlMessage>) -> Vec<Action> {
    messages
        .into_iter()
        .filter_map(|message| intake.feed(message))
        .collect()
}

/// An intake that runs on revision 1 with price 1.
fn intake() -> Intake {
    let mut intake = Intake::default();
    let actions = feed_all(&mut intake, full(&samples::snapshot(1, 1), 9));
    assert!(
        matches!(&actions[..], [Action::Install { ack, .. }] if (ack.revision, ack.nonce) == (1, 9)),
        "{actions:?}"
    );
    intake
}

fn refusal(action: Option<Action>) -> String {
    match action {
        Some(Action::Nack(nack)) => nack.reasons[0].text.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_edited_price_is_one_change_and_everything_else_is_shared() {
    let mut intake = intake();
    let before = intake.current().unwrap().clone();
    let message = delta(&before, &samples::snapshot(2, 2), 10);
    let Some(Message::Delta(sent)) = &message.message else {
        panic!()
    };
    assert_eq!(sent.changes.len(), 1);
    let Some(Action::Install { snapshot, ack }) = intake.feed(message) else {
        panic!("not installed")
    };
    assert_eq!((ack.revision, ack.nonce), (2, 10));
    assert_eq!(snapshot.hash(), samples::snapshot(2, 2).hash());
    let key = samples::resources(0)[0].key();
    assert!(Arc::ptr_eq(
        before.get(&key).unwrap(),
        snapshot.get(&key).unwrap()
    ));
}

#[test]
fn a_full_snapshot_that_is_short_wrong_or_inconsistent_is_refused_and_the_old_one_stays() {
    let mut intake = intake();
    let good = samples::snapshot(2, 2);
    let mut short = full(&good, 1);
    short.remove(2);
    let mut wrong = full(&good, 2);
    if let Some(Message::FullEnd(end)) = &mut wrong.last_mut().unwrap().message {
        end.hash = vec![0; 32].into();
    }
    let mut dangling = samples::resources(2);
    dangling.remove(0);
    let mut torn = full(&good, 4);
    if let Some(Message::FullChunk(chunk)) = &mut torn[1].message {
        chunk.resources[0].data = chunk.resources[0].data.slice(..20);
    }
    for (messages, reason) in [
        (short, "3 of 4 resources arrived"),
        (wrong, "the hash of the state does not match"),
        (full(&samples::of(2, dangling), 3), "provider `p` does not exist"),
        (torn, "the stored value is cut short"),
    ] {
        let actions = feed_all(&mut intake, messages);
        assert_eq!(actions.len(), 1, "{actions:?}");
        assert_eq!(refusal(actions.into_iter().next()), reason);
        assert_eq!(intake.current().unwrap().revision, Revision(1));
    }
    assert!(matches!(
        feed_all(&mut intake, full(&good, 5))[..],
        [Action::Install { .. }]
    ));
}

#[test]
fn a_delta_that_does_not_fit_is_refused_with_its_reason() {
    let good = delta(&samples::snapshot(1, 1), &samples::snapshot(2, 2), 7);
    let spoiled = |spoil: &dyn Fn(&mut Delta)| {
        let mut message = good.clone();
        let Some(Message::Delta(delta)) = &mut message.message else {
            panic!()
        };
        spoil(delta);
        refusal(intake().feed(message))
    };
    assert_eq!(
        spoiled(&|d| d.from_revision = 0),
        "it starts at revision 0, not at 1"
    );
    assert_eq!(spoiled(&|d| d.revision = 1), "it starts at revision 1, not at 1");
    assert_eq!(
        spoiled(&|d| d.changes[0].kind = "secret".into()),
        "the kind is unknown"
    );
    assert_eq!(
        spoiled(&|d| d.changes[0].id = "p2".into()),
        "the resource has another identity"
    );
    assert_eq!(
        spoiled(&|d| d.changes.clear()),
        "the hash of the state does not match"
    );
    let mut gone = samples::resources(1);
    gone.remove(0);
    let dangling = delta(&samples::snapshot(1, 1), &samples::of(2, gone), 8);
    assert_eq!(
        refusal(intake().feed(dangling)),
        "provider `p` does not exist",
        "what still refers to a removed resource is looked at too"
    );
    assert!(matches!(intake().feed(good), Some(Action::Install { .. })));
}

#[test]
fn a_delta_that_comes_twice_is_acknowledged_twice_and_applied_once() {
    let mut intake = intake();
    let message = delta(&samples::snapshot(1, 1), &samples::snapshot(2, 2), 7);
    assert!(matches!(
        intake.feed(message.clone()),
        Some(Action::Install { .. })
    ));
    assert!(matches!(intake.feed(message), Some(Action::Ack(ack)) if ack.revision == 2));
}

#[test]
fn more_of_a_kind_than_allowed_is_refused() {
    let caps = Caps {
        models: 2,
        ..Caps::default()
    };
    let mut intake = Intake::new(None, caps, None);
    let mut resources = samples::resources(1);
    resources.push(Resource::Model(samples::model("a/n")));
    assert!(matches!(
        feed_all(&mut intake, full(&samples::of(1, resources.clone()), 1))[..],
        [Action::Install { .. }]
    ));
    resources.push(Resource::Model(samples::model("a/o")));
    let next = delta(intake.current().unwrap(), &samples::of(2, resources.clone()), 2);
    assert_eq!(refusal(intake.feed(next)), "there are more than 2 of this kind");
    let mut fresh = Intake::new(None, caps, None);
    let actions = feed_all(&mut fresh, full(&samples::of(2, resources), 3));
    assert_eq!(
        refusal(actions.into_iter().next()),
        "there are more than 2 of this kind"
    );
    let small = Caps {
        full_bytes: 100,
        ..caps
    };
    let mut small = Intake::new(None, small, None);
    let actions = feed_all(&mut small, full(&samples::snapshot(1, 1), 4));
    assert_eq!(
        refusal(actions.into_iter().next()),
        "the snapshot is larger than 100 bytes"
    );
}

#[test]
fn a_quarantined_revision_is_refused_however_it_comes() {
    let mut intake = Intake::new(
        Some(Arc::new(samples::snapshot(1, 1))),
        Caps::default(),
        Some(Revision(2)),
    );
    let reason = "this revision was in use when the process died twice";
    let bad = samples::snapshot(2, 2);
    assert_eq!(
        refusal(intake.feed(delta(&samples::snapshot(1, 1), &bad, 1))),
        reason
    );
    assert_eq!(
        refusal(feed_all(&mut intake, full(&bad, 2)).into_iter().next()),
        reason
    );
    assert!(matches!(
        intake.feed(delta(&samples::snapshot(1, 1), &samples::snapshot(3, 3), 3)),
        Some(Action::Install { .. })
    ));
}

#[test]
fn stops_add_up_until_a_snapshot_covers_them() {
    let mut intake = intake();
    let stop = |revision, digest: u8, budget: &str| {
        message(Message::Stop(Stop {
            revision,
            key_digests: vec![vec![digest; 32].into(), vec![1; 3].into()],
            budgets: vec![budget.into()],
        }))
    };
    assert!(intake.feed(stop(1, 1, "a")).is_none(), "revision 1 is in use");
    assert!(intake.feed(stop(2, 2, "b")).is_some());
    let Some(Action::Stop(stops)) = intake.feed(stop(3, 3, "c")) else {
        panic!()
    };
    assert_eq!(stops.revision, Revision(3));
    assert_eq!((stops.keys.len(), stops.budgets.len()), (2, 2));
    intake.feed(delta(&samples::snapshot(1, 1), &samples::snapshot(2, 2), 7));
    let Some(Action::Stop(stops)) = intake.feed(stop(4, 4, "d")) else {
        panic!()
    };
    assert_eq!(stops.keys.len(), 3, "revision 2 covers nothing of revision 3");
    intake.feed(delta(&samples::snapshot(2, 2), &samples::snapshot(4, 4), 8));
    let Some(Action::Stop(stops)) = intake.feed(stop(5, 5, "e")) else {
        panic!()
    };
    assert_eq!(stops.keys.len(), 1);
}

#[test]
fn bytes_that_mean_nothing_are_refused_or_ignored() {
    let mut intake = intake();
    assert!(intake.feed(ControlMessage { message: None }).is_none());
    assert!(
        intake
            .feed(message(Message::Heartbeat(Heartbeat { revision: 99 })))
            .is_none()
    );
    assert!(
        intake
            .feed(message(Message::FullEnd(FullEnd {
                nonce: 77,
                hash: vec![].into()
            })))
            .is_none()
    );
    let huge = message(Message::FullBegin(FullBegin {
        revision: 5,
        nonce: 1,
        resources: u64::MAX,
    }));
    assert!(refusal(intake.feed(huge)).contains("are more than"));
}

proptest! {
    /// Messages of ten revisions, lost, doubled and shuffled: the revision never goes back, whatever is in force is exactly a
    /// state of the control plane, and one whole snapshot at the end always gets through.
    #[test]
    fn no_order_of_messages_leads_back_or_astray(
        picks in prop::collection::vec((0usize..300, any::<bool>()), 0..200),
    ) {
        let states: Vec<Snapshot> = (1..=10u64).map(|n| {
            let mut resources = samples::resources(n as i64);
            if n % 3 == 0 {
                resources.push(Resource::Model(samples::model(&format!("a/{n}"))));
            }
            samples::of(n, resources)
        }).collect();
        let mut messages = Vec::new();
        for (place, state) in states.iter().enumerate() {
            messages.extend(full(state, place as u64));
            for from in &states[..place] {
                messages.push(delta(from, state, 100 + place as u64));
            }
        }
        let mut intake = Intake::default();
        let mut newest = Revision(0);
        let mut check = |intake: &mut Intake, message: ControlMessage| {
            if let Some(Action::Install { snapshot, .. }) = intake.feed(message) {
                assert!(snapshot.revision >= newest, "{} after {newest}", snapshot.revision);
                newest = snapshot.revision;
                let truth = &states[newest.0 as usize - 1];
                assert_eq!(snapshot.hash(), truth.hash());
                assert_eq!(snapshot.len(), truth.len());
            }
        };
        for (pick, whole) in picks {
            if whole {
                for message in full(&states[pick % states.len()], 1000 + pick as u64) {
                    check(&mut intake, message);
                }
            } else {
                check(&mut intake, messages[pick % messages.len()].clone());
            }
        }
        for message in full(&states[9], 5000) {
            check(&mut intake, message);
        }
        prop_assert_eq!(intake.current().unwrap().hash(), states[9].hash());
    }
}
