//! The ledger: usage events → sums in the replicated state.
//!
//! | file | what |
//! |---|---|
//! | [`rollup`] | pure: a stretch of one partition → `RecordSpend` |
//! | [`judge`] | pure: what is new, what is a repeat |
//! | [`consume`] | the loop, on the leader only |
//! | [`source`], [`kafka`], [`mod@file`] | where events come from |
//! | [`event`], `cell` | a usage event and its cell, read without copying text |
//! | `cluster` | the replicated log as the ledger sees it |

mod cell;
mod cluster;
pub mod consume;
pub mod event;
pub mod file;
pub mod judge;
pub mod kafka;
#[cfg(test)]
mod measure;
pub mod rollup;
#[cfg(test)]
pub(crate) mod sample;
pub mod source;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tollway_proto::usage::TOPIC;
use tollway_shared::secret::KafkaSettings;
use tollway_shared::time::DAY_MS;

use self::consume::{SpendLog, Stored};
use self::file::{FileSource, Retention};
use self::kafka::{KafkaSource, KafkaTopic};
use self::source::{SourceFault, UsageSource};

/// Counter of events counted.
pub const EVENTS_TOTAL: &str = "tollway_ledger_events_total";
/// Counter of repeats dropped.
pub const DUPLICATES_TOTAL: &str = "tollway_ledger_duplicates_total";
/// Counter of events that never came: an alarm.
pub const GAPS_TOTAL: &str = "tollway_ledger_gaps_total";
/// Counter of events whose charge is not counts × prices.
pub const MISMATCHES_TOTAL: &str = "tollway_ledger_mismatches_total";
/// Counter of events that came too late to be told from repeats, and were not counted: an alarm.
pub const LATE_TOTAL: &str = "tollway_ledger_late_total";
/// Counter of records that are no events and were skipped.
pub const MALFORMED_TOTAL: &str = "tollway_ledger_malformed_total";
/// Counter of faults after which the loop started again.
pub const FAULTS_TOTAL: &str = "tollway_ledger_faults_total";
/// Gauge of what is not counted yet, by `partition`: events on Kafka, bytes in the embedded log. As many values as partitions.
pub const LAG: &str = "tollway_ledger_lag";
/// Histogram of the time that one read takes, by `stage`: `read` (waiting for records too), `fold`, `record` (until it is applied).
pub const BATCH_SECONDS: &str = "tollway_ledger_batch_seconds";

/// Where usage events come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Apache Kafka.
    Kafka,
    /// The embedded usage log.
    File,
    /// Nowhere: nothing is counted.
    #[default]
    None,
}

/// `[usage]` of a replica's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where events come from.
    pub source: SourceKind,
    /// Kafka topic.
    pub topic: String,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Copies of each partition, when the topic is made.
    pub replication: i32,
    /// How long events are kept: by Kafka, when the topic is made, and in the embedded log once they are counted.
    pub retention_days: u32,
    /// Most bytes of counted events that the embedded log keeps per partition.
    pub retention_bytes: u64,
    /// Kafka brokers, `host:port` with commas.
    pub brokers: String,
    /// Folder of the embedded usage log; required with `source = "file"`.
    pub dir: Option<PathBuf>,
    /// Settings passed through to librdkafka: TLS, SASL, ….
    pub kafka: KafkaSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: SourceKind::default(),
            topic: TOPIC.into(),
            partitions: 6,
            replication: 3,
            retention_days: 30,
            retention_bytes: 1 << 30,
            brokers: String::new(),
            dir: None,
            kafka: KafkaSettings::default(),
        }
    }
}

impl Settings {
    /// The topic on Kafka, and how to reach it.
    pub fn kafka_topic(&self) -> KafkaTopic {
        KafkaTopic {
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            partitions: self.partitions,
            replication: self.replication,
            retention_ms: i64::from(self.retention_days) * DAY_MS,
            settings: self.kafka.clone(),
        }
    }

    /// What does not go together: the setting, and what to say after its name.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        match self.source {
            SourceKind::File if self.dir.is_none() => Err((
                "usage.dir",
                "is missing; `usage.source = \"file\"` needs it".to_owned(),
            )),
            SourceKind::Kafka if self.brokers.is_empty() => Err((
                "usage.brokers",
                "is missing; `usage.source = \"kafka\"` needs it".to_owned(),
            )),
            SourceKind::None | SourceKind::File | SourceKind::Kafka => Ok(()),
        }
    }
}

/// A setting of `[usage]` that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("`usage.{field}` {detail}")]
pub struct SettingFault {
    /// The setting.
    pub field: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

/// Opens the configured source; `None` when there is none. Waits for nothing.
pub fn open(settings: &Settings) -> Result<Option<Box<dyn UsageSource>>, SettingFault> {
    let fault = |field, detail: &str| SettingFault {
        field,
        detail: detail.to_owned(),
    };
    match settings.source {
        SourceKind::None => Ok(None),
        SourceKind::File => {
            let dir = settings.dir.clone();
            let dir = dir.ok_or_else(|| fault("dir", "is missing; `source = \"file\"` needs it"))?;
            let retention = Retention {
                age: Duration::from_secs(u64::from(settings.retention_days) * DAY_MS.unsigned_abs() / 1_000),
                bytes: settings.retention_bytes,
            };
            Ok(Some(Box::new(FileSource::new(dir, retention))))
        }
        SourceKind::Kafka => {
            if settings.brokers.is_empty() {
                return Err(fault("brokers", "is missing; `source = \"kafka\"` needs it"));
            }
            for (field, value) in [
                ("partitions", settings.partitions),
                ("replication", settings.replication),
            ] {
                if value < 1 {
                    return Err(fault(field, "must be at least 1"));
                }
            }
            let source = KafkaSource::new(settings.kafka_topic())
                .map_err(|why: SourceFault| fault("kafka", &why.to_string()))?;
            Ok(Some(Box::new(source)))
        }
    }
}

/// Counts usage while this replica leads, until `stop`.
///
/// - `stored`: how far this replica's billing store is, which the log is kept for as well; `None` where there is none.
pub async fn run<L: SpendLog>(
    source: Option<Box<dyn UsageSource>>,
    log: L,
    stored: Option<Stored>,
    stop: CancellationToken,
) {
    match source {
        Some(source) => consume::run(log, source, stored, stop).await,
        None => stop.cancelled().await,
    }
}
