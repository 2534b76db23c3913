//! Each event is in the store once, whatever comes twice, whenever the process dies, and however often the store is made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::types::Value;
use tokio_util::sync::CancellationToken;
use tollway_proto::usage::{EndState, UsageEvent, log_file_name};
use tollway_proto::usage_log::{LogMark, LogSegment, MARK_FILE};
use tollway_shared::cost;
use tollway_shared::ids::OrganizationId;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::fold::fold;
use super::progress::Book;
use super::sqlite::{Writer, reader};
use super::tail::Tail;
use super::{Billing, Place, StoreFault};
use crate::ledger::file::{FileSource, Retention};
use crate::ledger::rollup::Record;
use crate::ledger::sample;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Wall time of these tests: long after the example event.
const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

/// The event of a writer that its sequence alone decides: as a resend writes it again.
fn event(writer: u128, sequence: u64) -> UsageEvent {
    let mut event = sample::event(writer, sequence);
    event.id = format!("event-{writer}-{sequence}");
    event.tenant.organization = OrganizationId::trusted(format!("org-{}", sequence % 3));
    event.tenant.team = event.tenant.team.filter(|_| !sequence.is_multiple_of(4));
    event.tokens.input = sequence * 1000 + u64::try_from(writer).unwrap();
    (event.byok, event.free) = (sequence.is_multiple_of(7), sequence.is_multiple_of(11));
    event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
    event.started_at.0 = event.started_at.0.plus_ms(sequence.cast_signed() * 600_000);
    event.first_byte_at = None;
    event.finished_at.0 = event.started_at.0.plus_ms(100 * sequence.cast_signed());
    event.end = if sequence.is_multiple_of(5) {
        EndState::Cancelled
    } else {
        EndState::Completed
    };
    event
}

fn record(offset: usize, event: &UsageEvent) -> Record {
    let offset = i64::try_from(offset).unwrap();
    Record {
        partition: 3,
        offset,
        next: offset + 1,
        value: serde_json::to_vec(event).unwrap(),
    }
}

/// Folds and writes as the tail does.
fn put(writer: &mut Writer, book: &mut Book, records: &[Record]) {
    let seen = |writer| book.marks.get(&(3, writer)).copied();
    let batches = [fold(3, book.reached(3, 0), records, NOW, seen)];
    if batches[0].to > batches[0].from {
        writer.write(&batches).unwrap();
        book.note(&batches[0]);
    }
}

/// Every row of usage, and every generation with its series, without the numbers that depend on the order of transactions.
fn rows(path: &Path) -> (Vec<Vec<Value>>, Vec<Vec<Value>>) {
    let connection = reader(path).unwrap();
    let all = |text: &str| {
        let mut statement = connection.prepare(text).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|n| row.get(n)).collect());
        rows.unwrap().collect::<Result<Vec<Vec<Value>>, _>>().unwrap()
    };
    let order = "hour, organization, team, project, key, user_label, model, endpoint, provider, region, price_version, byok";
    let hours = all(&format!("SELECT * FROM usage_by_hour ORDER BY {order}"));
    let generations = all(
        "SELECT g.log_offset, g.request_id, g.event_id, g.started_at, g.first_byte_at, g.finished_at, g.end_state, g.charge, g.billed, \
         g.tokens_input, g.cache_savings, g.attempts, s.organization, s.team, s.key, s.prices \
         FROM generation g JOIN series s ON s.id = g.series ORDER BY g.log_partition, g.log_offset",
    );
    (hours, generations)
}

/// What the distinct events of a log add up to, by organization: requests, cancelled, list price, owed.
fn naive(log: &[UsageEvent]) -> BTreeMap<String, (i64, i64, i64, i64)> {
    let mut seen = BTreeSet::new();
    let mut sums: BTreeMap<String, (i64, i64, i64, i64)> = BTreeMap::new();
    for event in log {
        if seen.insert((event.writer, event.sequence)) {
            let sum = sums.entry(event.tenant.organization.to_string()).or_default();
            sum.0 += 1;
            sum.1 += i64::from(event.end == EndState::Cancelled);
            sum.2 += event.charge.total.0;
            sum.3 += event.billed.0;
        }
    }
    sums
}

