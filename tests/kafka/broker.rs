//! The broker that the other suites rely on: real Apache Kafka starts, keeps what it acknowledged, and comes back.

#![expect(clippy::unwrap_used, reason = "a test: a panic is its way to fail")]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tollway_tests::kafka::KafkaCluster;

/// Long enough for a new idempotent producer or consumer group on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_record_that_was_acknowledged_survives_the_kill_of_its_broker() {
    let kafka = KafkaCluster::start(1).unwrap();
    kafka.create_topic("usage", 2).await.unwrap();
    produce(&kafka, "before").await;

    kafka.kill_broker(1).unwrap();
    kafka.restart_broker(1).unwrap();
    produce(&kafka, "after").await;

    assert_eq!(consume(&kafka, 2).await, ["before", "after"]);
}

#[tokio::test]
async fn three_brokers_take_records_while_one_of_them_is_dead() {
    let kafka = KafkaCluster::start(3).unwrap();
    kafka.create_topic("usage", 1).await.unwrap();
    produce(&kafka, "three").await;

    kafka.kill_broker(1).unwrap();
    produce(&kafka, "two").await;
    kafka.restart_broker(1).unwrap();

    assert_eq!(consume(&kafka, 2).await, ["three", "two"]);
}

#[test]
fn a_cluster_that_cannot_be_started_is_an_error_that_says_why() {
    let error = KafkaCluster::start(2).unwrap_err().to_string();
    assert_eq!(error.trim(), "kafka/broker: --nodes must be 1 or 3");
}

/// Writes one record, under one key so that the order is fixed, and waits for all copies.
async fn produce(kafka: &KafkaCluster, payload: &str) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .create()
        .unwrap();
    producer
        .send(FutureRecord::to("usage").key("org").payload(payload), PATIENCE)
        .await
        .unwrap();
}

/// Reads the topic from its start until `count` records came.
async fn consume(kafka: &KafkaCluster, count: usize) -> Vec<String> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "reader")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&["usage"]).unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < count {
        let message = tokio::time::timeout(PATIENCE, consumer.recv())
            .await
            .unwrap()
            .unwrap();
        payloads.push(message.payload_view::<str>().unwrap().unwrap().to_string());
    }
    payloads
}
