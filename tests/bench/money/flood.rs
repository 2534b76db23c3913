//! Usage events as many nodes write them, produced to Kafka: dense sequences per writer and partition, an organization always in its
//! partition, charges that are counts × prices. The events of one hour, none twice.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tollway_proto::usage::{TOPIC, UnixMillisText, UsageEvent, partition_of};
use tollway_shared::cost;
use tollway_shared::ids::{ApiKeyId, ModelId, OrganizationId, RequestId, WriterId};
use tollway_shared::time::UnixMillis;

/// Partitions of the topic.
pub(crate) const PARTITIONS: i32 = 6;
/// What the events are spread over: writers, organizations, keys, models, callers' own users.
pub(crate) const SPREAD: [u64; 5] = [16, 50, 500, 3, 2_000];
/// Over how long the requests began.
const SPAN_MS: u64 = 3_600_000;
/// How long the broker may take for what is in flight.
const FLUSH: Duration = Duration::from_secs(300);

/// Produces so many events; returns the bytes of their JSON.
pub(crate) fn produce(brokers: &str, events: u64, now: UnixMillis) -> Result<u64> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // As nodes do (`data-plane/src/usage/kafka.rs`).
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "zstd")
        .set("linger.ms", "20")
        .create()?;
    let example: UsageEvent =
        serde_json::from_str(include_str!("../../../proto/examples/usage-event.v1.json"))?;
    let [writers, ..] = SPREAD;
    let slots = usize::try_from(writers)? * usize::try_from(PARTITIONS)?;
    let (mut sequences, mut bytes) = (vec![0; slots], 0);
    for number in 0..events {
        let event = event(&example, number, now, &mut sequences)?;
        let value = serde_json::to_vec(&event)?;
        bytes += value.len() as u64;
        hand_over(&producer, &event, &value)?;
    }
    producer.flush(FLUSH)?;
    Ok(bytes)
}

fn event(example: &UsageEvent, number: u64, now: UnixMillis, sequences: &mut [u64]) -> Result<UsageEvent> {
    // Scattered evenly, and the same in every run.
    let draw = |salt: u64, of: u64| {
        let mixed = (number ^ salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 33) % of
    };
    let [writers, organizations, keys, models, users] = SPREAD;
    let mut event = example.clone();
    let key = draw(1, keys);
    let organization = format!("organization-{}", key % organizations);
    let writer = draw(2, writers);
    event.id = format!("0198c0de-7a11-7c3e-9d2f-{number:012x}");
    event.request_id = RequestId::trusted(format!("gen-0198c0de7a117c3e9d2f{number:012x}"));
    event.writer = WriterId(u128::from(writer) + 1);
    event.partition = partition_of(&organization, PARTITIONS);
    event.tenant.key = ApiKeyId::trusted(format!("key-{key}"));
    event.tenant.organization = OrganizationId::trusted(organization);
    event.model = ModelId::trusted(format!("acme/model-{}", draw(3, models)));
    event.user = (draw(4, 5) == 0).then(|| format!("user-{}", draw(5, users)));
    event.started_at.0 = now.plus_ms(-(draw(6, SPAN_MS).cast_signed()) - 20_000);
    event.first_byte_at = Some(UnixMillisText(event.started_at.0.plus_ms(400)));
    event.finished_at.0 = event.started_at.0.plus_ms(400 + draw(7, 15_000).cast_signed());
    event.tokens.input = draw(8, 8_000);
    event.tokens.input_cache_read = draw(9, 2_000);
    event.tokens.output = draw(10, 2_000);
    let place = usize::try_from(writer)? * usize::try_from(PARTITIONS)? + usize::try_from(event.partition)?;
    sequences[place] += 1;
    event.sequence = sequences[place];
    let charge = cost::charge(&event.tokens, &event.prices)?;
    event.state_charge(charge);
    Ok(event)
}

fn hand_over(
    producer: &ThreadedProducer<DefaultProducerContext>,
    event: &UsageEvent,
    value: &[u8],
) -> Result<()> {
    let mut headers = OwnedHeaders::new();
    for (key, value) in event.headers() {
        let value = Some(value.as_str());
        headers = headers.insert(Header { key, value });
    }
    let mut record = BaseRecord::to(TOPIC)
        .key(event.tenant.organization.as_str())
        .payload(value)
        .partition(event.partition)
        .headers(headers);
    let begun = Instant::now();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if begun.elapsed() < FLUSH =>
            {
                record = back;
                std::thread::sleep(Duration::from_millis(5)); // it empties at the broker's pace
            }
            Err((fault, _)) => bail!("the producer refused an event: {fault}"),
        }
    }
}
