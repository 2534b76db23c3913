//! Many nodes' worth of usage events, straight to Kafka, and the generator's own count of them.
//!
//! Each simulated writer does what a node's spool does: dense sequences per partition, an organization always in its partition, and
//! after a "restart" either its last records once more or a new incarnation that begins at one.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tollway_proto::usage::{UsageEvent, UsageSource, partition_of};
use tollway_shared::cost;
use tollway_shared::ids::{ApiKeyId, ModelId, OrganizationId, RequestId, WriterId};
use tollway_shared::time::UnixMillis;
use tollway_tests::cluster::{PARTITIONS, TOPIC};

/// Simulated nodes at a time.
const WRITERS: usize = 12;
/// Organizations, keys of each, models.
const TENANTS: (usize, usize, usize) = (24, 2, 3);
/// Hours over which requests start; events are of these many hours before the first one's end.
const HOURS: i64 = 30;
/// Records that a writer sends again after a restart, at most.
const AGAIN_MAX: usize = 60;
/// One in this many events is followed by a restart of its writer; one in ten of those is a new incarnation.
const RESTART: u32 = 250;
/// How long the brokers may take for what is in flight at the end.
const FLUSH: Duration = Duration::from_secs(300);

/// Organization, key, model, hour since 1970.
pub(crate) type Cell = (String, String, String, i64);
/// Requests, tokens by kind, list price, billed; money in nano-dollars.
pub(crate) type Sums = [i128; 8];

/// The generator.
pub(crate) struct Flood {
    rng: ChaCha8Rng,
    template: UsageEvent,
    now: UnixMillis,
    writers: Vec<Writer>,
    producer: ThreadedProducer<DefaultProducerContext>,
    /// What was sent, each event once.
    pub(crate) cells: BTreeMap<Cell, Sums>,
    /// Events.
    pub(crate) events: u64,
    /// Records: events, and those sent again.
    pub(crate) records: u64,
}

#[derive(Default)]
struct Writer {
    id: u128,
    sequences: BTreeMap<i32, u64>,
    /// The last records by partition, to send again.
    last: BTreeMap<i32, VecDeque<Vec<u8>>>,
}