fn stored(path: &Path, table: &str) -> BTreeMap<String, (i64, i64, i64, i64)> {
    let connection = reader(path).unwrap();
    let text = match table {
        "rollup" => {
            "SELECT organization, sum(requests), sum(cancelled), sum(charge), sum(billed) FROM usage_by_hour GROUP BY 1"
        }
        _ => {
            "SELECT organization, count(*), sum(end_state = 'cancelled'), sum(charge), sum(billed) FROM generation GROUP BY 1"
        }
    };
    let mut statement = connection.prepare(text).unwrap();
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A log as writers make it: per writer in order, but any tail of one may come again any time. It is read in pieces cut anywhere,
    /// each perhaps again from before, and the process starts anew in between.
    #[test]
    fn any_log_of_repeats_read_anyhow_is_in_the_store_once(
        moves in prop::collection::vec((0..3u128, 0..6u64), 1..60),
        cuts in prop::collection::vec((1..10usize, any::<bool>(), any::<bool>()), 1..20),
    ) {
        let (mut log, mut last) = (Vec::new(), [0u64; 3]);
        for (writer, back) in moves {
            let last = &mut last[usize::try_from(writer).unwrap()];
            log.extend(((*last + 1).saturating_sub(back).max(1)..=*last + 1).map(|sequence| event(writer, sequence)));
            *last += 1;
        }
        let records: Vec<Record> = log.iter().enumerate().map(|(n, event)| record(n, event)).collect();
        let dir = tempfile::tempdir().unwrap();
        let (pieces, whole) = (dir.path().join("pieces"), dir.path().join("whole"));

        let (mut writer, _) = Writer::open(&pieces, "c").unwrap();
        let mut book = Book::default();
        let (mut at, mut cut) = (0, cuts.iter().cycle());
        while at < records.len() {
            let (length, rewinds, restarts) = *cut.next().unwrap();
            let end = (at + length).min(records.len());
            put(&mut writer, &mut book, &records[if rewinds { at.saturating_sub(4) } else { at }..end]);
            if restarts {
                drop(writer);
                let (opened, made) = Writer::open(&pieces, "c").unwrap();
                prop_assert!(!made);
                writer = opened;
                let found = writer.book().unwrap();
                prop_assert_eq!(&found, &book);
            }
            at = end;
        }
        let (mut writer, made) = Writer::open(&whole, "c").unwrap();
        prop_assert!(made);
        put(&mut writer, &mut Book::default(), &records);

        prop_assert_eq!(stored(&pieces, "rollup"), naive(&log));
        prop_assert_eq!(stored(&pieces, "generation"), naive(&log));
        prop_assert_eq!(rows(&pieces), rows(&whole));
    }
}

/// Set for the child of [`a_process_that_dies_anywhere_leaves_whole_transactions`]: the folder that it works in.
const CHILD: &str = "TOLLWAY_TEST_BILLING_CHILD";
/// Events of that test.
const KILLED_EVENTS: u64 = 6_000;

/// Appends events of writer 1 to partition 3 of the embedded log.
fn append(dir: &Path, sequences: std::ops::RangeInclusive<u64>) -> u64 {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join(log_file_name(3)))
        .unwrap();
    let mut file = std::io::BufWriter::new(file);
    for sequence in sequences {
        let event = serde_json::to_string(&event(1, sequence)).unwrap();
        writeln!(file, "{{\"headers\":{{}},\"event\":{event}}}").unwrap();
    }
    let end = file.into_inner().unwrap().metadata().unwrap().len();
    let mark = serde_json::to_vec(&LogMark([(3, end)].into())).unwrap();
    std::fs::write(dir.join("draft"), mark).unwrap();
    std::fs::rename(dir.join("draft"), dir.join(MARK_FILE)).unwrap();
    end
}

fn source(dir: &Path) -> Box<FileSource> {
    let keep = Retention {
        age: Duration::MAX,
        bytes: u64::MAX,
    };
    Box::new(FileSource::new(dir.to_owned(), keep))
}

