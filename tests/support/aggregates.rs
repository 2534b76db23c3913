//! The sums by organization and hour on Kafka, read as any consumer would read them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollway_proto::billing::{BillingAggregate, TOPIC};
use tollway_proto::usage::partition_of;

/// Each key with its records, in their order.
pub type ByKey = BTreeMap<String, Vec<BillingAggregate>>;

/// What consumers are promised of every record.
const SCHEMA: &str = include_str!("../../proto/billing-aggregate.v1.schema.json");
/// How long the broker may take for one answer, and half of how long the topic may take to read.
const BROKER: Duration = Duration::from_secs(30);

/// Everything that is committed to the topic now, by key, each key's records in their order. Checks each record against the published
/// schema, its key and its partition. Blocks: call it from `spawn_blocking`.
pub fn read_all(bootstrap: &str) -> Result<ByKey> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", crate::unique("aggregates"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(TOPIC), BROKER)?;
    let partitions = metadata
        .topics()
        .first()
        .context("the topic exists")?
        .partitions()
        .len();
    ensure!(partitions > 0, "topic {TOPIC} is not there yet");
    let partitions = i32::try_from(partitions)?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(TOPIC, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    // A partition's last offset is a mark of its last transaction, which no consumer gets: so its end is told, not computed.
    let mut left: BTreeSet<i32> = (0..partitions).collect();
    let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA)?)?;
    let mut found = ByKey::new();
    let begun = Instant::now();
    while !left.is_empty() {
        ensure!(
            begun.elapsed() < BROKER * 2,
            "the topic could not be read to its end; missing {left:?}"
        );
        let message = match consumer.poll(Duration::from_millis(200)) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
                continue;
            }
            Some(message) => message?,
        };
        let bytes = message.payload().context("an aggregate has a value")?;
        let written = serde_json::from_slice(bytes).context("an aggregate is JSON")?;
        if let Err(wrong) = schema.validate(&written) {
            bail!("`{}` of an aggregate: {wrong}", wrong.instance_path());
        }
        let aggregate: BillingAggregate = serde_json::from_value(written).context("an aggregate")?;
        let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        ensure!(key == aggregate.key(), "{key} is the key of {aggregate:?}");
        ensure!(
            message.partition() == partition_of(aggregate.organization.as_str(), partitions),
            "{key} is in partition {}",
            message.partition()
        );
        let subject = message.headers().and_then(|headers| {
            let mut all = headers.iter();
            all.find(|header| header.key == "ce_subject")?.value
        });
        ensure!(subject == Some(key.as_bytes()), "the headers of {key}");
        found.entry(key).or_default().push(aggregate);
    }
    Ok(found)
}
