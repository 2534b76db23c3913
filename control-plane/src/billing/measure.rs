//! A measurement, not a test: `cargo test -p tollway-control --release --lib measures_ -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tollway_shared::ids::{ApiKeyId, OrganizationId, RequestId};
use tollway_shared::time::UnixMillis;

use super::fold::{Batch, fold};
use super::sqlite::Writer;
use crate::ledger::rollup::Record;
use crate::ledger::sample;
use crate::ledger::source::RECORDS_MAX;

/// Events folded.
const EVENTS: u64 = 200_000;
/// What they are spread over.
const WRITERS: u64 = 16;
const ORGANIZATIONS: u64 = 50;
const KEYS: u64 = 500;
const USERS: u64 = 2_000;

/// Where the time of one event goes: the fold (JSON and sums), and the store.
#[test]
#[ignore = "a measurement"]
fn measures_folding_events_into_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let records: Vec<Record> = (0..EVENTS).map(record).collect();
    let bytes: usize = records.iter().map(|record| record.value.len()).sum();
    let (mut writer, _) = Writer::open(&dir.path().join("billing.sqlite"), "c").unwrap();
    let mut book = writer.book().unwrap();
    let (mut folded, mut written) = (Duration::ZERO, Duration::ZERO);
    let mut cells = 0;
    for batch in records.chunks(RECORDS_MAX) {
        let begun = Instant::now();
        let seen = |writer| book.marks.get(&(3, writer)).copied();
        let batch: Batch<'_> = fold(3, book.reached(3, 0), batch, UnixMillis(i64::MAX), seen);
        folded += begun.elapsed();
        cells += batch.cells.len();
        assert_eq!((batch.report.gaps, batch.report.mismatches), (0, 0));
        let begun = Instant::now();
        let batches = [batch];
        writer.write(&batches).unwrap();
        written += begun.elapsed();
        book.note(&batches[0]);
    }
    assert_eq!(book.offsets(), BTreeMap::from([(3, EVENTS.cast_signed())]));
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / EVENTS as f64;
    println!(
        "{} bytes an event, {} cells of {EVENTS} events; fold {:.1} µs, write {:.1} µs: {:.0} events/s on one core; the file has {} bytes an event",
        bytes as u64 / EVENTS,
        cells,
        micros(folded),
        micros(written),
        EVENTS as f64 / (folded + written).as_secs_f64(),
        std::fs::metadata(dir.path().join("billing.sqlite"))
            .unwrap()
            .len()
            / EVENTS,
    );
}

fn record(n: u64) -> Record {
    let mut event = sample::event(u128::from(n % WRITERS + 1), n / WRITERS + 1);
    event.partition = 3;
    event.id = format!("0198c0de-7a11-7c3e-9d2f-{n:012x}");
    event.request_id = RequestId::trusted(format!("gen-0198c0de7a117c3e9d2f{n:012x}"));
    event.tenant.organization = OrganizationId::trusted(format!("org-{}", n % ORGANIZATIONS));
    event.tenant.key = ApiKeyId::trusted(format!("key-{}", n % KEYS));
    event.user = Some(format!("user-{}", n % USERS));
    let offset = n.cast_signed();
    Record {
        partition: 3,
        offset,
        next: offset + 1,
        value: serde_json::to_vec(&event).unwrap(),
    }
}
