//! The billing store: usage in detail, in SQL, for whoever reads it.
//!
//! The replicated state holds what budgets need, sums by day; this holds the rest. It is written by [`tail`], which reads the whole usage
//! log on its own: on every replica for SQLite (each has its copy), on one at a time for PostgreSQL (all share it). Rows and the log's
//! offset move in one transaction, so each event is in it once whatever crashes; the rule of what is new is that of the replicated sums
//! ([`judge`](crate::ledger::judge)). It may be thrown away: what the usage log still holds comes back, row by row the same. A SQLite
//! file that is damaged or of another shape is renamed, not removed.
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
//! | `progress` | a partition of the usage log | `first_offset`, `next_offset`, `oldest_at` (about when what it has begins), `newest_at` so far |
//! | `writer` | a writer in a partition | its highest `sequence`, and when that was by the log's time |
//! | `meta` | a fact of the store | `cluster`; in PostgreSQL also the `schema` number |
//!
//! In PostgreSQL they lie in the schema [`postgres::schema`], and one replica at a time writes them. Whoever reads uses
//! [`Billing::query`] for sums by any dimensions, and [`Billing::select`] for any other SQL.
//!
//! `charge` is the list price and the sum of its lines; `billed` is what the tenant owes. `generation.request_id` is what callers got as
//! `x-tollway-request-id` and `gen-…`; `generation.attempts` is the event's JSON.
//!
//! | file | what |
//! |---|---|
//! | [`cell`], [`histogram`], [`progress`] | pure: what rows are made of |
//! | [`fold`] | pure: usage events → rows |
//! | [`schema`] | the tables, as SQL |
//! | [`query`], [`read`] | what may be asked, as SQL; reading either backend |
//! | [`lines`] | hourly rows out of it, for reports |
//! | [`store`], [`sqlite`], [`postgres`], [`connect`] | writing either backend |
//! | [`tail`], [`hold`] | the loop that reads the usage log; how it is held still |
//! | [`reconcile`], [`check`] | whether the store and the replicated sums say the same |
//! | [`publish`], [`topic`] | sums by the hour on Kafka, by the leader |
//! | [`hours`] | pure: what these sums are asked by, and what the answers mean |

pub mod cell;
pub mod check;
pub mod connect;
pub mod fold;
pub mod histogram;
pub mod hold;
pub mod hours;
pub mod lines;
#[cfg(test)]
mod measure;
pub mod postgres;
pub mod progress;
pub mod publish;
pub mod query;
pub mod read;
pub mod reconcile;
#[cfg(test)]
pub(crate) mod sample;
pub mod schema;
pub mod sqlite;
pub mod store;
pub mod tail;
#[cfg(test)]
mod tests;
pub mod topic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, watch};
use tollway_shared::time::{DAY_MS, UnixMillis};

use self::connect::Server;
use self::hold::Hold;
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
    /// In a server that all replicas share.
    Postgres,
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
    /// Where PostgreSQL is, without a password; required with `store = "postgres"`.
    pub url: Option<String>,
    /// The environment variable with the password for PostgreSQL, if it wants one.
    pub password_env: Option<String>,
    /// PEM file of who signs the certificate of PostgreSQL; default: the public authorities.
    pub ca_file: Option<PathBuf>,
    /// How long single generations are kept. Rows by hour stay.
    pub generations_days: u32,
    /// Kafka topic of sums by organization and hour, which the leader publishes; empty: none.
    pub topic: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store: StoreKind::default(),
            path: None,
            url: None,
            password_env: None,
            ca_file: None,
            generations_days: 30,
            topic: tollway_proto::billing::TOPIC.into(),
        }
    }
}

