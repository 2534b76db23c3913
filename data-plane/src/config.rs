//! Settings of a node: a TOML file, then environment, then flags. Unknown keys are refused by name and line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tollway_shared::settings::{DAY_MS, Number, is_host_and_port, line_of, log_filter_problem};

use crate::server::Network;
use crate::usage;

/// What `control.max_stale` may be.
const STALE_MS: std::ops::RangeInclusive<i64> = 1_000..=3_650 * DAY_MS;

/// Everything a node is told. What tenants change is not here: it comes from the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Identity, snapshots and the usage spool live here.
    pub data_dir: PathBuf,
    /// The public API.
    pub api: Api,
    /// Health and metrics.
    pub ops: Ops,
    /// The control plane.
    pub control: Control,
    /// The usage log.
    pub usage: usage::Settings,
    /// Connections to providers.
    pub upstream: Upstream,
    /// Threads.
    pub server: Server,
    /// Logs.
    pub log: Log,
    /// The end.
    pub drain: Drain,
}

/// `[api]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Deadline of a connection's first byte.
    pub first_byte_timeout_ms: u64,
    /// Deadline of a request's head.
    pub head_timeout_ms: u64,
    /// Deadline of a request's body.
    pub body_timeout_ms: u64,
    /// How long a request's body may be slower than `body_bytes_per_s_min`.
    pub body_grace_ms: u64,
    /// Slowest average of a request's body after that; 0: no floor.
    pub body_bytes_per_s_min: u64,
    /// How long a connection may wait for its next request.
    pub idle_timeout_ms: u64,
    /// How long a caller may take nothing of what is written.
    pub write_timeout_ms: u64,
    /// Largest request head.
    pub head_bytes_max: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Largest whole answer of a provider.
    pub reply_bytes_max: usize,
    /// Most connections of the process.
    pub connections_max: usize,
    /// Most connections of one address; an IPv6 address counts by its /64.
    pub connections_per_address_max: usize,
    /// Addresses of proxies, behind which many callers are: not counted by `connections_per_address_max`.
    pub trusted_proxies: Vec<String>,
    /// Most attempts of one request.
    pub attempts_max: usize,
    /// Most requests of one organization for free models in a minute, on this node; 0: no such limit.
    pub free_requests_per_minute: u32,
}

/// `[ops]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ops {
    /// Where health and metrics are asked. Not for tenants.
    pub listen: SocketAddr,
}

/// `[control]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// `host:port` of the control plane's peers; empty = those written by `join`.
    pub peers: Vec<String>,
    /// Oldest snapshot that is served from, as `24h`, `30m` or `90s`.
    pub max_stale: String,
}

/// `[upstream]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// PEM certificates to trust besides the public roots.
    pub ca_file: Option<PathBuf>,
    /// Idle connections kept per provider and core.
    pub idle_connections_max: usize,
    /// How long an idle connection is kept.
    pub idle_timeout_ms: u64,
}

/// `[server]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Cores that serve; 0 = all of the machine.
    pub threads: usize,
}

/// `[log]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A filter such as `info` or `tollway_data=debug`.
    pub level: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// `[drain]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long the node goes on accepting after it has said that it is not ready.
    pub grace_ms: u64,
    /// How long running answers may take after that.
    pub max_stream_ms: u64,
    /// How long the usage log is waited for at the very end.
    pub flush_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/tollway-data"),
            api: Api::default(),
            ops: Ops::default(),
            control: Control::default(),
            usage: usage::Settings::default(),
            upstream: Upstream::default(),
            server: Server::default(),
            log: Log::default(),
            drain: Drain::default(),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            first_byte_timeout_ms: 5_000,
            head_timeout_ms: 10_000,
            body_timeout_ms: 60_000,
            body_grace_ms: 5_000,
            body_bytes_per_s_min: 1 << 10,
            idle_timeout_ms: 60_000,
            write_timeout_ms: 30_000,
            head_bytes_max: 16 << 10,
            body_bytes_max: 32 << 20,
            reply_bytes_max: 64 << 20,
            connections_max: 10_000,
            connections_per_address_max: 512,
            trusted_proxies: vec!["127.0.0.0/8".into(), "::1".into()],
            attempts_max: 3,
            free_requests_per_minute: 20,
        }
    }
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 9600).into(),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            max_stale: "24h".into(),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            ca_file: None,
            idle_connections_max: 256,
            idle_timeout_ms: 55_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            grace_ms: 10_000,
            max_stream_ms: 300_000,
            flush_ms: 10_000,
        }
    }
}