impl Flood {
    pub(crate) fn new(bootstrap: &str, seed: u64, now: UnixMillis) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let fresh = |rng: &mut ChaCha8Rng| Writer {
            id: rng.random(),
            ..Writer::default()
        };
        Ok(Self {
            writers: (0..WRITERS).map(|_| fresh(&mut rng)).collect(),
            rng,
            template: serde_json::from_str(include_str!("../../../proto/examples/usage-event.v1.json"))?,
            now,
            producer: ClientConfig::new()
                .set("bootstrap.servers", bootstrap)
                .set("enable.idempotence", "true")
                .set("acks", "all")
                .set("compression.type", "zstd")
                .set("linger.ms", "20")
                // An outage is waited out, however long: a spool would do the same.
                .set("message.timeout.ms", "0")
                .create()?,
            cells: BTreeMap::new(),
            events: 0,
            records: 0,
        })
    }

    /// Hands `count` new events to the producer, and what is sent again between them.
    pub(crate) fn send(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let writer = self.rng.random_range(0..WRITERS);
            let event = self.event(writer)?;
            let partition = event.partition;
            add(&mut self.cells, &event);
            self.events += 1;
            let bytes = serde_json::to_vec(&event)?;
            self.hand_over(&event, &bytes)?;
            let last = self.writers[writer].last.entry(partition).or_default();
            last.push_back(bytes);
            if last.len() > AGAIN_MAX {
                last.pop_front();
            }
            if self.rng.random_ratio(1, RESTART) {
                self.restart(writer)?;
            }
        }
        Ok(())
    }

    /// Waits until the brokers have everything.
    pub(crate) fn flush(&self) -> Result<()> {
        Ok(self.producer.flush(FLUSH)?)
    }

    fn event(&mut self, writer: usize) -> Result<UsageEvent> {
        let rng = &mut self.rng;
        let mut event = self.template.clone();
        let organization = format!("flood-{}", rng.random_range(0..TENANTS.0));
        let id: u128 = rng.random();
        (event.id, event.request_id) = (format!("{id:032x}"), RequestId::trusted(format!("gen-{id:032x}")));
        event.tenant.key =
            ApiKeyId::trusted(format!("{organization}-key-{}", rng.random_range(0..TENANTS.1)));
        event.model = ModelId::trusted(format!("acme/flood-{}", rng.random_range(0..TENANTS.2)));
        event.started_at.0 = self.now.plus_ms(-rng.random_range(0..HOURS * 3_600_000));
        event.first_byte_at = Some(tollway_proto::usage::UnixMillisText(
            event.started_at.0.plus_ms(400),
        ));
        event.finished_at.0 = event.started_at.0.plus_ms(rng.random_range(400..20_000));
        event.user = rng
            .random_bool(0.2)
            .then(|| format!("user-{}", rng.random_range(0..3)));
        event.tokens.input = rng.random_range(0..100_000);
        event.tokens.input_cache_read = rng.random_range(0..5_000);
        event.tokens.output = rng.random_range(0..20_000);
        event.tokens.output_reasoning = rng.random_range(0..500);
        if rng.random_ratio(1, 20) {
            (event.usage_source, event.estimator) = (UsageSource::Estimated, Some("bytes/4".into()));
        }
        event.byok = rng.random_ratio(1, 15);
        event.partition = partition_of(&organization, PARTITIONS);
        event.tenant.organization = OrganizationId::trusted(organization);
        let writer = &mut self.writers[writer];
        event.writer = WriterId(writer.id);
        let sequence = writer.sequences.entry(event.partition).or_default();
        *sequence += 1;
        event.sequence = *sequence;
        let charge = cost::charge(&event.tokens, &event.prices)?;
        event.state_charge(charge);
        Ok(event)
    }

    fn restart(&mut self, writer: usize) -> Result<()> {
        if self.rng.random_ratio(1, 10) {
            let id = self.rng.random();
            self.writers[writer] = Writer {
                id,
                ..Writer::default()
            };
            return Ok(());
        }
        let last = std::mem::take(&mut self.writers[writer].last);
        for records in last.values() {
            let again = self.rng.random_range(0..=records.len());
            for bytes in records.range(records.len() - again..) {
                let event: UsageEvent = serde_json::from_slice(bytes)?;
                self.hand_over(&event, bytes)?;
            }
        }
        self.writers[writer].last = last;
        Ok(())
    }

    fn hand_over(&mut self, event: &UsageEvent, bytes: &[u8]) -> Result<()> {
        let mut headers = rdkafka::message::OwnedHeaders::new();
        for (key, value) in event.headers() {
            headers = headers.insert(rdkafka::message::Header {
                key,
                value: Some(value.as_str()),
            });
        }
        let key = event.tenant.organization.as_str();
        let mut record = BaseRecord::to(TOPIC)
            .key(key)
            .payload(bytes)
            .partition(event.partition)
            .headers(headers);
        let begun = Instant::now();
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if begun.elapsed() < FLUSH =>
                {
                    record = back;
                    // A full queue empties at the brokers' pace, not at ours.
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((fault, _)) => bail!("the producer refused a record: {fault}"),
            }
        }
        self.records += 1;
        Ok(())
    }
}

/// Counts one event.
pub(crate) fn add(cells: &mut BTreeMap<Cell, Sums>, event: &UsageEvent) {
    let cell = (
        event.tenant.organization.to_string(),
        event.tenant.key.to_string(),
        event.model.to_string(),
        event.started_at.0.0.div_euclid(3_600_000),
    );
    let tokens = event.tokens;
    let more = [
        1,
        tokens.input.into(),
        tokens.input_cache_read.into(),
        tokens.cache_write().into(),
        tokens.output.into(),
        tokens.output_reasoning.into(),
        event.charge.total.0.into(),
        event.billed.0.into(),
    ];
    for (sum, more) in cells.entry(cell).or_default().iter_mut().zip(more) {
        *sum += more;
    }
}
