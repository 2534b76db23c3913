//! The whole pipeline against librdkafka's mock cluster: outages and repeats.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollway_proto::usage::UsageEvent;

use super::{Settings, SinkKind, StartFault, sample, start};

const PARTITIONS: i32 = 3;
const TOPIC: &str = "usage";
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, 3).unwrap();
    cluster
}

fn settings(brokers: String) -> Settings {
    Settings {
        sink: SinkKind::Kafka,
        topic: TOPIC.into(),
        partitions: PARTITIONS,
        brokers,
        spool_bytes_max: 64 << 20,
        ..Settings::default()
    }
}

/// Reads until `wanted` different events were seen: (partition, sequence) of each record, in order per partition.
fn consume(brokers: &str, wanted: usize) -> Vec<(i32, u64)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&list).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    let mut distinct = std::collections::BTreeSet::new();
    while distinct.len() < wanted {
        assert!(
            Instant::now() < until,
            "{} of {wanted} events after {PATIENCE:?}",
            distinct.len()
        );
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else {
            continue;
        };
        let event: UsageEvent = serde_json::from_slice(message.payload().unwrap()).unwrap();
        assert_eq!(message.key(), Some(event.tenant.organization.as_str().as_bytes()));
        assert_eq!(message.partition(), event.partition);
        let headers = message.headers().unwrap();
        assert_eq!(headers.count(), event.headers().len());
        assert_eq!(headers.get(2).value, Some(event.id.as_bytes()));
        distinct.insert((event.writer, event.partition, event.sequence));
        found.push((event.partition, event.sequence));
    }
    found
}

#[test]
fn an_outage_of_every_broker_delays_events_and_loses_none() {
    let cluster = cluster();
    let dir = tempfile::tempdir().unwrap();
    let brokers = cluster.bootstrap_servers();
    let usage = start(&settings(brokers.clone()), dir.path(), 2).unwrap();
    let send = |range: std::ops::Range<usize>| {
        for n in range {
            let event = sample::event(&format!("r{n}"), &format!("org-{}", n % 5));
            usage.writer(n).intent(&event).unwrap();
            usage.writer(n).outcome(event);
        }
    };
    send(0..100);
    assert_eq!(consume(&brokers, 100).len(), 100);
    for broker in 1..=3 {
        cluster.broker_down(broker).unwrap();
    }
    send(100..400);
    for broker in 1..=3 {
        cluster.broker_up(broker).unwrap();
    }
    consume(&brokers, 400);
    assert!(usage.stop(PATIENCE), "everything is delivered");
    let left = super::recover::leftovers(dir.path()).unwrap();
    assert!(left.is_empty(), "a clean stop leaves no spool: {left:?}");
}

#[test]
fn what_was_not_acknowledged_comes_again_in_order_after_a_restart() {
    let cluster = cluster();
    let dir = tempfile::tempdir().unwrap();
    let brokers = cluster.bootstrap_servers();
    let usage = start(&settings(brokers.clone()), dir.path(), 1).unwrap();
    for n in 0..50 {
        let event = sample::event(&format!("r{n}"), "acme");
        usage.writer(0).intent(&event).unwrap();
        usage.writer(0).outcome(event);
    }
    usage.writer(0).intent(&sample::event("running", "acme")).unwrap();
    consume(&brokers, 50);
    assert!(usage.stop(PATIENCE)); // the running request is left behind, as by a crash
    for folder in super::recover::leftovers(dir.path()).unwrap() {
        let _ = std::fs::remove_file(folder.join("delivered")); // and so is what had been acknowledged
    }
    let usage = start(&settings(brokers.clone()), dir.path(), 1).unwrap();
    let mut reached: BTreeMap<i32, u64> = BTreeMap::new();
    for (partition, sequence) in consume(&brokers, 51) {
        let high = reached.entry(partition).or_default();
        assert!(
            sequence <= *high + 1,
            "partition {partition}: {sequence} after {high}"
        );
        *high = (*high).max(sequence);
    }
    assert_eq!(reached.values().sum::<u64>(), 51);
    assert!(usage.stop(PATIENCE));
}

#[test]
fn settings_that_billing_rests_on_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("acks", "1"),
        ("message.timeout.ms", "300000"),
        ("no.such.setting", "1"),
    ] {
        let mut settings = settings("127.0.0.1:1".into());
        settings.kafka.0.insert(name.into(), value.into());
        let fault = start(&settings, dir.path(), 1).unwrap_err();
        assert!(
            matches!(fault, StartFault::Setting { field: "kafka", .. }),
            "{fault}"
        );
        assert!(fault.to_string().contains(name), "{fault}");
    }
}

#[test]
fn a_spool_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let log = tempfile::tempdir().unwrap();
    let settings = Settings {
        dir: Some(log.path().to_owned()),
        ..Settings::default()
    };
    let usage = start(&settings, dir.path(), 1).unwrap();
    assert!(matches!(
        start(&settings, dir.path(), 1),
        Err(StartFault::Locked(_))
    ));
    drop(usage);
    start(&settings, dir.path(), 1).unwrap();
}