/// Why settings are not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// The file cannot be read.
    #[error("the configuration `{path}` cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has a mistake; the text names line and key.
    #[error("the configuration `{path}` is not valid: {detail}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        detail: String,
    },
    /// A value cannot be.
    #[error("`{field}` {detail}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What is wrong.
        detail: String,
    },
}

impl Config {
    /// Reads a file and checks it.
    pub fn load(path: &Path) -> Result<Self, ConfigFault> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigFault::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads a file's text. `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigFault> {
        let config: Self = toml::from_str(text).map_err(|fault| ConfigFault::Invalid {
            path: path.to_owned(),
            detail: fault.to_string(),
        })?;
        config.check().map_err(|fault| match fault {
            ConfigFault::Value { field, detail } => match line_of(text, field) {
                Some(line) => ConfigFault::Invalid {
                    path: path.to_owned(),
                    detail: format!("line {line}: `{field}` {detail}"),
                },
                None => ConfigFault::Value { field, detail },
            },
            fault => fault,
        })?;
        Ok(config)
    }

    /// What the types do not say.
    pub fn check(&self) -> Result<(), ConfigFault> {
        self.max_stale_ms()?;
        self.trusted_proxies()?;
        let value = |field, detail| Err(ConfigFault::Value { field, detail });
        for number in self.numbers() {
            if let Some(problem) = number.problem() {
                return value(number.key, problem);
            }
        }
        if let Some(peer) = self.control.peers.iter().find(|peer| !is_host_and_port(peer)) {
            return value(
                "control.peers",
                format!("has `{peer}`; write `host:port`, the address of a replica's peer listener"),
            );
        }
        match log_filter_problem(&self.log.level) {
            Some(problem) => value("log.level", problem),
            None => Ok(()),
        }
    }

    /// Every number, with what it may be.
    pub fn numbers(&self) -> Vec<Number> {
        let (api, drain, upstream) = (&self.api, &self.drain, &self.upstream);
        vec![
            Number::new("api.attempts_max", api.attempts_max, 1..=100),
            Number::new(
                "api.free_requests_per_minute",
                api.free_requests_per_minute,
                0..=1_000_000,
            ),
            Number::new("api.body_bytes_max", api.body_bytes_max, 1..=1 << 30),
            Number::new("api.body_bytes_per_s_min", api.body_bytes_per_s_min, 0..=1 << 30),
            Number::new("api.body_grace_ms", api.body_grace_ms, 0..=DAY_MS),
            Number::new("api.body_timeout_ms", api.body_timeout_ms, 1..=DAY_MS),
            Number::new("api.connections_max", api.connections_max, 1..=10_000_000),
            Number::new(
                "api.connections_per_address_max",
                api.connections_per_address_max,
                1..=10_000_000,
            ),
            Number::new("api.first_byte_timeout_ms", api.first_byte_timeout_ms, 1..=DAY_MS),
            Number::new("api.head_bytes_max", api.head_bytes_max, 1 << 10..=1 << 20),
            Number::new("api.head_timeout_ms", api.head_timeout_ms, 1..=DAY_MS),
            Number::new("api.idle_timeout_ms", api.idle_timeout_ms, 1..=DAY_MS),
            Number::new("api.reply_bytes_max", api.reply_bytes_max, 1..=1 << 30),
            Number::new("api.write_timeout_ms", api.write_timeout_ms, 1..=DAY_MS),
            Number::new("drain.flush_ms", drain.flush_ms, 0..=DAY_MS),
            Number::new("drain.grace_ms", drain.grace_ms, 0..=DAY_MS),
            Number::new("drain.max_stream_ms", drain.max_stream_ms, 0..=DAY_MS),
            Number::new("server.threads", self.server.threads, 0..=1_024),
            Number::new(
                "upstream.idle_connections_max",
                upstream.idle_connections_max,
                0..=1_000_000,
            ),
            Number::new("upstream.idle_timeout_ms", upstream.idle_timeout_ms, 1..=DAY_MS),
            Number::new("usage.partitions", self.usage.partitions, 1..=10_000),
            Number::new(
                "usage.spool_bytes_max",
                self.usage.spool_bytes_max,
                1 << 20..=1 << 50,
            ),
        ]
    }

    /// `control.max_stale` in milliseconds.
    pub fn max_stale_ms(&self) -> Result<i64, ConfigFault> {
        let stale_ms = duration_ms(&self.control.max_stale).filter(|ms| STALE_MS.contains(ms));
        stale_ms.ok_or(ConfigFault::Value {
            field: "control.max_stale",
            detail: format!(
                "is `{}`; write it as `24h`, `30m` or `90s`, from `1s` to `3650d`",
                self.control.max_stale
            ),
        })
    }

    /// `api.trusted_proxies` in their parts.
    pub fn trusted_proxies(&self) -> Result<Vec<Network>, ConfigFault> {
        let parsed = self.api.trusted_proxies.iter().map(|text| {
            Network::parse(text).ok_or_else(|| ConfigFault::Value {
                field: "api.trusted_proxies",
                detail: format!("has `{text}`; write an address, or a range such as `10.0.0.0/8`"),
            })
        });
        parsed.collect()
    }

    /// What is in force, as TOML, with secrets hidden.
    pub fn printed(&self) -> String {
        let mut shown = self.clone();
        shown.usage.kafka = shown.usage.kafka.shown();
        toml::to_string(&shown).unwrap_or_else(|error| format!("# cannot be printed: {error}\n"))
    }

    /// How many cores serve.
    pub fn threads(&self) -> usize {
        match self.server.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        }
    }
}