/// Runs a tail over the log in a folder until the store is at an offset of partition 3.
async fn follow(dir: &Path, end: u64) {
    let place = Place::File(dir.join("billing.sqlite"));
    let (billing, shared) = Billing::new(place.clone());
    let tail = Tail {
        place,
        cluster: "c".into(),
        generations_ms: i64::MAX / 2,
        source: source(dir),
        shared,
        now: || NOW,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(tail.run(stop.clone()));
    let mut fresh = billing.watch();
    let there = fresh.wait_for(|fresh| {
        let next = fresh.get(&3).map(|fresh| fresh.progress.next);
        next == Some(end.cast_signed())
    });
    tokio::time::timeout(PATIENCE, there)
        .await
        .expect("in time")
        .unwrap();
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_process_that_dies_anywhere_leaves_whole_transactions() {
    if let Ok(dir) = std::env::var(CHILD) {
        let dir = Path::new(&dir);
        return follow(dir, std::fs::metadata(dir.join(log_file_name(3))).unwrap().len()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let end = append(dir.path(), 1..=KILLED_EVENTS);
    let store = dir.path().join("billing.sqlite");
    let mut unfinished = 0;
    for kill in 1..7u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "billing::tests::a_process_that_dies_anywhere_leaves_whole_transactions",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Another moment each time, by how much it has written rather than by the clock.
        let written = || {
            let wal = std::fs::metadata(dir.path().join("billing.sqlite-wal"));
            wal.map_or(0, |wal| wal.len()) + std::fs::metadata(&store).map_or(0, |store| store.len())
        };
        let before = written();
        while child.try_wait().unwrap().is_none() && written() < before + kill * 250_000 {
            tokio::task::yield_now().await;
        }
        unfinished += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // What is there is what a log that ends there gives.
        let Ok(connection) = reader(&store) else { continue };
        let of = |text: &str| {
            connection
                .query_row(text, [], |row| row.get::<_, i64>(0))
                .unwrap_or(0)
        };
        assert_eq!(
            of("SELECT count(*) FROM generation"),
            of("SELECT coalesce(sum(requests), 0) FROM rollup")
        );
        assert_eq!(
            of("SELECT count(*) FROM generation"),
            of("SELECT max(sequence) FROM writer")
        );
    }
    assert!(unfinished >= 3, "some were killed while they wrote: {unfinished}");
    follow(dir.path(), end).await;
    let log: Vec<_> = (1..=KILLED_EVENTS).map(|sequence| event(1, sequence)).collect();
    assert_eq!(stored(&store, "rollup"), naive(&log));
    assert_eq!(stored(&store, "generation"), naive(&log));
}

#[tokio::test]
async fn a_store_that_is_gone_or_damaged_or_of_another_shape_comes_back_row_by_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let end = append(dir.path(), 1..=300);
    follow(dir.path(), end).await;
    let first = rows(&store);
    assert_eq!(first.1.len(), 300);
    const GARBAGE: &str = "not a store, by any means";
    let spoilers: [fn(&Path); 4] = [
        |store| std::fs::remove_file(store).unwrap(),
        |store| std::fs::write(store, "what is set aside already").unwrap(),
        |store| std::fs::write(store, GARBAGE).unwrap(),
        |store| {
            let connection = rusqlite::Connection::open(store).unwrap();
            connection
                .execute_batch("DELETE FROM rollup; PRAGMA user_version = 9999")
                .unwrap();
        },
    ];
    for spoil in spoilers {
        spoil(&store);
        follow(dir.path(), end).await;
        assert_eq!(rows(&store), first);
    }
    // What is not ours to read is ours to keep.
    let aside = |what: &str| dir.path().join(format!("billing.sqlite.{what}"));
    assert_eq!(std::fs::read_to_string(aside("damaged")).unwrap(), GARBAGE);
    assert_eq!(rows(&aside("9999")).1, first.1);
    let fault = Writer::open(&store, "another").err();
    assert!(matches!(fault, Some(StoreFault::OtherCluster(of)) if of == "c"));
}

#[test]
fn old_generations_go_and_their_hours_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let (mut writer, _) = Writer::open(&store, "c").unwrap();
    let log: Vec<_> = (1..=50).map(|sequence| event(1, sequence)).collect();
    let records: Vec<_> = log
        .iter()
        .enumerate()
        .map(|(n, event)| record(n, event))
        .collect();
    put(&mut writer, &mut Book::default(), &records);
    let before = log[20].finished_at.0;
    while writer.forget(before).unwrap() {}
    let (hours, generations) = rows(&store);
    assert_eq!(generations.len(), 30);
    assert!(!hours.is_empty());
    assert_eq!(stored(&store, "rollup"), naive(&log));
}

#[test]
fn an_end_in_the_future_keeps_no_other_generation() {
    const MANY: i64 = 45_000; // more than go in two steps
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let (mut writer, _) = Writer::open(&store, "c").unwrap();
    let mut first = event(1, 1);
    first.finished_at.0 = NOW.plus_ms(DAY_MS);
    let records = [record(0, &first), record(1, &event(1, 2))];
    put(&mut writer, &mut Book::default(), &records);
    let mut connection = rusqlite::Connection::open(&store).unwrap();
    let copies = connection.transaction().unwrap();
    copies
        .execute_batch("CREATE TEMP TABLE one AS SELECT * FROM generation WHERE id = 2")
        .unwrap();
    for _ in 2..MANY {
        copies
            .execute_batch("UPDATE one SET id = id + 1; INSERT INTO generation SELECT * FROM one")
            .unwrap();
    }
    copies.commit().unwrap();
    while writer.forget(NOW).unwrap() {}
    let ids: Vec<Value> = connection
        .prepare("SELECT id FROM generation")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(ids, [Value::Integer(1)]);
}

#[test]
fn a_store_behind_a_gap_of_the_log_has_no_whole_days_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let (mut writer, _) = Writer::open(&store, "c").unwrap();
    let mut book = Book::default();
    put(&mut writer, &mut book, &[record(0, &event(1, 1))]);
    assert_eq!(book.partitions[&3].whole_from(), None);
    for to in [5, 5, 4] {
        writer.skip(3, to, NOW).unwrap();
    }
    book.skip(3, 5, NOW);
    let of = book.partitions[&3];
    assert_eq!(
        (of.first, of.next, of.whole_from()),
        (5, 5, Some(Day(NOW.day().0 + 2)))
    );
    assert_eq!(writer.book().unwrap(), book);
    put(&mut writer, &mut book, &[record(5, &event(1, 9))]);
    assert_eq!(writer.book().unwrap(), book);
    assert_eq!(book.partitions[&3].whole_from(), of.whole_from());
}

