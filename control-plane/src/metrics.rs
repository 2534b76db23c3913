//! Every metric of the control plane: name, unit, labels.
//!
//! Labels come from closed sets: methods, route templates, statuses. Tenants and ids never become labels.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tollway_shared::money::NanoUsd;

use crate::billing::tail;
use crate::grantor::sums::Sums;
use crate::ledger;
use crate::raft::Cluster;

/// Answered admin requests, by `method`, `route` (the template) and `status`.
const ADMIN_REQUESTS: &str = "tollway_admin_requests_total";
/// Time to answer an admin request, by `route`.
const ADMIN_SECONDS: &str = "tollway_admin_request_seconds";
/// 1 on the leader.
const LEADER: &str = "tollway_raft_leader";
/// The election term.
const TERM: &str = "tollway_raft_term";
/// The last applied log index.
const APPLIED: &str = "tollway_raft_applied_index";
/// The last log index.
const LAST_LOG: &str = "tollway_raft_last_log_index";
/// Syncs of the log's file.
const LOG_SYNCS: &str = "tollway_raft_log_syncs_total";
/// The log index of the last change that nodes can see.
const REVISION: &str = "tollway_revision";
/// 1 while a majority confirms this replica's state, so that it may serve nodes.
const CONTACT: &str = "tollway_push_contact";
/// Times that what nodes see could not be built: an alarm.
const PUBLISH_FAULTS: &str = "tollway_publish_faults_total";
/// With nodes and not settled, summed over leased budgets, by `unit`; on the leader. Money in US dollars.
const LEASED: &str = "tollway_lease_outstanding";
/// Settled by nodes less recorded by the ledger, in the current windows, by `unit`; on the leader.
const LEASE_DRIFT: &str = "tollway_lease_drift";
/// Lives of nodes by `standing`; on the leader.
const LEASE_LIVES: &str = "tollway_lease_incarnations";
/// Tokens that a provider and we count differently, in the last statement that was compared here.
const PROVIDER_DRIFT_TOKENS: &str = "tollway_provider_drift_tokens";
/// The same of its cost, US dollars.
const PROVIDER_DRIFT_USD: &str = "tollway_provider_drift_usd";
/// Thresholds that budgets have reached, by whether it was the `limit` or `below` it; counted by the leader.
const THRESHOLDS: &str = "tollway_budget_thresholds_total";
/// Times that an organization's credit became low, by `asks`: `nothing`, or a `top_up`; counted by the leader.
const LOW_BALANCES: &str = "tollway_credit_low_total";
/// Upper bounds of the time histogram, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Time between two clean-ups of the recorder.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Uses a recorder that this process has installed already (both planes in one process share one).
pub fn adopt(handle: PrometheusHandle) {
    if HANDLE.set(handle).is_ok() {
        describe();
    }
}

/// Installs the process's recorder, unless there is one.
pub fn install() {
    if HANDLE.get().is_some() {
        return;
    }
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(ADMIN_SECONDS.into()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(ledger::BATCH_SECONDS.into()), &SECONDS)
        })
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(tail::BATCH_SECONDS.into()), &SECONDS)
        })
        .map(PrometheusBuilder::install_recorder);
    match builder {
        Ok(Ok(handle)) => adopt(handle),
        Ok(Err(fault)) => tracing::warn!(%fault, "no metrics: another recorder is installed"),
        Err(fault) => tracing::warn!(%fault, "no metrics"),
    }
}

/// Keeps the recorder small. Call every [`UPKEEP_EVERY`].
pub fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// The Prometheus text.
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

