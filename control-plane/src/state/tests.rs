//! What holds for every command.

use tollway_proto::command::{Command, Entry, Idempotency, Outcome, RefusalCode};
use tollway_shared::ids::{
    ApiKeyId, CredentialId, EndpointId, ModelId, PriceId, ProjectId, ProviderId, Revision,
};
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::{DAY_MS, UnixMillis};

use super::samples::{self, NOON};
use super::{State, apply, invariant, view};

fn refused(outcome: Outcome) -> (RefusalCode, String) {
    match outcome {
        Outcome::Refused(refusal) => (refusal.code, refusal.field.unwrap_or_default()),
        Outcome::Done(receipt) => panic!("not refused: {receipt:?}"),
    }
}

#[test]
fn the_same_entries_give_the_same_bytes() {
    let (one, two) = (samples::catalog(), samples::catalog());
    assert_eq!(one.encode(), two.encode());
    assert_eq!(State::decode(&one.encode()).unwrap(), one);
    assert_eq!(invariant::dangling(&one), None);
}

#[test]
fn a_checkpoint_is_read_as_it_was_written() {
    // A replica that starts from one has to be like those that applied the log: what is put right only here, an entry finds elsewhere.
    let mut state = samples::catalog();
    let kept = state.credentials.values().next().unwrap().clone();
    state.credentials.insert(CredentialId::trusted("main"), kept);
    assert_eq!(State::decode(&state.encode()).unwrap(), state);
}

#[test]
fn a_refused_command_changes_nothing_but_the_index() {
    let state = samples::catalog();
    let bad = [
        (
            Command::RemoveProvider(ProviderId::trusted("p")),
            RefusalCode::Conflict,
            "",
        ),
        (
            Command::RemoveModel(ModelId::trusted("a/m")),
            RefusalCode::Conflict,
            "",
        ),
        (
            Command::RemoveModel(ModelId::trusted("x/y")),
            RefusalCode::NotFound,
            "",
        ),
        (
            Command::RemoveProject(ProjectId::trusted("j")),
            RefusalCode::Conflict,
            "",
        ),
        (
            Command::PutProvider(samples::provider("ftp://x")),
            RefusalCode::Invalid,
            "base_url",
        ),
        (
            Command::AddPrice(samples::price("p1", 1, NOON)),
            RefusalCode::Conflict,
            "id",
        ),
        (
            Command::AddPrice(samples::price("p2", 1, UnixMillis(5))),
            RefusalCode::Invalid,
            "effective_from",
        ),
        (
            Command::AddPrice(samples::price("p2", 10_001, NOON)),
            RefusalCode::Invalid,
            "prices.input",
        ),
        (
            Command::AddPrice(samples::price("p2", -1, NOON)),
            RefusalCode::Invalid,
            "prices.input",
        ),
        (
            Command::RemovePrice(PriceId::trusted("p1")),
            RefusalCode::Conflict,
            "",
        ),
        (
            Command::CreateKey(samples::api_key("k", 2)),
            RefusalCode::Conflict,
            "id",
        ),
        (
            Command::RevokeKey(ApiKeyId::trusted("nope")),
            RefusalCode::NotFound,
            "",
        ),
        (
            Command::PutBudget(samples::budget(0)),
            RefusalCode::Invalid,
            "limit",
        ),
        (Command::SetClusterVersion(0), RefusalCode::Invalid, "version"),
        (
            Command::Join {
                token: [0; 32],
                node: None,
            },
            RefusalCode::Forbidden,
            "token",
        ),
    ];
    for (command, code, field) in bad {
        let mut after = state.clone();
        let name = command.name();
        assert_eq!(
            refused(samples::run(&mut after, command)),
            (code, field.to_owned()),
            "{name}"
        );
        after.applied = state.applied;
        assert_eq!(after, state, "{name}");
    }
}

#[test]
fn an_edited_price_is_one_changed_resource() {
    let mut state = samples::catalog();
    let command = Command::AddPrice(samples::price("p2", 9, UnixMillis(0)));
    let entry = Entry {
        at: NOON,
        actor: "root".into(),
        idempotency: None,
        if_revision: None,
        command,
    };
    let index = state.applied + 1;
    let applied = apply(&mut state, index, &entry);
    assert_eq!(applied.changed.len(), 1);
    assert_eq!(state.revision, Revision(index));
    let price = state.prices.get(&PriceId::trusted("p2")).unwrap();
    assert_eq!(price.value.effective_from, NOON, "at once, by the leader's stamp");
}

