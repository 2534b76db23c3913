//! Bytes that a released version wrote decode to today's types, and to the same values.
//!
//! `frozen/<shape>/<name>.hex` is what was written once, `.txt` what it must decode to. `UPDATE_COMPAT=1` adds what is missing and
//! never changes what is there: a shape that changed is a new version beside the old one, with samples of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod samples;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tollway_control::raft::{log_entry_bytes, log_entry_text};
use tollway_control::state::{State, apply, invariant};
use tollway_data::catalog::disk::Disk;
use tollway_proto::codec::{self, Kind};
use tollway_proto::command::{Command, Outcome, StoredEntry};
use tollway_proto::push::{decode_resource, encode_resource};
use tollway_proto::spool::SpoolRecord;
use tollway_proto::usage::UsageEvent;
use tollway_shared::seal::sha256;
use tollway_shared::snapshot::{Resource, Snapshot};

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat/frozen")
}

/// Hex in lines, so that a change shows.
fn hex_lines(bytes: &[u8]) -> String {
    bytes.chunks(48).map(|line| hex::encode(line) + "\n").collect()
}

/// Compares a sample that an earlier version wrote with what it was. `today`: its bytes if it were written now.
fn check(shape: &str, name: &str, today: &[u8], text: impl Fn(&[u8]) -> String) {
    let folder = frozen().join(shape);
    let (stored, expected) = (
        folder.join(format!("{name}.hex")),
        folder.join(format!("{name}.txt")),
    );
    if std::env::var_os("UPDATE_COMPAT").is_some() && !stored.exists() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&stored, hex_lines(today)).unwrap();
        fs::write(&expected, text(today) + "\n").unwrap();
    }
    let read = |path: &Path| {
        fs::read_to_string(path).unwrap_or_else(|fault| {
            panic!(
                "{}: {fault}; UPDATE_COMPAT=1 freezes a new shape's sample",
                path.display()
            )
        })
    };
    let bytes = hex::decode(read(&stored).replace('\n', "")).unwrap();
    let expected = read(&expected);
    let found = text(&bytes) + "\n";
    assert!(
        found == expected,
        "{shape}/{name} decodes to\n{found}\nand was\n{expected}"
    );
}

/// How many variants an enum has, as its decoder says when it is given one too many.
fn variants<T: DeserializeOwned + Debug>(kind: Kind) -> usize {
    let fault = codec::decode::<T>(kind, &codec::encode(kind, &u32::MAX))
        .unwrap_err()
        .to_string();
    let count = fault
        .rsplit_once("i < ")
        .and_then(|(_, count)| count.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok());
    count.unwrap_or_else(|| panic!("no number of variants in `{fault}`"))
}

/// Fails when a variant has no sample.
fn check_all_there<T: DeserializeOwned + Debug>(kind: Kind, names: &[&str]) {
    let different: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(
        different.len(),
        variants::<T>(kind),
        "every variant needs a sample; there are {different:?}"
    );
}

#[test]
fn every_command_of_an_old_log_is_read() {
    let commands = samples::commands();
    // All that a node says about leases is one command with several names.
    let variant = |command: &Command| match command {
        Command::Lease { .. } => "lease",
        other => other.name(),
    };
    let names: Vec<&str> = commands.iter().map(variant).collect();
    check_all_there::<Command>(Kind::LogEntry, &names);
    let text = |bytes: &[u8]| log_entry_text(bytes).unwrap();
    check("log", "blank", &log_entry_bytes(3, 2, 40, None), text);
    for (index, command) in (41..).zip(commands) {
        let name = command.name();
        let entry = StoredEntry::V1(samples::entry(command));
        check("log", name, &log_entry_bytes(3, 2, index, Some(entry)), text);
    }
}

#[test]
fn an_old_checkpoint_is_read_and_is_what_its_log_gives_today() {
    let mut state = State::default();
    let mut done = 0;
    for (index, command) in (1..).zip(samples::commands()) {
        let applied = apply(&mut state, index, &samples::entry(command));
        done += usize::from(matches!(applied.outcome, Outcome::Done(_)));
    }
    assert!(done >= 17, "only {done} sample commands can be applied");
    assert_eq!(invariant::dangling(&state), None);
    check("checkpoint", "state", &state.encode(), |bytes| {
        let decoded = State::decode(bytes).unwrap();
        // Replicas of two versions must come to the same state: applying the same log gives the frozen bytes.
        assert_eq!(
            decoded, state,
            "today's apply gives another state for the sample log"
        );
        format!("{decoded:#?}")
    });
}

#[test]
fn every_resource_of_an_old_push_is_read() {
    let resources = samples::resources();
    let keys: Vec<_> = resources.iter().map(Resource::key).collect();
    let names: Vec<&str> = keys.iter().map(|key| key.kind.as_str()).collect();
    check_all_there::<Resource>(Kind::Resource, &names);
    for (name, resource) in names.into_iter().zip(resources) {
        check("resource", name, &encode_resource(&resource), |bytes| {
            let (decoded, digest) = decode_resource(bytes).unwrap();
            // Both planes hash the stored bytes: two versions must write the same.
            assert_eq!(
                sha256(&encode_resource(&decoded)),
                digest,
                "today's bytes differ from the frozen ones"
            );
            format!("{decoded:#?}")
        });
    }
}

#[test]
fn every_record_of_an_old_spool_is_read() {
    let records = samples::spool();
    let names: Vec<&str> = records.iter().map(|(name, _)| *name).collect();
    check_all_there::<SpoolRecord>(Kind::Spool, &names);
    for (name, record) in records {
        check("spool", name, &codec::encode(Kind::Spool, &record), |bytes| {
            format!("{:#?}", codec::decode::<SpoolRecord>(Kind::Spool, bytes).unwrap())
        });
    }
}

/// The path of the sample snapshot's only file.
fn written(folder: &Path) -> (Disk, PathBuf) {
    let disk = Disk::open(folder, samples::cluster()).unwrap();
    let mut snapshot = Snapshot::at(samples::REVISION);
    // Notices and endpoints refer to these.
    for resource in samples::resources() {
        let digest = sha256(&encode_resource(&resource));
        snapshot.put(resource, digest);
    }
    disk.write(&snapshot, samples::HEARD_AT).unwrap();
    let files = fs::read_dir(disk.folder())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let path = files
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    (disk, path)
}

#[test]
fn an_old_snapshot_on_a_nodes_disk_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, path) = written(folder.path());
    check("snapshot", "file", &fs::read(&path).unwrap(), |bytes| {
        fs::write(&path, bytes).unwrap();
        let loaded = disk.newest(None).expect("the frozen snapshot loads");
        let resources: Vec<_> = loaded.snapshot.resources().collect();
        let (revision, hash, at) = (loaded.snapshot.revision, loaded.snapshot.hash(), loaded.at);
        format!(
            "revision {revision}, hash {hash:?}, heard of at {}\n{resources:#?}",
            at.rfc3339()
        )
    });
}

#[test]
fn an_old_usage_event_is_read_and_unknown_fields_are_ignored() {
    check("usage", "event", samples::EVENT.as_bytes(), |bytes| {
        let event: UsageEvent = serde_json::from_slice(bytes).unwrap();
        let mut newer: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        newer["of_a_later_version"] = 1.into();
        assert_eq!(serde_json::from_value::<UsageEvent>(newer).unwrap(), event);
        format!("{event:#?}")
    });
}
