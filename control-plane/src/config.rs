//! Settings of one replica: a TOML file, then `TOLLWAY_CONTROL_*`, then flags. Unknown keys refuse to start and name the line.
//!
//! What tenants change is never in here: that is the admin API's.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tollway_shared::settings::{DAY_MS, Number, is_host_and_port, line_of, log_filter_problem};

use crate::raft::Timings;
use crate::{billing, ledger};

/// Everything a replica is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it keeps its log, identity and sealing key.
    pub data_dir: PathBuf,
    /// The admin listener.
    pub admin: Admin,
    /// The listener for replicas and nodes.
    pub peer: Peer,
    /// The sealing key.
    pub seal: SealKey,
    /// Where usage events come from.
    pub usage: ledger::Settings,
    /// Where usage is kept in detail.
    pub billing: billing::Settings,
    /// Timings of the replicated log.
    pub raft: Timings,
    /// Its own log lines.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/tollway-control"),
            admin: Admin::default(),
            peer: Peer::default(),
            seal: SealKey::default(),
            usage: ledger::Settings::default(),
            billing: billing::Settings::default(),
            raft: Timings::default(),
            log: Log::default(),
        }
    }
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port.
    pub listen: SocketAddr,
    /// The base URL under which others reach it; default: from `listen`.
    pub advertise_url: Option<String>,
    /// TLS with the cluster's certificates, or none.
    pub tls: AdminTls,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7600)),
            advertise_url: None,
            tls: AdminTls::Cluster,
        }
    }
}

/// How the admin listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminTls {
    /// TLS with a certificate of the cluster's authority.
    Cluster,
    /// Plain HTTP, on loopback only.
    Off,
}

/// `[peer]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peer {
    /// Address and port.
    pub listen: SocketAddr,
    /// `host:port` under which replicas and nodes reach it; default: `listen`.
    pub advertise: Option<String>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7601)),
            advertise: None,
        }
    }
}

/// `[seal]`: the 256-bit key that is not in the log, as 64 hex digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SealKey {
    /// The file it is in, readable by its owner only; default: `<data_dir>/seal.key`.
    pub key_file: Option<PathBuf>,
    /// The environment variable it is in, instead of a file.
    pub key_env: Option<String>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,tollway_control::raft=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings from the environment or flags, which win over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `admin.listen`.
    pub admin_listen: Option<SocketAddr>,
    /// `admin.advertise_url`.
    pub admin_advertise_url: Option<String>,
    /// `peer.listen`.
    pub peer_listen: Option<SocketAddr>,
    /// `peer.advertise`.
    pub peer_advertise: Option<String>,
    /// `log.level`.
    pub log_level: Option<String>,
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be. The text names line and key.
    #[error("{path}: {text}")]
    Toml {
        /// Which one.
        path: String,
        /// What and where.
        text: String,
    },
    /// A value that cannot be, or does not fit another one.
    #[error("`{key}` {detail}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What is wrong and what to do.
        detail: String,
    },
}

impl ConfigFault {
    /// The setting, when it is one setting's fault.
    fn key(&self) -> Option<&'static str> {
        match self {
            Self::Value { key, .. } => Some(key),
            Self::File { .. } | Self::Toml { .. } => None,
        }
    }
}

fn value(key: &'static str, detail: impl Into<String>) -> ConfigFault {
    ConfigFault::Value {
        key,
        detail: detail.into(),
    }
}

