//! The billing store against a real PostgreSQL: one writer at a time, each event once whatever breaks, and the same answers and exports
//! as SQLite.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollway_control::billing::cell::{Dimension, Sum};
use tollway_control::billing::check::check;
use tollway_control::billing::connect::{Server, connect};
use tollway_control::billing::lines::{Wanted, lines};
use tollway_control::billing::query::{Field, Hours, Query};
use tollway_control::billing::tail::Tail;
use tollway_control::billing::{Billing, Place, StoreFault};
use tollway_control::ledger;
use tollway_control::ledger::consume::SpendLog;
use tollway_control::ledger::file::{FileSource, Retention};
use tollway_control::reading::{Reader, generation, sums};
use tollway_control::report::focus::{csv, rows};
use tollway_control::report::line::{Line, Merge};
use tollway_control::state::{State, apply};
use tollway_proto::command::{Command, Entry, Outcome, RecordSpend};
use tollway_proto::push::v1::{SumField, SumFilter, SumsQuestion};
use tollway_proto::usage::{EndState, UsageEvent, log_file_name, partition_of};
use tollway_proto::usage_log::{LogMark, MARK_FILE};
use tollway_shared::cost;
use tollway_shared::ids::{ApiKeyId, OrganizationId, RequestId, TeamId, WriterId};
use tollway_shared::time::{Day, UnixMillis};
use tollway_tests::postgres::Postgres;

/// How long what must happen may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Events in the log, repeats not counted.
const EVENTS: u64 = 30_000;
/// The last of them, all in one hour and each of another end user: more rows than PostgreSQL sends at once.
const BUSY: u64 = 2_000;
/// Partitions of the log.
const PARTITIONS: i32 = 3;
/// Wall time: some days after the example event.
const NOW: UnixMillis = UnixMillis(1_796_000_000_000);

/// A replicated log of one replica, in memory.
#[derive(Clone)]
struct Log(watch::Sender<Arc<State>>);

impl SpendLog for Log {
    fn is_leader(&self) -> bool {
        true
    }

    fn state(&self) -> Arc<State> {
        self.0.borrow().clone()
    }

    async fn propose(&self, spend: RecordSpend) -> Result<Outcome, String> {
        let mut state = State::clone(&self.state());
        let entry = Entry {
            at: NOW,
            actor: "system".into(),
            idempotency: None,
            if_revision: None,
            command: Command::RecordSpend(spend),
        };
        let index = state.applied + 1;
        let applied = apply(&mut state, index, &entry);
        self.0.send_replace(Arc::new(state));
        Ok(applied.outcome)
    }
}

fn event(n: u64) -> UsageEvent {
    let example = include_str!("../../proto/examples/usage-event.v1.json");
    let mut event: UsageEvent = serde_json::from_str(example).unwrap();
    let organization = format!("org-{}", n % 7);
    event.partition = partition_of(&organization, PARTITIONS);
    event.writer = WriterId(u128::from(n % 7) + 1);
    event.sequence = n / 7 + 1;
    event.id = format!("event-{n}");
    event.request_id = RequestId::trusted(format!("gen-{n}"));
    event.tenant.organization = OrganizationId::trusted(organization);
    event.tenant.team = (!n.is_multiple_of(3)).then(|| TeamId::trusted("search"));
    event.tenant.key = ApiKeyId::trusted(format!("key-{}", n % 21));
    let is_busy = n >= EVENTS - BUSY;
    let user = if is_busy { n } else { n % 35 };
    event.user = (is_busy || n.is_multiple_of(5)).then(|| format!("user,{user}\0é")); // whatever a caller may write
    event.tokens.input = n;
    event.byok = n.is_multiple_of(11);
    event.end = if n.is_multiple_of(13) {
        EndState::Failed
    } else {
        EndState::Completed
    };
    event.started_at.0 = event
        .started_at
        .0
        .plus_ms((n.min(EVENTS - BUSY) * 60_000).cast_signed());
    event.first_byte_at = None;
    event.finished_at.0 = event.started_at.0.plus_ms((n % 5_000).cast_signed());
    event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
    event
}

/// An embedded usage log with every event, in which a tenth of them lie twice.
fn write_log(dir: &Path) {
    use std::io::Write as _;
    let mut files: Vec<Vec<u8>> = vec![Vec::new(); PARTITIONS as usize];
    for n in 0..EVENTS {
        let again = n.is_multiple_of(10).then(|| n.saturating_sub(70));
        for n in again.into_iter().chain([n]) {
            let event = event(n);
            let text = serde_json::to_string(&event).unwrap();
            let file = &mut files[event.partition as usize];
            writeln!(file, "{{\"headers\":{{}},\"event\":{text}}}").unwrap();
        }
    }
    let mut ends = LogMark::default();
    for (partition, bytes) in (0..).zip(files) {
        std::fs::write(dir.join(log_file_name(partition)), &bytes).unwrap();
        ends.0.insert(partition, bytes.len() as u64);
    }
    std::fs::write(dir.join(MARK_FILE), serde_json::to_vec(&ends).unwrap()).unwrap();
}

