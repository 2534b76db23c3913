//! Apache Kafka as a source, and the topic itself.
//!
//! Offsets live in the replicated state, so there is no consumer group and nothing is committed: partitions are assigned at the
//! offsets the state has reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollway_shared::secret::KafkaSettings;

use super::rollup::Record;
use super::source::{RECORDS_MAX, SourceFault, UsageSource, WAIT};

/// How long one request to the brokers may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the leaders of all partitions, and then the ends of each, may take: reading waits for them.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// The topic of usage events, and how to reach it.
#[derive(Debug, Clone)]
pub struct KafkaTopic {
    /// Brokers, `host:port` with commas.
    pub brokers: String,
    /// Its name.
    pub topic: String,
    /// Partitions; every node must be configured with the same number.
    pub partitions: i32,
    /// Copies of each partition, for a topic that we make.
    pub replication: i32,
    /// How long events are kept, milliseconds, for a topic that we make.
    pub retention_ms: i64,
    /// Settings passed through to librdkafka: TLS, SASL, ….
    pub settings: KafkaSettings,
}

impl KafkaTopic {
    /// What a client of these brokers is configured with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("client.id", "tollway-control")
            .set("reconnect.backoff.max.ms", "1000");
        for (name, value) in &self.settings.0 {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client
    }

    fn fault(&self, detail: impl std::fmt::Display) -> SourceFault {
        SourceFault::Topic {
            topic: self.topic.clone(),
            detail: detail.to_string(),
        }
    }
}

/// Makes the topic, or checks that the one there has the configured number of partitions.
///
/// The number matters: an organization's events stay in one partition only while nodes and topic agree on it.
pub async fn ensure_topic(topic: &KafkaTopic) -> Result<(), SourceFault> {
    let admin: AdminClient<DefaultClientContext> =
        topic.client().create().map_err(|fault| topic.fault(fault))?;
    let retention = topic.retention_ms.to_string();
    let new = NewTopic::new(
        &topic.topic,
        topic.partitions,
        TopicReplication::Fixed(topic.replication),
    )
    .set("retention.ms", &retention)
    .set("cleanup.policy", "delete")
    .set("message.timestamp.type", "LogAppendTime");
    let options = AdminOptions::new()
        .operation_timeout(Some(REQUEST_TIMEOUT))
        .request_timeout(Some(REQUEST_TIMEOUT));
    let outcomes = admin
        .create_topics([&new], &options)
        .await
        .map_err(|fault| topic.fault(fault))?;
    match outcomes.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => check_partitions(topic, admin).await,
        Some(Err((_, code))) => Err(topic.fault(format!("cannot be made: {code}"))),
        Some(Ok(_)) | None => {
            tracing::info!(
                topic = topic.topic,
                partitions = topic.partitions,
                "made the topic of usage events"
            );
            Ok(())
        }
    }
}

async fn check_partitions(
    topic: &KafkaTopic,
    admin: AdminClient<DefaultClientContext>,
) -> Result<(), SourceFault> {
    let name = topic.topic.clone();
    let count = blocking(move || {
        let metadata = admin.inner().fetch_metadata(Some(&name), REQUEST_TIMEOUT)?;
        Ok(metadata
            .topics()
            .first()
            .map_or(0, |topic| topic.partitions().len()))
    });
    let count = count.await.map_err(|fault| topic.fault(fault))?;
    if usize::try_from(topic.partitions) == Ok(count) {
        return Ok(());
    }
    Err(topic.fault(format!(
        "has {count} partitions, but `usage.partitions` is {}; set it to {count} here and on every node",
        topic.partitions
    )))
}

/// Reads the topic.
pub struct KafkaSource {
    topic: KafkaTopic,
    consumer: Arc<StreamConsumer>,
    reached: BTreeMap<i32, i64>,
    /// The topic was made, or found to be as configured.
    ensured: bool,
    /// Brokers are away, and that was said.
    away: bool,
}

