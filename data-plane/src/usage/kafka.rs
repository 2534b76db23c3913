//! The Kafka sink: one idempotent producer per process.
//!
//! Order is what the ledger's deduplication rests on, so a record that fails must stop those behind it: no message timeout, and
//! librdkafka's gapless guarantee, which turns any possible gap into a fatal error. The shipper then opens a new producer and
//! hands over again from the first undelivered record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Thread;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, ProducerContext, ThreadedProducer};
use tollway_proto::spool::OutcomeRecord;
use tollway_shared::secret::KafkaSettings;

use super::sink::{Handed, Sink, SinkFault, Ticket};

/// What is set unless the operator says otherwise.
const DEFAULTS: [(&str, &str); 5] = [
    ("client.id", "tollway-data"),
    ("compression.type", "zstd"),
    ("linger.ms", "20"),
    ("reconnect.backoff.max.ms", "1000"),
    ("topic.metadata.refresh.interval.ms", "60000"),
];

/// What the promises of this module rest on; not the operator's to change.
const FIXED: [(&str, &str); 4] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("enable.gapless.guarantee", "true"),
    ("message.timeout.ms", "0"),
];

/// Where to produce.
#[derive(Debug, Clone)]
pub(super) struct KafkaTarget {
    pub(super) brokers: String,
    pub(super) topic: String,
    /// librdkafka settings, passed through.
    pub(super) settings: KafkaSettings,
}

impl KafkaTarget {
    /// The client's configuration, or which setting is not the operator's.
    pub(super) fn client(&self) -> Result<ClientConfig, String> {
        let mut client = ClientConfig::new();
        for (name, value) in DEFAULTS {
            client.set(name, value);
        }
        for (name, value) in &self.settings.0 {
            let alias = matches!(name.as_str(), "request.required.acks" | "delivery.timeout.ms");
            if name == "bootstrap.servers" || name == "metadata.broker.list" {
                return Err(format!("`{name}` is set by `brokers`"));
            }
            if alias || name == "transactional.id" || FIXED.iter().any(|(fixed, _)| fixed == name) {
                return Err(format!(
                    "`{name}` cannot be changed: exactly-once billing rests on it"
                ));
            }
            client.set(name, value);
        }
        for (name, value) in FIXED {
            client.set(name, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client.set_log_level(RDKafkaLogLevel::Warning);
        Ok(client)
    }
}

/// The producer.
pub(super) struct KafkaSink {
    topic: String,
    producer: ThreadedProducer<Deliveries>,
    results: Receiver<Result<Ticket, String>>,
}

impl KafkaSink {
    /// Makes a producer. Does not wait for a broker. To be called by the shipper's thread, which deliveries wake.
    pub(super) fn open(target: &KafkaTarget) -> Result<Self, SinkFault> {
        let (sender, results) = mpsc::channel(); // holds at most what is in flight, which the shipper bounds
        let context = Deliveries {
            sender,
            shipper: std::thread::current(),
            down: AtomicBool::new(false),
        };
        let client = target.client().map_err(SinkFault)?;
        let producer = client
            .create_with_context(context)
            .map_err(|fault| SinkFault(format!("Kafka producer: {fault}")))?;
        Ok(Self {
            topic: target.topic.clone(),
            producer,
            results,
        })
    }
}

impl Sink for KafkaSink {
    fn hand(&mut self, ticket: Ticket, record: &OutcomeRecord) -> Result<Handed, SinkFault> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(value.as_bytes()),
            });
        }
        let message = BaseRecord::with_opaque_to(&self.topic, Box::new(ticket))
            .partition(record.partition)
            .key(&record.organization)
            .payload(&record.event)
            .headers(headers);
        match self.producer.send(message) {
            Ok(()) => Ok(Handed::Taken),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(Handed::Busy),
            Err((fault, _)) => Err(SinkFault(format!("Kafka topic `{}`: {fault}", self.topic))),
        }
    }

    fn delivered(&mut self, tickets: &mut Vec<Ticket>) -> Result<(), SinkFault> {
        for result in self.results.try_iter() {
            match result {
                Ok(ticket) => tickets.push(ticket),
                Err(fault) => return Err(SinkFault(format!("Kafka topic `{}`: {fault}", self.topic))),
            }
        }
        Ok(())
    }
}

/// Takes delivery reports on librdkafka's thread to the shipper.
struct Deliveries {
    sender: Sender<Result<Ticket, String>>,
    shipper: Thread,
    down: AtomicBool,
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, fault: KafkaError, reason: &str) {
        // Repeats every second while brokers are away; the age of the oldest event is what alerts.
        if !self.down.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %fault, reason, "Kafka is not reachable; usage events stay in the spool");
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        let result = match result {
            Ok(_) => {
                if self.down.swap(false, Ordering::Relaxed) {
                    tracing::info!("Kafka takes usage events again");
                }
                Ok(*ticket)
            }
            Err((fault, _)) => Err(fault.to_string()),
        };
        let _ = self.sender.send(result); // fails only when the sink is being given up
        self.shipper.unpark();
    }
}