impl Config {
    /// Reads the file, puts the overrides on top and checks what comes out.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigFault> {
        let Some(path) = file else {
            let mut config = Self::default();
            config.overlay(overrides);
            config.check()?;
            return Ok(config);
        };
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigFault::File {
            path: shown.clone(),
            source,
        })?;
        let in_file = Self::parse(&text).map_err(|error| ConfigFault::Toml {
            path: shown.clone(),
            text: error.to_string(),
        })?;
        let mut config = in_file.clone();
        config.overlay(overrides);
        config.check().map_err(|fault| {
            let line = fault.key().and_then(|key| line_of(&text, key));
            // What an override brought is not the file's fault.
            let is_of_file = in_file.check().is_err_and(|of_file| of_file.key() == fault.key());
            match line.filter(|_| is_of_file) {
                Some(line) => ConfigFault::Toml {
                    path: shown,
                    text: format!("line {line}: {fault}"),
                },
                None => fault,
            }
        })?;
        Ok(config)
    }

    /// Reads TOML text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    fn overlay(&mut self, overrides: Overrides) {
        let Overrides {
            data_dir,
            admin_listen,
            admin_advertise_url,
            peer_listen,
            peer_advertise,
            log_level,
        } = overrides;
        if let Some(data_dir) = data_dir {
            self.data_dir = data_dir;
        }
        if let Some(listen) = admin_listen {
            self.admin.listen = listen;
        }
        if let Some(listen) = peer_listen {
            self.peer.listen = listen;
        }
        if let Some(level) = log_level {
            self.log.level = level;
        }
        self.admin.advertise_url = admin_advertise_url.or(self.admin.advertise_url.take());
        self.peer.advertise = peer_advertise.or(self.peer.advertise.take());
    }

    /// Refuses values that cannot be.
    pub fn check(&self) -> Result<(), ConfigFault> {
        if self.admin.tls == AdminTls::Off && !self.admin.listen.ip().is_loopback() {
            let detail = format!(
                "is \"off\", but `admin.listen` is {}: without TLS the admin API is served on loopback only; use tls = \"cluster\"",
                self.admin.listen
            );
            return Err(value("admin.tls", detail));
        }
        if self.admin.listen.ip().is_unspecified() && self.admin.advertise_url.is_none() {
            return Err(value(
                "admin.advertise_url",
                "is missing: `admin.listen` is every address, so say which one others reach",
            ));
        }
        if self.peer.listen.ip().is_unspecified() && self.peer.advertise.is_none() {
            return Err(value(
                "peer.advertise",
                "is missing: `peer.listen` is every address, so say which one others reach",
            ));
        }
        if let Some(advertised) = self
            .peer
            .advertise
            .as_ref()
            .filter(|text| !is_host_and_port(text))
        {
            let detail = format!("is `{advertised}`; write `host:port`");
            return Err(value("peer.advertise", detail));
        }
        if self.seal.key_file.is_some() && self.seal.key_env.is_some() {
            return Err(value(
                "seal.key_env",
                "and `seal.key_file` exclude each other; keep one",
            ));
        }
        if let Some(problem) = log_filter_problem(&self.log.level) {
            return Err(value("log.level", problem));
        }
        for number in self.numbers() {
            if let Some(problem) = number.problem() {
                return Err(value(number.key, problem));
            }
        }
        if self.raft.heartbeat_ms >= self.raft.election_timeout_ms {
            let detail = format!(
                "is {}, and must be below `raft.election_timeout_ms`, which is {}",
                self.raft.heartbeat_ms, self.raft.election_timeout_ms
            );
            return Err(value("raft.heartbeat_ms", detail));
        }
        self.usage.check().map_err(|(key, detail)| value(key, detail))?;
        self.billing.check().map_err(|(key, detail)| value(key, detail))?;
        if self.billing.topic == self.usage.topic {
            return Err(value("billing.topic", "is `usage.topic`, too; name another one"));
        }
        Ok(())
    }

    /// Every number, with what it may be.
    pub fn numbers(&self) -> Vec<Number> {
        let (raft, usage) = (&self.raft, &self.usage);
        vec![
            Number::new(
                "billing.generations_days",
                self.billing.generations_days,
                1..=36_500,
            ),
            Number::new("raft.checkpoint_entries", raft.checkpoint_entries, 1..=10_000_000),
            Number::new("raft.election_timeout_ms", raft.election_timeout_ms, 10..=600_000),
            Number::new("raft.heartbeat_ms", raft.heartbeat_ms, 1..=300_000),
            Number::new("raft.install_timeout_ms", raft.install_timeout_ms, 100..=DAY_MS),
            Number::new("raft.kept_entries", raft.kept_entries, 0..=10_000_000),
            Number::new("usage.partitions", usage.partitions, 1..=10_000),
            Number::new("usage.replication", usage.replication, 1..=100),
            Number::new("usage.retention_bytes", usage.retention_bytes, 0..=1 << 50),
            Number::new("usage.retention_days", usage.retention_days, 1..=36_500),
        ]
    }

    /// What is in force, as TOML, with secrets hidden.
    pub fn printed(&self) -> String {
        let mut shown = self.clone();
        shown.usage.kafka = shown.usage.kafka.shown();
        toml::to_string_pretty(&shown).unwrap_or_else(|error| format!("# cannot be printed: {error}\n"))
    }

    /// The file of the sealing key.
    pub fn seal_file(&self) -> PathBuf {
        self.seal
            .key_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("seal.key"))
    }

    /// The base URL under which others reach the admin listener, once it listens on `bound`.
    pub fn admin_url(&self, bound: SocketAddr) -> String {
        let scheme = match self.admin.tls {
            AdminTls::Cluster => "https",
            AdminTls::Off => "http",
        };
        self.admin.advertise_url.as_ref().map_or_else(
            || format!("{scheme}://{bound}"),
            |url| url.trim_end_matches('/').to_owned(),
        )
    }

    /// `host:port` under which others reach the peer listener, once it listens on `bound`.
    pub fn peer_address(&self, bound: SocketAddr) -> String {
        self.peer.advertise.clone().unwrap_or_else(|| bound.to_string())
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
