//! One life between two faults: a Kafka consumer, a database connection, and where they are.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use crate::Args;
use crate::fold;
use crate::store::{Store, Stretch};

/// Records per transaction, and how long one waits for them.
const BATCH: (usize, Duration) = (5_000, Duration::from_millis(500));
/// How long one look into the queue takes at most.
const POLL: Duration = Duration::from_millis(100);
/// How long Kafka may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// The topic does not hold what was counted already: only an operator can say what that means.
#[derive(Debug, thiserror::Error)]
#[error("partition {partition} ends at {high}, but {reached} is counted; was the topic made anew?")]
pub(crate) struct Lost {
    partition: i32,
    high: i64,
    reached: i64,
}

/// What the group's calls share with the loop. Both run on one thread, so neither ever waits for the other.
struct Shared {
    topic: String,
    store: Mutex<Store>,
    /// Where each partition is, as this reader knows: the database must agree, or somebody else has been there.
    reached: Mutex<BTreeMap<i32, i64>>,
    fault: Mutex<Option<anyhow::Error>>,
}

impl ClientContext for Shared {}

impl ConsumerContext for Shared {
    /// Partitions come at the offsets of the database, and go without further ado: nothing is in hand, because a batch is stored
    /// before the next one is asked for.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions)
        } else {
            lock(&self.reached).clear();
            consumer.unassign().map_err(anyhow::Error::from)
        };
        if let Err(fault) = done {
            *lock(&self.fault) = Some(fault);
        }
    }
}

impl Shared {
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<()> {
        let mut list = TopicPartitionList::new();
        let mut reached = BTreeMap::new();
        for one in partitions.elements() {
            let offset = lock(&self.store).offset(one.partition())?;
            list.add_partition_offset(&self.topic, one.partition(), Offset::Offset(offset))?;
            reached.insert(one.partition(), offset);
        }
        tracing::info!(partitions = ?reached, "reading");
        *lock(&self.reached) = reached;
        Ok(consumer.assign(&list)?)
    }
}

/// See the head of this file.
pub(crate) struct Reader {
    consumer: BaseConsumer<Shared>,
}

impl Reader {
    pub(crate) fn open(args: &Args) -> Result<Self> {
        let shared = Shared {
            topic: args.topic.clone(),
            store: Mutex::new(Store::open(&args.store, &args.topic)?),
            reached: Mutex::default(),
            fault: Mutex::default(),
        };
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &args.brokers)
            .set("group.id", &args.group)
            .set("client.id", "tollway-usage-example")
            .set("enable.auto.commit", "false")
            // The offsets are in the database; one that Kafka does not hold is an alarm, not a reason to begin elsewhere.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed");
        for setting in &args.kafka {
            let (name, value) = setting.split_once('=').context("--kafka takes NAME=VALUE")?;
            config.set(name, value);
        }
        let consumer: BaseConsumer<Shared> = config.create_with_context(shared)?;
        consumer.subscribe(&[&args.topic])?;
        Ok(Self { consumer })
    }

    /// Reads a batch and counts it.
    pub(crate) fn turn(&mut self) -> Result<()> {
        let stretches = self.read()?;
        if stretches.is_empty() {
            return Ok(());
        }
        let shared = self.consumer.context();
        let folds = lock(&shared.store).record(&stretches)?;
        let mut ends = TopicPartitionList::new();
        for (stretch, found) in stretches.iter().zip(folds) {
            let partition = stretch.partition;
            for gap in found.gaps {
                let missing = gap.sequence - gap.after - 1;
                tracing::error!(
                    partition,
                    offset = gap.offset,
                    writer = gap.writer,
                    missing,
                    "ALARM: usage events are missing"
                );
            }
            for (offset, why) in &stretch.rejected {
                tracing::error!(partition, offset, why, "the record is no usage event");
            }
            lock(&shared.reached).insert(partition, stretch.end);
            ends.add_partition_offset(&shared.topic, partition, Offset::Offset(stretch.end))?;
        }
        // For those who look at the group's lag; nothing is read from it.
        Ok(self.consumer.commit(&ends, CommitMode::Async)?)
    }

    /// The next records as stretches, one per partition.
    fn read(&self) -> Result<Vec<Stretch>> {
        let mut stretches: BTreeMap<i32, Stretch> = BTreeMap::new();
        let (mut records, until) = (0, Instant::now() + BATCH.1);
        while records < BATCH.0 && Instant::now() < until {
            let Some(next) = self.consumer.poll(POLL) else {
                continue;
            };
            let message = match next {
                Ok(message) => message,
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    return self.out_of_range();
                }
                Err(fault) if passes(&fault) => {
                    tracing::warn!(%fault, "kafka");
                    continue;
                }
                Err(fault) => return Err(fault.into()),
            };
            let (partition, offset) = (message.partition(), message.offset());
            let Some(begin) = lock(&self.consumer.context().reached).get(&partition).copied() else {
                continue;
            };
            if offset < begin {
                continue; // fetched before the partition went and came back
            }
            let stretch = stretches.entry(partition).or_insert_with(|| Stretch {
                partition,
                begin,
                end: begin,
                events: Vec::new(),
                rejected: Vec::new(),
            });
            stretch.end = offset + 1;
            match fold::parse(partition, offset, message.payload().unwrap_or_default()) {
                Ok(event) => stretch.events.push(event),
                Err(why) => stretch.rejected.push((offset, why.to_string())),
            }
            records += 1;
        }
        let shared = self.consumer.context();
        if let Some(fault) = lock(&shared.fault).take() {
            return Err(fault);
        }
        // Those that went while the batch was read are left to whoever has them now.
        let reached = lock(&shared.reached);
        Ok(stretches
            .into_values()
            .filter(|one| reached.get(&one.partition) == Some(&one.begin))
            .collect())
    }

    /// Kafka does not hold a stored offset: retention has passed it by, or the topic is another one.
    fn out_of_range(&self) -> Result<Vec<Stretch>> {
        let shared = self.consumer.context();
        let reached = lock(&shared.reached).clone();
        for (partition, reached) in reached {
            let (low, high) = self
                .consumer
                .fetch_watermarks(&shared.topic, partition, REQUEST)?;
            if reached > high {
                return Err(Lost {
                    partition,
                    high,
                    reached,
                }
                .into());
            }
            if reached < low {
                tracing::error!(
                    partition,
                    reached,
                    low,
                    "ALARM: usage events expired before they were counted"
                );
                lock(&shared.store).skip(partition, reached, low)?;
            }
        }
        bail!("an offset was out of range");
    }
}

/// Whether a fault is only about a connection: the library connects again by itself.
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // One thread takes all of these; a panic in it ends the process.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