#[test]
fn a_late_event_at_the_cut_of_the_log_does_not_make_earlier_days_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::open(&dir.path().join("billing.sqlite"), "c").unwrap();
    let mut book = Book::default();
    let (mut late, newest) = (event(2, 1), event(1, 900));
    late.finished_at.0 = newest.finished_at.0.plus_ms(-20 * DAY_MS);
    let records = [record(5, &late), record(6, &newest), record(7, &event(1, 901))];
    let seen = |_| None;
    let first = [fold(3, book.reached(3, 5), &records[..2], NOW, seen)];
    writer.write(&first).unwrap();
    book.note(&first[0]);
    put(&mut writer, &mut book, &records[2..]);
    let whole = Day(newest.finished_at.0.day().0 + 2);
    assert_eq!(book.partitions[&3].whole_from(), Some(whole));
    assert_eq!(writer.book().unwrap(), book);
}

#[tokio::test]
async fn a_partition_whose_events_have_all_expired_is_in_a_store_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let segment = LogSegment {
        partition: 3,
        base: 1000,
    };
    std::fs::write(dir.path().join(segment.name()), "").unwrap();
    let mark = serde_json::to_vec(&LogMark([(3, 1000)].into())).unwrap();
    std::fs::write(dir.path().join(MARK_FILE), mark).unwrap();
    follow(dir.path(), 1000).await;
    let (mut writer, made) = Writer::open(&dir.path().join("billing.sqlite"), "c").unwrap();
    assert!(!made);
    let mut book = writer.book().unwrap();
    let of = book.partitions[&3];
    assert_eq!((of.first, of.next, of.newest_end()), (1000, 1000, None));
    assert_eq!(of.whole_from(), Some(Day(NOW.day().0 + 2)));

    // The first events that come say when what it has begins; those after them do not.
    let (first, second) = (event(1, 1), event(1, 900));
    let whole = Day(first.finished_at.0.day().0 + 2);
    for (offset, event) in [(1000, first), (1001, second)] {
        put(&mut writer, &mut book, &[record(offset, &event)]);
        assert_eq!(book.partitions[&3].whole_from(), Some(whole));
        assert_eq!(writer.book().unwrap(), book);
    }
}

#[test]
fn what_a_reader_sorts_need_not_fit_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let _writer = Writer::open(&store, "c").unwrap();
    let kept: i64 = reader(&store)
        .unwrap()
        .query_row("PRAGMA temp_store", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 1, "in a file");
}

#[test]
fn two_writers_do_not_both_move_an_offset() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("billing.sqlite");
    let (mut one, _) = Writer::open(&store, "c").unwrap();
    let (mut other, _) = Writer::open(&store, "c").unwrap();
    put(&mut one, &mut Book::default(), &[record(0, &event(1, 1))]);
    let records = [record(0, &event(1, 1)), record(1, &event(1, 2))];
    let batches = [fold(3, Book::default().reached(3, 0), &records, NOW, |_| None)];
    let fault = other.write(&batches).unwrap_err();
    assert!(matches!(fault, StoreFault::Moved(3)), "{fault}");
    assert_eq!(rows(&store).1.len(), 1);
    // Opened again, it goes on from what the store says.
    let (mut other, _) = Writer::open(&store, "c").unwrap();
    let mut book = other.book().unwrap();
    put(&mut other, &mut book, &records);
    assert_eq!(stored(&store, "rollup"), naive(&[event(1, 1), event(1, 2)]));
}
