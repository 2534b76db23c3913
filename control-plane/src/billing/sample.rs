//! A store for tests.

use std::path::Path;

use tollway_proto::usage::UsageEvent;
use tollway_shared::time::UnixMillis;

use super::fold::{Reached, fold};
use super::sqlite::Writer;
use crate::ledger::rollup::Record;

/// Makes a store with these events.
pub(crate) fn store(path: &Path, events: &[UsageEvent]) {
    store_from(path, 0, events);
}

/// The same, of a log that begins at an offset.
pub(crate) fn store_from(path: &Path, first: i64, events: &[UsageEvent]) {
    let partition = events.first().map_or(0, |event| event.partition);
    let records: Vec<Record> = (first..)
        .zip(events)
        .map(|(offset, event)| Record {
            partition,
            offset,
            next: offset + 1,
            value: serde_json::to_vec(event).unwrap(),
        })
        .collect();
    let (mut writer, _) = Writer::open(path, "c-test").unwrap();
    let now = UnixMillis(i64::MAX);
    let begins = Reached {
        offset: first,
        ..Reached::default()
    };
    let batch = fold(partition, begins, &records, now, |_| None);
    assert_eq!(batch.report.malformed, 0, "{:?}", batch.report);
    writer.write(&[batch]).unwrap();
}
