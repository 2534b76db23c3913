//! The topic of aggregates: making it, writing to it in transactions, and how far it was written. Blocks: call it from
//! `spawn_blocking`.
//!
//! How far it was written is a consumer group's offsets on the usage topic, committed in the same transactions. Nobody is a member of
//! that group; Kafka is only where they are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollway_proto::billing::BillingAggregate;
use tollway_proto::usage::partition_of;
use tollway_shared::time::UnixMillis;

use crate::ledger::kafka::KafkaTopic;

/// How long one request to the brokers may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a transaction may take, from its first record to its end.
const TRANSACTION: Duration = Duration::from_secs(60);

/// The topics, and how to reach them.
#[derive(Debug, Clone)]
pub struct Channel {
    /// The topic of aggregates.
    pub topic: String,
    /// The topic of usage events.
    pub usage: KafkaTopic,
}

/// A producer that nobody else has, until somebody opens the next one.
pub struct Session {
    channel: Channel,
    producer: ThreadedProducer<DefaultProducerContext>,
    consumer: BaseConsumer,
}

impl Session {
    /// Makes the topic where it is missing, ends what others had under way, and tells how far each partition of usage is published.
    pub fn open(channel: Channel) -> Result<(Self, BTreeMap<i32, i64>), KafkaError> {
        make(&channel)?;
        let mut client = channel.usage.client();
        client
            .set("transactional.id", format!("{}-publisher", channel.topic))
            .set("transaction.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("compression.type", "zstd");
        let producer: ThreadedProducer<DefaultProducerContext> = client.create()?;
        producer.init_transactions(TRANSACTION)?;
        let consumer: BaseConsumer = channel
            .usage
            .client()
            .set("group.id", format!("{}-publisher", channel.topic))
            .set("enable.auto.commit", "false")
            .create()?;
        let mut places = TopicPartitionList::new();
        for partition in 0..channel.usage.partitions {
            places.add_partition(&channel.usage.topic, partition);
        }
        let places = consumer.committed_offsets(places, REQUEST)?;
        let mut published = BTreeMap::new();
        for place in places.elements() {
            if let Offset::Offset(offset) = place.offset() {
                published.insert(place.partition(), offset);
            }
        }
        let session = Self {
            channel,
            producer,
            consumer,
        };
        Ok((session, published))
    }

    /// Publishes aggregates, and that partitions of usage are published up to these offsets: both or neither.
    pub fn publish(
        &self,
        aggregates: &[BillingAggregate],
        through: &BTreeMap<i32, i64>,
        now: UnixMillis,
    ) -> Result<(), KafkaError> {
        self.producer.begin_transaction()?;
        let done = self.write(aggregates, through, now);
        if done.is_err() {
            // Whether this works or not, the next session's opening ends it.
            let _ = self.producer.abort_transaction(REQUEST);
        }
        done
    }

    fn write(
        &self,
        aggregates: &[BillingAggregate],
        through: &BTreeMap<i32, i64>,
        now: UnixMillis,
    ) -> Result<(), KafkaError> {
        for aggregate in aggregates {
            let headers = aggregate.headers(now);
            let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value.as_str()),
                })
            });
            let key = aggregate.key();
            let value =
                serde_json::to_vec(aggregate).expect("an aggregate has no map with keys that are no text");
            let partition = partition_of(aggregate.organization.as_str(), self.channel.usage.partitions);
            let record = BaseRecord::to(&self.channel.topic)
                .key(&key)
                .payload(&value)
                .partition(partition)
                .headers(headers);
            self.producer.send(record).map_err(|(fault, _)| fault)?;
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in through {
            offsets.add_partition_offset(&self.channel.usage.topic, *partition, Offset::Offset(*offset))?;
        }
        let group = self
            .consumer
            .group_metadata()
            .ok_or(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownGroup))?;
        self.producer
            .send_offsets_to_transaction(&offsets, &group, REQUEST)?;
        self.producer.commit_transaction(TRANSACTION)
    }
}

/// Makes the compacted topic; one that is there stays as it is.
fn make(channel: &Channel) -> Result<(), KafkaError> {
    let admin: AdminClient<DefaultClientContext> = channel.usage.client().create()?;
    let replication = TopicReplication::Fixed(channel.usage.replication);
    let topic =
        NewTopic::new(&channel.topic, channel.usage.partitions, replication).set("cleanup.policy", "compact");
    let options = AdminOptions::new()
        .operation_timeout(Some(REQUEST))
        .request_timeout(Some(REQUEST));
    let made = tokio::runtime::Handle::current().block_on(admin.create_topics([&topic], &options))?;
    match made.into_iter().next() {
        Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
            Err(KafkaError::AdminOp(code))
        }
        _ => Ok(()),
    }
}
