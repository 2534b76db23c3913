//! Spool → real Kafka → ledger: the sums are those of the requests, with the broker killed in between.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollway_control::ledger::consume::SpendLog;
use tollway_control::ledger::source::UsageSource;
use tollway_control::ledger::{self, SourceKind};
use tollway_control::state::{State, apply};
use tollway_data::usage::{self, SinkKind};
use tollway_proto::command::{Command, Entry, Outcome, RecordSpend};
use tollway_proto::usage::UsageEvent;
use tollway_shared::cost;
use tollway_shared::ids::{OrganizationId, RequestId};
use tollway_shared::time::UnixMillis;
use tollway_tests::kafka::KafkaCluster;
use tollway_tests::wait;

/// Requests before, during and after the broker's absence.
const REQUESTS: [std::ops::Range<u64>; 3] = [0..300, 300..900, 900..1000];
/// How long what a broker does may take: one that is back takes and gives within seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the nodes may take to hand over what is left when they stop.
const DRAIN: Duration = Duration::from_secs(60);

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
            at: UnixMillis(0),
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
    event.request_id = RequestId::trusted(format!("gen-{n}"));
    event.tenant.organization = OrganizationId::trusted(format!("org-{}", n % 7));
    event.tokens.input = n;
    event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
    event
}

/// The topic, with one copy of each partition.
fn topic_of(kafka: &KafkaCluster) -> Box<dyn UsageSource> {
    let source = ledger::open(&ledger::Settings {
        source: SourceKind::Kafka,
        brokers: kafka.bootstrap(),
        replication: 1,
        ..ledger::Settings::default()
    });
    source.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_counts_every_request_once_although_the_broker_was_killed() {
    let kafka = tokio::task::spawn_blocking(|| KafkaCluster::start(1))
        .await
        .unwrap()
        .unwrap();
    let log = Log(watch::Sender::new(Arc::new(State::default())));
    let source = Some(topic_of(&kafka));
    let stop = CancellationToken::new();
    let counting = tokio::spawn(ledger::run(source, log.clone(), None, stop.clone()));

    let spool = tempfile::tempdir().unwrap();
    let settings = usage::Settings {
        sink: SinkKind::Kafka,
        brokers: kafka.bootstrap(),
        ..usage::Settings::default()
    };
    let pipeline = usage::start(&settings, spool.path(), 2).unwrap();
    let send = |range: std::ops::Range<u64>| {
        for n in range {
            let writer = pipeline.writer(usize::try_from(n).unwrap());
            writer.intent(&event(n)).unwrap();
            writer.outcome(event(n));
        }
    };
    let [before, during, after] = REQUESTS;
    let requests = |state: &Arc<State>| state.usage.values().map(|sums| sums.requests).sum::<u64>();
    let counted = |wanted: u64| {
        let mut states = log.0.subscribe();
        async move {
            let reached =
                tokio::time::timeout(PATIENCE, states.wait_for(|state| requests(state) >= wanted)).await;
            reached.expect("counted in time").unwrap().clone()
        }
    };
    send(before.clone());
    counted(before.end).await;
    tokio::task::block_in_place(|| kafka.kill_broker(1)).unwrap();
    send(during);
    tokio::task::block_in_place(|| kafka.restart_broker(1)).unwrap();
    send(after.clone());
    let state = counted(after.end).await;

    let cost: i64 = state.usage.values().map(|sums| sums.cost.0).sum();
    let naive: i64 = (0..after.end).map(|n| event(n).charge.total.0).sum();
    assert_eq!((requests(&state), cost), (after.end, naive));
    assert!(
        tokio::task::block_in_place(|| pipeline.stop(DRAIN)),
        "everything is delivered"
    );
    assert_eq!(requests(&log.state()), after.end, "and nothing twice");
    stop.cancel();
    counting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_partitions_begin_is_known_soon_after_they_have_a_leader_again() {
    let kafka = tokio::task::spawn_blocking(|| KafkaCluster::start(3))
        .await
        .unwrap()
        .unwrap();
    let begin = begins(&mut *topic_of(&kafka)).await;
    tokio::task::block_in_place(|| kafka.kill_broker(2)).unwrap();
    let anybody: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .create()
        .unwrap();
    let topic = ledger::Settings::default().topic;
    wait::until(PATIENCE, "a partition has no leader", || {
        let metadata = anybody.fetch_metadata(Some(&topic), PATIENCE).unwrap();
        let mut partitions = metadata.topics()[0].partitions().iter();
        partitions.any(|partition| partition.leader() == -1)
    })
    .await;

    // That of a replica which starts now.
    let mut source = topic_of(&kafka);
    source.beginnings().await.unwrap_err();
    tokio::task::block_in_place(|| kafka.restart_broker(2)).unwrap();
    assert_eq!(begins(&mut *source).await, begin);
}

/// Where partitions begin, once that is known.
async fn begins(source: &mut dyn UsageSource) -> BTreeMap<i32, i64> {
    let known = async {
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        loop {
            looks.tick().await;
            if let Ok(known) = source.beginnings().await {
                return known;
            }
        }
    };
    tokio::time::timeout(PATIENCE, known)
        .await
        .expect("known in time")
}