fn describe() {
    describe_counter!(ADMIN_REQUESTS, Unit::Count, "Answered admin requests");
    describe_histogram!(ADMIN_SECONDS, Unit::Seconds, "Time to answer an admin request");
    describe_histogram!(
        ledger::BATCH_SECONDS,
        Unit::Seconds,
        "Time that one read of usage events takes, by stage"
    );
    describe_histogram!(
        tail::BATCH_SECONDS,
        Unit::Seconds,
        "The same for the billing store"
    );
    describe_gauge!(LEADER, Unit::Count, "1 on the leader, 0 elsewhere");
    describe_gauge!(TERM, Unit::Count, "Election term");
    describe_gauge!(APPLIED, Unit::Count, "Last applied log index");
    describe_gauge!(LAST_LOG, Unit::Count, "Last log index");
    describe_counter!(LOG_SYNCS, Unit::Count, "Syncs of the log's file");
    describe_gauge!(
        REVISION,
        Unit::Count,
        "Log index of the last change that nodes can see"
    );
    describe_gauge!(
        LEASED,
        Unit::Count,
        "Leased to nodes and not settled, by unit; money in US dollars"
    );
    describe_gauge!(
        LEASE_DRIFT,
        Unit::Count,
        "Settled by nodes less recorded by the ledger, by unit; money in US dollars"
    );
    describe_gauge!(LEASE_LIVES, Unit::Count, "Incarnations of nodes by standing");
    describe_gauge!(
        PROVIDER_DRIFT_TOKENS,
        Unit::Count,
        "Tokens that a provider's last compared statement and we count differently"
    );
    describe_gauge!(
        PROVIDER_DRIFT_USD,
        Unit::Count,
        "US dollars by which a provider's last compared statement and our list cost differ"
    );
    describe_counter!(THRESHOLDS, Unit::Count, "Thresholds that budgets have reached");
    describe_counter!(
        LOW_BALANCES,
        Unit::Count,
        "Times that an organization has got little credit left"
    );
    describe_gauge!(
        CONTACT,
        Unit::Count,
        "1 while a majority confirms this replica's state; nodes are sent away otherwise"
    );
    describe_counter!(
        PUBLISH_FAULTS,
        Unit::Count,
        "Times that what nodes see could not be built; nodes are sent away until it can"
    );
}

/// Counts an answer.
pub(crate) fn answered(method: &Method, route: &str, status: StatusCode, took: Duration) {
    // A caller may invent methods; labels may not.
    let method = match *method {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let labels = [
        ("method", method.to_owned()),
        ("route", route.to_owned()),
        ("status", status.as_str().to_owned()),
    ];
    counter!(ADMIN_REQUESTS, &labels).increment(1);
    histogram!(ADMIN_SECONDS, "route" => route.to_owned()).record(took.as_secs_f64());
}

/// Notes whether a majority confirms this replica's state.
pub(crate) fn contact(confirmed: bool) {
    gauge!(CONTACT).set(if confirmed { 1.0 } else { 0.0 });
}

/// Counts a view that could not be built.
pub(crate) fn publish_fault() {
    counter!(PUBLISH_FAULTS).increment(1);
}

/// Counts a threshold that a budget has reached.
pub(crate) fn threshold(percent: u8) {
    let reached = if percent < 100 { "below" } else { "limit" };
    counter!(THRESHOLDS, "reached" => reached).increment(1);
}

/// Counts an organization whose credit has become low.
///
/// - `top_up`: whether the payment system is asked for more.
pub(crate) fn low_balance(top_up: bool) {
    let asks = if top_up { "top_up" } else { "nothing" };
    counter!(LOW_BALANCES, "asks" => asks).increment(1);
}

/// Shows what is out with nodes.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; what is exact is in the admin API"
)]
pub(crate) fn leases(sums: &Sums) {
    let scales = [("money", 1e9), ("tokens", 1.0), ("requests", 1.0)];
    for ((unit, scale), of) in scales.into_iter().zip(sums.units) {
        gauge!(LEASED, "unit" => unit).set(of.leased as f64 / scale);
        gauge!(LEASE_DRIFT, "unit" => unit).set((of.settled - of.recorded) as f64 / scale);
    }
    let standings = ["live", "superseded", "fenced", "released", "closed"];
    for (standing, lives) in standings.into_iter().zip(sums.lives) {
        gauge!(LEASE_LIVES, "standing" => standing).set(lives as f64);
    }
}

/// Shows how far a provider's statement is from what we counted.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; what is exact is in the answer"
)]
pub(crate) fn provider_drift(tokens: u64, cost: NanoUsd) {
    gauge!(PROVIDER_DRIFT_TOKENS).set(tokens as f64);
    gauge!(PROVIDER_DRIFT_USD).set(cost.0 as f64 / 1e9);
}

/// Reads what the replica knows of itself, for a scrape.
#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; indexes stay far below 2^53"
)]
pub(crate) fn observe(cluster: &Cluster) {
    let status = cluster.status();
    gauge!(LEADER).set(if cluster.is_leader() { 1.0 } else { 0.0 });
    gauge!(TERM).set(status.term as f64);
    gauge!(APPLIED).set(status.applied as f64);
    gauge!(LAST_LOG).set(status.last_log as f64);
    gauge!(REVISION).set(cluster.state().revision.0 as f64);
    counter!(LOG_SYNCS).absolute(cluster.log_syncs());
}