#[test]
fn the_view_of_the_whole_state_is_consistent_and_equals_its_parts() {
    let mut state = samples::catalog();
    samples::run(&mut state, Command::PutBudget(samples::budget(5)));
    let mut whole = Snapshot::default();
    for resource in view::all(&state) {
        assert_eq!(view::resource(&state, &resource.key()).as_ref(), Some(&resource));
        let digest = tollway_shared::seal::sha256(&tollway_proto::push::encode_resource(&resource));
        whole.put(resource, digest);
    }
    assert_eq!(whole.check(None), vec![]);
    assert_eq!(whole.len(), 9);
    assert!(
        whole
            .prices_at(&EndpointId::trusted("p/a/m"), UnixMillis(1))
            .is_some()
    );
}

#[test]
fn a_retry_applies_once_and_another_request_with_its_key_is_refused() {
    let mut state = samples::catalog();
    let idempotency = |request| {
        Some(Idempotency {
            key: "i-1".into(),
            request: [request; 32],
            answer: None,
        })
    };
    let entry = |at, request, id: &str| Entry {
        at,
        actor: "root".into(),
        idempotency: idempotency(request),
        if_revision: None,
        command: Command::CreateKey(samples::api_key(id, 7)),
    };
    let index = state.applied + 1;
    let first = apply(&mut state, index, &entry(NOON, 1, "k1")).outcome;
    let again = apply(&mut state, index + 1, &entry(NOON, 1, "k2")).outcome;
    let (Outcome::Done(first), Outcome::Done(again)) = (first, again) else {
        panic!("refused")
    };
    assert_eq!(again.revision, first.revision);
    assert!(again.replayed.is_some() && first.replayed.is_none());
    assert!(!state.keys.contains_key(&ApiKeyId::trusted("k2")));
    let other = apply(&mut state, index + 2, &entry(NOON, 2, "k3")).outcome;
    assert_eq!(refused(other).0, RefusalCode::IdempotencyReused);
    let later = apply(&mut state, index + 3, &entry(NOON.plus_ms(DAY_MS + 1), 2, "k3")).outcome;
    assert!(
        matches!(later, Outcome::Done(_)),
        "a day later the key is free again"
    );
}

#[test]
fn if_revision_protects_against_a_write_in_between() {
    let mut state = samples::catalog();
    let seen = state.providers.get(&ProviderId::trusted("p")).unwrap().revision;
    let mut put = |if_revision| {
        let command = Command::PutProvider(samples::provider("https://other.example.com/v1"));
        let entry = Entry {
            at: NOON,
            actor: "root".into(),
            idempotency: None,
            if_revision,
            command,
        };
        let index = state.applied + 1;
        apply(&mut state, index, &entry).outcome
    };
    assert!(matches!(put(Some(seen)), Outcome::Done(_)));
    assert_eq!(
        refused(put(Some(seen))),
        (RefusalCode::Precondition, "if_revision".to_owned())
    );
}

#[test]
fn a_rotated_key_ends_and_its_successor_inherits() {
    let mut state = samples::catalog();
    let end = NOON.plus_ms(1000);
    let command = Command::RotateKey {
        old: ApiKeyId::trusted("k"),
        old_expires_at: end,
        new: samples::api_key("k2", 2),
    };
    assert!(matches!(samples::run(&mut state, command), Outcome::Done(_)));
    assert_eq!(
        state.keys.get(&ApiKeyId::trusted("k")).unwrap().value.expires_at,
        Some(end)
    );
    let new = &state.keys.get(&ApiKeyId::trusted("k2")).unwrap().value;
    assert_eq!(new.rotated_from, Some(ApiKeyId::trusted("k")));
    assert_eq!(new.expires_at, None);
}

#[test]
fn a_key_is_replaced_once_and_the_refusal_names_its_successor() {
    let mut state = samples::catalog();
    let rotate = |old: &str, new: &str, digest| Command::RotateKey {
        old: ApiKeyId::trusted(old),
        old_expires_at: NOON.plus_ms(1000),
        new: samples::api_key(new, digest),
    };
    assert!(matches!(
        samples::run(&mut state, rotate("k", "k2", 2)),
        Outcome::Done(_)
    ));
    let Outcome::Refused(refusal) = samples::run(&mut state, rotate("k", "k3", 3)) else {
        panic!("a second successor")
    };
    assert_eq!(refusal.code, RefusalCode::Conflict);
    assert!(refusal.detail.contains("`k2`"), "{}", refusal.detail);
    assert!(state.keys.get(&ApiKeyId::trusted("k3")).is_none());
    assert!(matches!(
        samples::run(&mut state, rotate("k2", "k3", 3)),
        Outcome::Done(_)
    ));
}