fn source(dir: &Path) -> Box<FileSource> {
    let keep = Retention {
        age: Duration::MAX,
        bytes: u64::MAX,
    };
    Box::new(FileSource::new(dir.to_owned(), keep))
}

fn server(postgres: &Postgres) -> Server {
    Server::new(&postgres.url(), None, None).unwrap()
}

/// One replica's store, with its tail running.
struct Replica {
    billing: Billing,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Replica {
    fn start(dir: &Path, place: Place) -> Self {
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
        Self {
            billing,
            stop,
            running,
        }
    }

    /// Waits until so many bytes of the log are in the store.
    async fn reaches(&self, bytes: u64) {
        let mut fresh = self.billing.watch();
        let there = fresh.wait_for(|fresh| {
            let next = fresh.values().map(|fresh| fresh.progress.next).sum::<i64>();
            next >= bytes.cast_signed()
        });
        tokio::time::timeout(PATIENCE, there)
            .await
            .expect("in time")
            .unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

/// Everything the store can tell apart.
fn everything() -> Query {
    let dimensions = Dimension::ALL.iter().map(|dimension| Field::Of(*dimension));
    Query {
        hours: Hours::ALL,
        equal: Vec::new(),
        among: Vec::new(),
        by: dimensions
            .chain([Field::Hour, Field::Day, Field::Week, Field::Month])
            .collect(),
        after: None,
        limit: 100_000,
        latencies: true,
    }
}

async fn counted(log: &Log, bytes: u64) {
    let mut states = log.0.subscribe();
    let there = states.wait_for(|state| state.usage_offsets.values().sum::<i64>() >= bytes.cast_signed());
    tokio::time::timeout(PATIENCE, there)
        .await
        .expect("in time")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_has_each_event_once_whatever_breaks_and_answers_as_sqlite_does() {
    let postgres = tokio::task::spawn_blocking(Postgres::start)
        .await
        .unwrap()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_log(dir.path());
    let bytes: u64 = (0..PARTITIONS)
        .map(|partition| {
            std::fs::metadata(dir.path().join(log_file_name(partition)))
                .unwrap()
                .len()
        })
        .sum();
    let shared = || Place::Server(Box::new(server(&postgres)));

    // Two replicas share it. Their connections are cut again and again while they write, and the first one goes for good.
    let (one, two) = (
        Replica::start(dir.path(), shared()),
        Replica::start(dir.path(), shared()),
    );
    let control = connect(&server(&postgres), PATIENCE).await.unwrap();
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name = 'tollway-control' AND pid <> pg_backend_pid()";
    for part in 1..=4 {
        one.reaches(bytes * part / 8).await;
        // Between two tries they may have none.
        let cutting = async {
            while control.query_one(cut, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, cutting).await.unwrap();
    }
    one.stop().await;
    two.reaches(bytes).await;

    let file = Replica::start(dir.path(), Place::File(dir.path().join("billing.sqlite")));
    file.reaches(bytes).await;
    let (theirs, ours) = (
        two.billing.query(&everything()).await.unwrap(),
        file.billing.query(&everything()).await.unwrap(),
    );
    assert_eq!(theirs.groups.len(), ours.groups.len());
    assert_eq!(theirs, ours);
    let owed: i64 = (0..EVENTS).map(|n| event(n).billed.0).sum();
    assert_eq!(theirs.total.get(Sum::Requests), i128::from(EVENTS));
    assert_eq!(theirs.total.get(Sum::Billed), i128::from(owed));
    assert_eq!(theirs.total.first_byte.total(), 0);

    // Pages of one organization's hours add up to it.
    let mut page = Query {
        by: vec![Field::Month, Field::Hour, Field::Of(Dimension::User)],
        equal: vec![(Dimension::Organization, "org-3".to_owned())],
        limit: 100,
        ..everything()
    };
    for billing in [&two.billing, &file.billing] {
        let mut requests = 0;
        page.after = None;
        loop {
            let found = billing.query(&page).await.unwrap();
            requests += found
                .groups
                .iter()
                .map(|(_, summed)| summed.get(Sum::Requests))
                .sum::<i128>();
            page.after = found.groups.last().map(|(group, _)| group.clone());
            assert_eq!(found.total.get(Sum::Requests), i128::from(EVENTS / 7 + 1));
            if !found.more {
                break;
            }
        }
        assert_eq!(requests, i128::from(EVENTS / 7 + 1));
    }

    tenants_read_the_same(&two.billing, &file.billing).await;
    exports_are_the_same(&two, &file).await;
    reconciles(&postgres, &two, &file, dir.path(), bytes).await;
    two.stop().await;
    file.stop().await;
}

/// One request, sets of values, and what own credentials paid for, as nodes ask for them.
async fn tenants_read_the_same(two: &Billing, file: &Billing) {
    let event = event(EVENTS / 2);
    let reader = Reader {
        keys: vec![event.tenant.key.clone()],
        path: event.tenant.clone(),
    };
    let id = event.request_id.as_str();
    let found = generation::find(two, &reader, id).await.unwrap();
    assert_eq!(
        (found.billed, found.finished_at),
        (event.billed.0, event.finished_at.0.0)
    );
    assert_eq!(generation::find(file, &reader, id).await.unwrap(), found);
    for (values, none_of) in [(vec![event.tenant.key.to_string()], false), (Vec::new(), true)] {
        let question = SumsQuestion {
            from_hour: i64::MIN,
            until_hour: i64::MAX,
            by: vec![SumField::Week.into(), SumField::User.into()],
            filters: vec![SumFilter {
                field: SumField::Key.into(),
                values,
                none_of,
            }],
            groups_max: 10,
            latencies: true,
            own_credentials: true,
        };
        let found = sums::sums(two, &reader, &question).await.unwrap();
        assert!(!found.groups.is_empty());
        assert_eq!(sums::sums(file, &reader, &question).await.unwrap(), found);
    }
}

/// The charges of some days as the FOCUS export writes them, and how many rows of the store they are made of.
async fn charges(billing: &Billing, wanted: Wanted) -> (String, usize) {
    let place = billing.place().clone();
    let read = move || {
        let (mut out, mut merge, mut count) = (Vec::new(), Merge::default(), 0);
        let state = State::default();
        let mut write = |line: Option<Line>| {
            for row in line.iter().flat_map(|line| rows::charges(line, &state, NOW)) {
                csv::row(&mut out, &row).unwrap();
            }
        };
        let read = lines(&place, &wanted, |line| {
            count += 1;
            write(merge.push(line));
            // The handler waits for its caller in here, on the same runtime.
            tokio::runtime::Handle::current().block_on(std::future::ready(()));
            ControlFlow::<()>::Continue(())
        });
        assert!(matches!(read, Ok(ControlFlow::Continue(()))), "{read:?}");
        write(merge.finish());
        (String::from_utf8(out).unwrap(), count)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Reports are made of the same lines in the same order, of all and of one organization, and one that is left off leaves no trouble.
async fn exports_are_the_same(two: &Replica, file: &Replica) {
    let last = event(EVENTS - 1).started_at.0.day();
    for (organization, rows_min) in [(None, BUSY as usize), (Some("org-3"), 300)] {
        let wanted = Wanted {
            from: Day(last.0 - 2).start(),
            to: Day(last.0 + 1).start(),
            organization: organization.map(OrganizationId::trusted),
        };
        let (theirs, rows) = charges(&two.billing, wanted.clone()).await;
        let (ours, _) = charges(&file.billing, wanted.clone()).await;
        assert!(rows >= rows_min, "{rows} rows of {organization:?}");
        let differing = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
        assert_eq!(differing, None, "{organization:?}");
        assert_eq!(theirs.len(), ours.len(), "{organization:?}");
        let place = two.billing.place().clone();
        let stopped = tokio::task::spawn_blocking(move || lines(&place, &wanted, ControlFlow::Break));
        let stopped = stopped.await.unwrap();
        assert!(matches!(stopped, Ok(ControlFlow::Break(_))), "{stopped:?}");
    }
}

/// Both stores equal the replicated sums of the same log, and a cell that was tampered with is found.
async fn reconciles(postgres: &Postgres, two: &Replica, file: &Replica, dir: &Path, bytes: u64) {
    let log = Log(watch::Sender::new(Arc::new(State::default())));
    let stop = CancellationToken::new();
    let counting = tokio::spawn(ledger::run(Some(source(dir)), log.clone(), None, stop.clone()));
    counted(&log, bytes).await;
    let all = (Day(0), Day(i32::MAX - 1));
    for replica in [two, file] {
        let checked = check(&replica.billing, &mut log.0.subscribe(), all.0, all.1)
            .await
            .unwrap();
        assert_eq!(
            (checked.found.differing, checked.found.drift),
            (0, 0),
            "{:?}",
            checked.found
        );
        assert!(checked.found.cells > 100, "{}", checked.found.cells);
    }
    let tampered = "UPDATE rollup SET charge = charge + 5, billed = billed - 2 \
                    WHERE (hour, series) = (SELECT hour, series FROM rollup LIMIT 1)";
    let control = connect(&server(postgres), PATIENCE).await.unwrap();
    assert_eq!(control.execute(tampered, &[]).await.unwrap(), 1);
    let checked = check(&two.billing, &mut log.0.subscribe(), all.0, all.1)
        .await
        .unwrap();
    assert_eq!((checked.found.differing, checked.found.drift), (1, 7));
    let difference = &checked.found.differences[0];
    assert_eq!(difference.store.cost - difference.state.cost, 5);

    // A replica that only reads says that it is another's to compare.
    let third = Replica::start(dir, Place::Server(Box::new(server(postgres))));
    third.reaches(bytes).await;
    let refused = check(&third.billing, &mut log.0.subscribe(), all.0, all.1).await;
    assert!(matches!(refused, Err(StoreFault::Elsewhere)), "{refused:?}");
    third.stop().await;
    stop.cancel();
    counting.await.unwrap();
}
