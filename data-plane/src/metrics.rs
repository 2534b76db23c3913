//! All metric names of the data plane but those of usage and catalog, which sit with what they count. Labels come from closed
//! sets: fault codes, status classes, and the providers and models of the catalog.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tollway_shared::ids::EndpointId;
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;

use crate::routing::Candidate;

/// Requests by `endpoint` (route), `provider`, `model`, `status_class` (2xx…5xx), `error_type` (fault code, or empty).
pub const REQUESTS_TOTAL: &str = "tollway_requests_total";
/// Seconds from a request's head to its answer's end, by `provider`, `model`.
pub const REQUEST_DURATION: &str = "tollway_request_duration_seconds";
/// Seconds from a request's head to its answer's first byte, by `provider`, `model`.
pub const FIRST_TOKEN: &str = "tollway_time_to_first_token_seconds";
/// Seconds before the first attempt is sent: what the gateway adds ahead of a provider.
pub const OVERHEAD: &str = "tollway_gateway_overhead_seconds";
/// Tokens by `provider`, `model`, `token_type`; the types are disjoint.
pub const TOKENS_TOTAL: &str = "tollway_tokens_total";
/// Nano-dollars charged, by `provider`, `model`, `kind` (`charged`).
pub const COST_TOTAL: &str = "tollway_cost_nano_usd_total";
/// Attempts by `provider`, `outcome` (`ok` or the attempt's fault).
pub const ATTEMPTS_TOTAL: &str = "tollway_upstream_attempts_total";
/// Attempts that followed a failed one, by `from`, `to` (providers), `reason`.
pub const FAILOVERS_TOTAL: &str = "tollway_failovers_total";
/// Open connections of callers.
pub const CONNECTIONS: &str = "tollway_connections";
/// Connections closed by a deadline or a cap, by `reason`: `deadline`, `cap`, `address` (too many of one address).
pub const CONNECTIONS_REFUSED_TOTAL: &str = "tollway_connections_refused_total";
/// Answers whose caller left that were not read on, because so many are already.
pub const DRAINS_REFUSED_TOTAL: &str = "tollway_drains_refused_total";
/// Requests that ended in a panic. Must stay 0.
pub const PANICS_TOTAL: &str = "tollway_panics_total";
/// The revision in use.
pub const SNAPSHOT_VERSION: &str = "tollway_snapshot_version";
/// Seconds since the control plane was last heard of.
pub const SNAPSHOT_AGE: &str = "tollway_snapshot_age_seconds";
/// 1 while a control peer's stream is open, 0 otherwise.
pub const CONTROL_CONNECTED: &str = "tollway_control_plane_connected";
/// Whole snapshots taken into use.
pub const SNAPSHOT_FULLS_TOTAL: &str = "tollway_snapshot_fulls_total";
/// Deltas taken into use.
pub const SNAPSHOT_DELTAS_TOTAL: &str = "tollway_snapshot_deltas_total";
/// Changed resources in these deltas.
pub const SNAPSHOT_CHANGES_TOTAL: &str = "tollway_snapshot_changes_total";
/// Snapshots and deltas refused.
pub const SNAPSHOT_REJECTED_TOTAL: &str = "tollway_snapshot_rejected_total";
/// Messages that ask for money of leased budgets because requests wait for it.
pub const LEASE_ASKS_TOTAL: &str = "tollway_lease_asks_total";
/// Requests that had to wait for a lease.
pub const LEASE_WAITS_TOTAL: &str = "tollway_lease_waits_total";
/// Requests whose answer a budget has cut shorter than was asked for.
pub const LEASE_CLAMPED_TOTAL: &str = "tollway_lease_clamped_total";
/// Budgets that this node has a slice of.
pub const LEASE_SLICES: &str = "tollway_lease_slices";
/// 1 while the control plane answers about leases, 0 otherwise.
pub const LEASE_CONNECTED: &str = "tollway_lease_connected";
/// 1, by `version`.
pub const BUILD_INFO: &str = "tollway_build_info";

