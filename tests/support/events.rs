//! The usage events on Kafka, read as any consumer would read them, and put beside what others counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollway_proto::usage::UsageEvent;

/// What consumers are promised of every event.
const SCHEMA: &str = include_str!("../../proto/usage-event.v1.schema.json");
/// How long the broker may take for one answer.
const BROKER: Duration = Duration::from_secs(30);

/// One record of the topic.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: String,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its value.
    pub event: UsageEvent,
    /// The value's bytes.
    pub bytes: Vec<u8>,
}

/// Reads everything that is in the topic now, and checks each record against the published schema. Blocks: call it from
/// `spawn_blocking`.
pub fn read_all(bootstrap: &str, topic: &str) -> Result<Vec<Recorded>> {
    read(bootstrap, topic, |_| true)
}

/// The same for the records of one organization. Others are passed over unread.
pub fn read_of(bootstrap: &str, topic: &str, organization: &str) -> Result<Vec<Recorded>> {
    read(bootstrap, topic, |key| key == organization.as_bytes())
}

fn read(bootstrap: &str, topic: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Recorded>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", crate::unique("oracle"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), BROKER)?;
    let partitions = metadata
        .topics()
        .first()
        .context("the topic exists")?
        .partitions()
        .len();
    let mut assignment = TopicPartitionList::new();
    let mut left = BTreeMap::new();
    for partition in 0..i32::try_from(partitions)? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, BROKER)?;
        if high > low {
            assignment.add_partition_offset(topic, partition, Offset::Offset(low))?;
            left.insert(partition, high);
        }
    }
    consumer.assign(&assignment)?;
    let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA)?)?;
    let mut records = Vec::new();
    let mut came = Instant::now();
    while !left.is_empty() {
        ensure!(
            came.elapsed() < BROKER * 2,
            "the topic could not be read to its end; missing {left:?}"
        );
        let Some(message) = consumer.poll(Duration::from_millis(200)) else {
            continue;
        };
        let message = message?;
        came = Instant::now();
        if left
            .get(&message.partition())
            .is_some_and(|high| message.offset() + 1 >= *high)
        {
            left.remove(&message.partition());
        }
        if !wanted(message.key().unwrap_or_default()) {
            continue;
        }
        let bytes = message.payload().context("a usage record has a value")?.to_vec();
        let written = serde_json::from_slice(&bytes).context("a usage record is JSON")?;
        if let Err(wrong) = schema.validate(&written) {
            bail!("`{}` of a usage record: {wrong}", wrong.instance_path());
        }
        let headers = message.headers().into_iter().flat_map(|all| {
            all.iter().map(|header| {
                let value = String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned();
                (header.key.to_owned(), value)
            })
        });
        records.push(Recorded {
            partition: message.partition(),
            offset: message.offset(),
            key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
            headers: headers.collect(),
            event: serde_json::from_value(written).context("a usage record is a usage event")?,
            bytes,
        });
    }
    Ok(records)
}

/// The events with repeats dropped, by the rule a consumer is given: a sequence that is not above the last one of its writer
/// and partition is a repeat; a sequence that skips is lost data.
pub fn deduplicated(records: &[Recorded]) -> Result<Vec<&UsageEvent>> {
    let mut last: BTreeMap<(u128, i32), u64> = BTreeMap::new();
    let mut kept = Vec::new();
    for record in records {
        let event = &record.event;
        ensure!(
            event.partition == record.partition,
            "event {} says another partition than it is in",
            event.id
        );
        let seen = last.entry((event.writer.0, event.partition)).or_default();
        if event.sequence <= *seen {
            continue;
        }
        ensure!(
            event.sequence == *seen + 1,
            "writer {} partition {}: {} follows {seen}",
            event.writer,
            event.partition,
            event.sequence
        );
        *seen = event.sequence;
        kept.push(event);
    }
    Ok(kept)
}

/// Checks one event against itself: its charge is its counts at its prices, and what is owed follows from it.
pub fn recompute(event: &UsageEvent) -> Result<()> {
    let expected = event.due()?;
    ensure!(
        event.charge == expected,
        "event {}: {:?} is not {expected:?}",
        event.id,
        event.charge
    );
    let owed = event.bill(&expected)?;
    ensure!(
        (event.adjustment, event.billed) == (owed.adjustment, owed.billed),
        "event {}: {:?} and {} are not {owed:?}",
        event.id,
        event.adjustment,
        event.billed
    );
    Ok(())
}