fn duration_ms(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let parse = |text: &str| Config::parse(text, Path::new("data.toml"));
        let fault = parse("data_dir = \"x\"\n[api]\nlisten = \"127.0.0.1:1\"\nlissten = 1\n")
            .unwrap_err()
            .to_string();
        assert!(fault.contains("lissten") && fault.contains("line 4"), "{fault}");
        let fault = parse("[control]\nmax_stale = \"soon\"\n")
            .unwrap_err()
            .to_string();
        assert!(fault.contains("control.max_stale"), "{fault}");
        let fault = parse("[api]\ntrusted_proxies = [\"10.0.0.0/8\", \"proxy\"]\n")
            .unwrap_err()
            .to_string();
        assert!(
            fault.contains("api.trusted_proxies") && fault.contains("`proxy`"),
            "{fault}"
        );
        for (text, key) in [
            ("[api]\nattempts_max = 0\n", "api.attempts_max"),
            ("[api]\nfirst_byte_timeout_ms = 0\n", "api.first_byte_timeout_ms"),
            ("[api]\nhead_bytes_max = 0\n", "api.head_bytes_max"),
            ("[api]\nhead_timeout_ms = 86400001\n", "api.head_timeout_ms"),
            ("[usage]\npartitions = 0\n", "usage.partitions"),
            ("[usage]\npartitions = -1\n", "usage.partitions"),
            ("[usage]\nspool_bytes_max = 0\n", "usage.spool_bytes_max"),
            ("[control]\nmax_stale = \"0s\"\n", "control.max_stale"),
            ("[log]\nlevel = \"inof\"\n", "log.level"),
            ("[control]\npeers = [\"https://c1:7600\"]\n", "control.peers"),
        ] {
            let fault = parse(text).unwrap_err().to_string();
            assert!(fault.contains(key) && fault.contains("line 2"), "{fault}");
        }
        assert_eq!(parse("").unwrap().max_stale_ms().unwrap(), 86_400_000);
    }

    #[test]
    fn every_number_has_a_range_and_its_default_lies_in_it() {
        fn count(value: &serde_json::Value) -> usize {
            match value {
                serde_json::Value::Object(fields) => fields.values().map(count).sum(),
                value => usize::from(value.is_number()),
            }
        }
        let config = Config::default();
        assert_eq!(
            count(&serde_json::to_value(&config).unwrap()),
            config.numbers().len()
        );
        config.check().unwrap();
    }

    #[test]
    fn what_is_printed_can_be_read_again_and_holds_no_secret() {
        let path = Path::new("printed");
        let text = "[usage.kafka]\n\"sasl.password\" = \"hunter2\"\n\"sasl.username\" = \"u\"\n";
        let printed = Config::parse(text, path).unwrap().printed();
        assert!(
            !printed.contains("hunter2") && printed.contains("***"),
            "{printed}"
        );
        let again = Config::parse(&printed, path).unwrap();
        assert_eq!(again.usage.kafka.0["sasl.username"], "u");
        assert_eq!(again.printed(), printed);
    }

    #[test]
    fn the_sample_file_is_valid_and_keeps_its_data_where_the_default_does() {
        let sample = include_str!("../../deploy/config/data.toml");
        let sample = Config::parse(sample, Path::new("data.toml")).unwrap();
        assert_eq!(sample.data_dir, Config::default().data_dir);
    }
}
