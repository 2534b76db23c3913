//! The billing store: usage in detail, in SQL, for whoever reads it.
//!
//! The replicated state holds what budgets need, sums by day; this holds the rest. It is written by [`tail`], which reads the whole usage
//! log on its own: on every replica for SQLite (each has its copy), on one at a time for PostgreSQL (all share it). Rows and the log's
//! offset move in one transaction, so each event is in it once whatever crashes; the rule of what is new is that of the replicated sums
//! ([`judge`](crate::ledger::judge)). It may be thrown away: what the usage log still holds comes back, row by row the same.
//!
//! # Tables
//!
//! Money is whole nano-dollars, never a float; instants are milliseconds and hours are hours since 1970, UTC; text that there is not is
//! the empty text in dimensions and NULL elsewhere.
//!
//! | table | a row is | columns |
//! |---|---|---|
//! | `rollup` | an hour (in which requests started) of a series | `hour`, `series`, every [`Sum`](cell::Sum), `first_byte_ms` and `total_ms` ([`histogram`]) |
//! | `series` | one combination of [`Dimension`](cell::Dimension)s | `id`, the dimensions, `prices` (those of the price version, as the usage event's JSON) |
//! | `generation` | an event, for `billing.generations_days` | `id` (as they came), `series`, what [`GENERATION`](schema::GENERATION) lists, and the sums that one event has |
//! | `usage_by_hour` (view) | as `rollup` | with the dimensions instead of `series`: the one to query by hand |
//! | `progress` | a partition of the usage log | `first_offset`, `next_offset`, `oldest_at` of the first stretch, `newest_at` so far |
//! | `writer` | a writer in a partition | its highest `sequence`, and when that was by the log's time |
//! | `meta` | a fact of the store | `cluster`; in PostgreSQL also the `schema` number |
//!
//! `charge` is the list price and the sum of its lines; `billed` is what the tenant owes. `generation.request_id` is what callers got as
//! `x-tollway-request-id` and `gen-…`; `generation.attempts` is the event's JSON.
//!
//! | file | what |
//! |---|---|
//! | [`cell`], [`histogram`], [`progress`] | pure: what rows are made of |
//! | [`event`], [`fold`] | pure: usage events → rows |
//! | [`schema`] | the tables, as SQL |
//! | [`sqlite`] | the store in a file |
//! | [`lines`] | hourly rows out of it, for reports |
//! | [`tail`] | the loop that reads the usage log |

pub mod cell;
pub mod event;
pub mod fold;
pub mod histogram;
pub mod lines;
#[cfg(test)]
mod measure;
pub mod progress;
#[cfg(test)]
pub(crate) mod sample;
pub mod schema;
pub mod sqlite;
pub mod tail;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tollway_shared::time::DAY_MS;

use self::progress::Progress;

/// The file of the SQLite store in the data folder.
pub const FILE: &str = "billing.sqlite";

/// Where usage is kept in detail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// In a file of this replica.
    #[default]
    Sqlite,
    /// Nowhere: usage is the replicated sums by day.
    None,
}

/// `[billing]` of a replica's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where usage is kept in detail.
    pub store: StoreKind,
    /// File of the SQLite store; default: `billing.sqlite` in the data folder.
    pub path: Option<PathBuf>,
    /// How long single generations are kept. Rows by hour stay.
    pub generations_days: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store: StoreKind::default(),
            path: None,
            generations_days: 30,
        }
    }
}

impl Settings {
    /// What does not go together: the setting, and what to say after its name.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.path.is_some() && self.store != StoreKind::Sqlite {
            let detail = "is only for `billing.store = \"sqlite\"`; remove it".to_owned();
            return Err(("billing.path", detail));
        }
        Ok(())
    }

    /// How long single generations are kept, milliseconds.
    pub fn generations_ms(&self) -> i64 {
        i64::from(self.generations_days) * DAY_MS
    }
}

/// Why a store does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// SQLite says no.
    #[error("the billing store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A file cannot be removed.
    #[error("the billing store {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The store was made for another cluster.
    #[error("the billing store belongs to cluster `{0}`; name another one in `[billing]`")]
    OtherCluster(String),
    /// Somebody else has moved a partition's offset.
    #[error("somebody else writes partition {0} of the billing store")]
    Moved(i32),
    /// The usage log cannot be read.
    #[error(transparent)]
    Source(#[from] crate::ledger::source::SourceFault),
    /// A task of ours panicked.
    #[error("the billing store: a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// There is no store, or it is not open yet.
    #[error("there is no billing store on this replica")]
    Absent,
}

impl StoreFault {
    /// Whether the file itself is damaged, so that it has to be made anew.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sqlite(fault) => {
                matches!(fault.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
            }
            _ => false,
        }
    }
}

/// How fresh one partition is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How far it is.
    pub progress: Progress,
    /// What the log has beyond that, when it was last measured: events on Kafka, bytes in the embedded log.
    pub lag: Option<i64>,
}

/// The store, for those who read.
#[derive(Debug, Clone)]
pub struct Billing {
    place: Arc<Place>,
    fresh: watch::Receiver<BTreeMap<i32, Freshness>>,
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    None,
    /// A SQLite file.
    File(PathBuf),
}

impl Place {
    /// The store that is configured. There is none without a usage log.
    pub fn of(settings: &Settings, data_dir: &Path, has_source: bool) -> Self {
        match settings.store {
            StoreKind::Sqlite if has_source => {
                Self::File(settings.path.clone().unwrap_or_else(|| data_dir.join(FILE)))
            }
            StoreKind::Sqlite | StoreKind::None => Self::None,
        }
    }
}

/// What the tail tells readers.
pub type Told = watch::Sender<BTreeMap<i32, Freshness>>;

impl Billing {
    /// A store and the end on which its tail tells how far it is.
    pub fn new(place: Place) -> (Self, Told) {
        let (told, fresh) = watch::channel(BTreeMap::new());
        let place = Arc::new(place);
        (Self { place, fresh }, told)
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How far it is, by partition. Empty until its tail has opened it.
    pub fn freshness(&self) -> BTreeMap<i32, Freshness> {
        self.fresh.borrow().clone()
    }

    /// Follows [`Billing::freshness`].
    pub fn watch(&self) -> watch::Receiver<BTreeMap<i32, Freshness>> {
        self.fresh.clone()
    }
}