const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
const OVERHEAD_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the process's recorder. `None` when another one is installed already: `/metrics` is then served by whoever did that.
pub fn install() -> Option<PrometheusHandle> {
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Full(OVERHEAD.into()), OVERHEAD_BUCKETS)
                .and_then(|builder| {
                    builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), DURATION_BUCKETS)
                })
                .expect("the bucket lists are not empty")
                .build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok().map(|()| {
                describe();
                handle
            })
        })
        .clone()
}

fn describe() {
    metrics::describe_counter!(REQUESTS_TOTAL, "Requests by outcome");
    metrics::describe_histogram!(
        REQUEST_DURATION,
        Unit::Seconds,
        "From a request's head to its answer's end"
    );
    metrics::describe_histogram!(
        FIRST_TOKEN,
        Unit::Seconds,
        "From a request's head to its answer's first byte"
    );
    metrics::describe_histogram!(
        OVERHEAD,
        Unit::Seconds,
        "From a request's head to the first attempt"
    );
    metrics::describe_counter!(TOKENS_TOTAL, "Tokens by kind; the kinds are disjoint");
    metrics::describe_counter!(COST_TOTAL, "Billionths of a dollar charged");
    metrics::describe_counter!(ATTEMPTS_TOTAL, "Attempts at providers");
    metrics::describe_counter!(FAILOVERS_TOTAL, "Attempts that followed a failed one");
    metrics::describe_gauge!(CONNECTIONS, "Open connections of callers");
    metrics::describe_counter!(
        CONNECTIONS_REFUSED_TOTAL,
        "Connections closed by a deadline or a cap"
    );
    metrics::describe_counter!(
        DRAINS_REFUSED_TOTAL,
        "Answers that were not read on for callers who left, because too many are"
    );
    metrics::describe_counter!(PANICS_TOTAL, "Requests that ended in a panic");
    metrics::describe_gauge!(SNAPSHOT_VERSION, "The revision in use");
    metrics::describe_gauge!(
        SNAPSHOT_AGE,
        Unit::Seconds,
        "Since the control plane was last heard of"
    );
    metrics::describe_counter!(
        LEASE_ASKS_TOTAL,
        "Asks for money of leased budgets that requests wait for"
    );
    metrics::describe_counter!(LEASE_WAITS_TOTAL, "Requests that had to wait for a lease");
    metrics::describe_counter!(
        LEASE_CLAMPED_TOTAL,
        "Requests whose answer a budget has cut shorter"
    );
    metrics::describe_gauge!(LEASE_SLICES, "Budgets that this node has a slice of");
    metrics::describe_gauge!(LEASE_CONNECTED, "Whether the control plane answers about leases");
    metrics::describe_gauge!(CONTROL_CONNECTED, "Whether a control peer's stream is open");
    metrics::describe_counter!(SNAPSHOT_FULLS_TOTAL, "Whole snapshots taken into use");
    metrics::describe_counter!(SNAPSHOT_DELTAS_TOTAL, "Deltas taken into use");
    metrics::describe_counter!(
        SNAPSHOT_CHANGES_TOTAL,
        "Changed resources in deltas taken into use"
    );
    metrics::describe_counter!(SNAPSHOT_REJECTED_TOTAL, "Snapshots and deltas refused");
    for name in [
        SNAPSHOT_FULLS_TOTAL,
        SNAPSHOT_DELTAS_TOTAL,
        SNAPSHOT_CHANGES_TOTAL,
        SNAPSHOT_REJECTED_TOTAL,
    ] {
        counter!(name).absolute(0);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Handles of one core, looked up once per combination of labels.
pub struct Meters {
    overhead: Histogram,
    /// Open connections.
    pub connections: Gauge,
    /// Panics.
    pub panics: Counter,
    /// [`DRAINS_REFUSED_TOTAL`].
    pub drain_refused: Counter,
    endpoints: RefCell<HashMap<EndpointId, EndpointMeters>>,
    ends: RefCell<HashMap<(EndpointId, u16, &'static str), Counter>>,
    attempts: RefCell<HashMap<(EndpointId, &'static str), Counter>>,
}

struct EndpointMeters {
    duration: Histogram,
    first_token: Histogram,
    tokens: [Counter; 6],
    cost: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            overhead: histogram!(OVERHEAD, "endpoint" => CHAT),
            connections: gauge!(CONNECTIONS),
            panics: counter!(PANICS_TOTAL),
            drain_refused: counter!(DRAINS_REFUSED_TOTAL),
            endpoints: RefCell::default(),
            ends: RefCell::default(),
            attempts: RefCell::default(),
        }
    }
}

/// The route of chat completions, as a label.
const CHAT: &str = "chat.completions";

/// How a request ended, for the counters.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Where it was served.
    pub candidate: &'a Candidate,
    /// The status that the caller got.
    pub status: u16,
    /// The fault code; empty when there was none.
    pub fault: &'static str,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds to the first byte.
    pub first_seconds: Option<f64>,
    /// What was used.
    pub tokens: &'a TokenCounts,
    /// What was charged.
    pub cost: NanoUsd,
}

impl Meters {
    /// The time before the first attempt.
    pub fn overhead(&self, seconds: f64) {
        self.overhead.record(seconds);
    }

    /// A request that was refused before any attempt.
    pub fn refused(&self, status: u16, fault: &'static str) {
        self.end(EndpointId::trusted(""), "", "", status, fault);
    }

    /// A request that reached a provider.
    pub fn ended(&self, ended: &Ended<'_>) {
        let (endpoint, provider) = (&ended.candidate.endpoint, &ended.candidate.provider);
        let (provider, model) = (provider.id.as_str(), endpoint.model.as_str());
        self.end(endpoint.id.clone(), provider, model, ended.status, ended.fault);
        let mut endpoints = self.endpoints.borrow_mut();
        let meters = endpoints.entry(endpoint.id.clone()).or_insert_with(|| {
            let labels = || [("provider", provider.to_owned()), ("model", model.to_owned())];
            let tokens = |kind: &'static str| {
                counter!(TOKENS_TOTAL, "provider" => provider.to_owned(), "model" => model.to_owned(), "token_type" => kind)
            };
            EndpointMeters {
                duration: histogram!(REQUEST_DURATION, &labels()),
                first_token: histogram!(FIRST_TOKEN, &labels()),
                tokens: ["input", "input_cache_read", "input_cache_write", "input_cache_write_1h", "output", "output_reasoning"].map(tokens),
                cost: counter!(COST_TOTAL, "provider" => provider.to_owned(), "model" => model.to_owned(), "kind" => "charged"),
            }
        });
        meters.duration.record(ended.seconds);
        if let Some(seconds) = ended.first_seconds {
            meters.first_token.record(seconds);
        }
        let used = ended.tokens;
        let counts = [
            used.input,
            used.input_cache_read,
            used.input_cache_write,
            used.input_cache_write_1h,
            used.output,
            used.output_reasoning,
        ];
        for (counter, count) in meters.tokens.iter().zip(counts) {
            if count > 0 {
                counter.increment(count);
            }
        }
        meters.cost.increment(ended.cost.0.max(0).unsigned_abs());
    }

    /// One attempt.
    pub fn attempt(&self, candidate: &Candidate, outcome: &'static str) {
        let key = (candidate.endpoint.id.clone(), outcome);
        let provider = candidate.provider.id.as_str();
        self.attempts
            .borrow_mut()
            .entry(key)
            .or_insert_with(
                || counter!(ATTEMPTS_TOTAL, "provider" => provider.to_owned(), "outcome" => outcome),
            )
            .increment(1);
    }

    /// An attempt that follows a failed one. Rare enough to look its handle up each time.
    pub fn failover(&self, from: &Candidate, to: &Candidate, reason: &'static str) {
        let (from, to) = (from.provider.id.to_string(), to.provider.id.to_string());
        counter!(FAILOVERS_TOTAL, "from" => from, "to" => to, "reason" => reason).increment(1);
    }

    fn end(&self, endpoint: EndpointId, provider: &str, model: &str, status: u16, fault: &'static str) {
        let class = match status {
            0..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.ends
            .borrow_mut()
            .entry((endpoint, status / 100, fault))
            .or_insert_with(|| {
                counter!(REQUESTS_TOTAL, "endpoint" => CHAT, "provider" => provider.to_owned(), "model" => model.to_owned(),
                    "status_class" => class, "error_type" => fault)
            })
            .increment(1);
    }
}