impl KafkaSource {
    /// Makes a consumer. Does not wait for a broker.
    pub fn new(topic: KafkaTopic) -> Result<Self, SourceFault> {
        let mut client = topic.client();
        client
            .set("group.id", "tollway-ledger") // librdkafka wants one; it is never used
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "16384");
        let consumer = client.create().map_err(|fault| topic.fault(fault))?;
        Ok(Self {
            topic,
            consumer: Arc::new(consumer),
            reached: BTreeMap::new(),
            ensured: false,
            away: false,
        })
    }

    async fn ensure(&mut self) -> Result<(), SourceFault> {
        if !self.ensured {
            ensure_topic(&self.topic).await?;
            self.ensured = true;
        }
        Ok(())
    }

    fn reached(&self, partition: i32) -> i64 {
        self.reached.get(&partition).copied().unwrap_or(0)
    }

    async fn watermarks(&self) -> Result<BTreeMap<i32, (i64, i64)>, SourceFault> {
        let (consumer, name, partitions) = (
            self.consumer.clone(),
            self.topic.topic.clone(),
            self.topic.partitions,
        );
        let marks = blocking(move || {
            // The library keeps for minutes that a partition had no leader, and this is what makes it ask again.
            consumer.fetch_metadata(Some(&name), WATERMARK_TIMEOUT)?;
            let mut marks = BTreeMap::new();
            for partition in 0..partitions {
                marks.insert(
                    partition,
                    consumer.fetch_watermarks(&name, partition, WATERMARK_TIMEOUT)?,
                );
            }
            Ok(marks)
        });
        marks.await.map_err(|fault| self.topic.fault(fault))
    }

    /// Why an offset could not be read: a loss that only an operator can judge, or retention that has moved on.
    async fn out_of_range(&mut self) -> Result<(), SourceFault> {
        for (partition, (low, high)) in self.watermarks().await? {
            let reached = self.reached(partition);
            if reached > high {
                return Err(SourceFault::Range {
                    partition,
                    reached,
                    low,
                    high,
                });
            }
            if reached < low {
                // What is gone is gone; the sequences after it show how much was lost, as a gap.
                tracing::error!(
                    partition,
                    reached,
                    low,
                    "usage events expired before they were counted"
                );
                self.reached.insert(partition, low);
            }
        }
        self.assign()
    }

    fn assign(&self) -> Result<(), SourceFault> {
        let mut list = TopicPartitionList::new();
        for partition in 0..self.topic.partitions {
            let offset = Offset::Offset(self.reached(partition));
            list.add_partition_offset(&self.topic.topic, partition, offset)
                .map_err(|fault| self.topic.fault(fault))?;
        }
        self.consumer
            .assign(&list)
            .map_err(|fault| self.topic.fault(fault))
    }
}

impl UsageSource for KafkaSource {
    fn seek<'a>(&'a mut self, reached: &'a BTreeMap<i32, i64>) -> BoxFuture<'a, Result<(), SourceFault>> {
        Box::pin(async {
            self.ensure().await?;
            self.reached.clone_from(reached);
            self.assign()
        })
    }

    fn read(&mut self) -> BoxFuture<'_, Result<Vec<Record>, SourceFault>> {
        Box::pin(async {
            let mut records = Vec::new();
            let until = tokio::time::Instant::now() + WAIT;
            while records.len() < RECORDS_MAX {
                let message = match tokio::time::timeout_at(until, self.consumer.recv()).await {
                    Err(_) => break,
                    Ok(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                        self.out_of_range().await?;
                        break;
                    }
                    // The library connects again by itself, and tells of every try: starting over for each would wait a backoff
                    // for each, long after the brokers are back.
                    Ok(Err(fault)) if passes(&fault) => {
                        if !std::mem::replace(&mut self.away, true) {
                            tracing::warn!(error = %fault, "Kafka is not reachable; usage events are counted once it is");
                        }
                        continue;
                    }
                    Ok(Err(fault)) => {
                        if records.is_empty() {
                            return Err(self.topic.fault(fault));
                        }
                        break; // first what is there; the fault comes again
                    }
                    Ok(Ok(message)) => message,
                };
                let record = Record {
                    partition: message.partition(),
                    offset: message.offset(),
                    next: message.offset() + 1,
                    value: message.payload().unwrap_or_default().to_vec(),
                };
                self.reached.insert(record.partition, record.next);
                if std::mem::replace(&mut self.away, false) {
                    tracing::info!("Kafka gives usage events again");
                }
                records.push(record);
            }
            Ok(records)
        })
    }

    fn beginnings(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async {
            self.ensure().await?;
            let marks = self.watermarks().await?;
            Ok(marks
                .into_iter()
                .map(|(partition, (low, _))| (partition, low))
                .collect())
        })
    }

    fn lag(&mut self) -> BoxFuture<'_, Result<BTreeMap<i32, i64>, SourceFault>> {
        Box::pin(async {
            let marks = self.watermarks().await?;
            let lag = |(partition, (_, high))| (partition, high - self.reached(partition));
            Ok(marks.into_iter().map(lag).collect())
        })
    }
}

/// Whether a fault is only about a connection.
fn passes(fault: &KafkaError) -> bool {
    matches!(
        fault.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, String> {
    let outcome = tokio::task::spawn_blocking(work)
        .await
        .map_err(|fault| fault.to_string())?;
    outcome.map_err(|fault| fault.to_string())
}