impl Settings {
    /// What does not go together: the setting, and what to say after its name.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let of = |kind, name: &str, is_set: bool| {
            let detail = format!("is only for `billing.store = \"{name}\"`; remove it");
            if is_set && self.store != kind {
                Err(detail)
            } else {
                Ok(())
            }
        };
        let server = |is_set| of(StoreKind::Postgres, "postgres", is_set);
        of(StoreKind::Sqlite, "sqlite", self.path.is_some()).map_err(|why| ("billing.path", why))?;
        server(self.url.is_some()).map_err(|why| ("billing.url", why))?;
        server(self.password_env.is_some()).map_err(|why| ("billing.password_env", why))?;
        server(self.ca_file.is_some()).map_err(|why| ("billing.ca_file", why))?;
        match (&self.url, self.store) {
            (None, StoreKind::Postgres) => {
                let detail = "is missing; `billing.store = \"postgres\"` needs it".to_owned();
                Err(("billing.url", detail))
            }
            (Some(url), _) => Server::check(url).map_err(|why| ("billing.url", why)),
            (None, StoreKind::Sqlite | StoreKind::None) => Ok(()),
        }
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
    /// PostgreSQL says no, or is not there. Its own words are in the source: the library's say little.
    #[error("the billing store in PostgreSQL: {}", of_server(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// It took too long.
    #[error("the billing store did not answer in time; ask for fewer days")]
    Slow,
    /// More rows than one answer may have.
    #[error("the billing store has too many rows for that; ask for fewer days")]
    Many,
    /// It is not as we write it.
    #[error("the billing store is not as it should be: {0}")]
    Shape(&'static str),
    /// Another replica writes it.
    #[error("another replica writes the billing store; ask that one")]
    Elsewhere,
    /// A file cannot be removed or renamed.
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

/// What the server said.
fn of_server(fault: &tokio_postgres::Error) -> String {
    match std::error::Error::source(fault) {
        Some(source) => format!("{fault}: {source}"),
        None => fault.to_string(),
    }
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
    /// When the log was last seen to have nothing beyond the store, at whatever time that was.
    pub measured_at: Option<UnixMillis>,
}

impl Freshness {
    /// An instant of which everything that was in the partition is in the store.
    pub fn as_of(&self) -> Option<UnixMillis> {
        let newest = self.progress.newest_end();
        newest.max(self.measured_at)
    }
}

/// The store, for those who read.
#[derive(Debug, Clone)]
pub struct Billing {
    place: Arc<Place>,
    readers: Arc<Semaphore>,
    holds: mpsc::Sender<Hold>,
    fresh: watch::Receiver<BTreeMap<i32, Freshness>>,
}

/// Where a store is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Nowhere.
    None,
    /// A SQLite file.
    File(PathBuf),
    /// PostgreSQL.
    Server(Box<Server>),
}

impl Place {
    /// The store that is configured, or the setting that is wrong and why. There is none without a usage log.
    pub fn of(
        settings: &Settings,
        data_dir: &Path,
        has_source: bool,
    ) -> Result<Self, (&'static str, String)> {
        settings.check()?;
        match settings.store {
            StoreKind::Sqlite if has_source => {
                let path = settings.path.clone();
                Ok(Self::File(path.unwrap_or_else(|| data_dir.join(FILE))))
            }
            StoreKind::Postgres if has_source => {
                let url = settings.url.as_deref().unwrap_or_default();
                let password = settings.password_env.as_ref().map(std::env::var).transpose();
                let password = password.map_err(|fault| ("billing.password_env", fault.to_string()))?;
                let server = Server::new(url, password.as_deref(), settings.ca_file.as_deref());
                let server = server.map_err(|why| ("billing.ca_file", why))?;
                Ok(Self::Server(Box::new(server)))
            }
            StoreKind::Sqlite | StoreKind::Postgres | StoreKind::None => Ok(Self::None),
        }
    }
}

/// The tail's ends of what it and readers share.
#[derive(Debug)]
pub struct Shared {
    told: watch::Sender<BTreeMap<i32, Freshness>>,
    holds: mpsc::Receiver<Hold>,
}

impl Billing {
    /// A store and the ends that its tail holds.
    pub fn new(place: Place) -> (Self, Shared) {
        let (told, fresh) = watch::channel(BTreeMap::new());
        let (holds, held) = mpsc::channel(1);
        let billing = Self {
            place: Arc::new(place),
            readers: Arc::new(Semaphore::new(read::READERS)),
            holds,
            fresh,
        };
        (billing, Shared { told, holds: held })
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
