//! What keeping accounts costs: how many requests wait for a lease, and how fast the ledger is. `README.md` has the method.

mod broker;
mod flood;
mod ledger;
pub(crate) mod scrape;
mod waits;

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tollway_proto::usage::TOPIC;
use tollway_shared::time::UnixMillis;

use self::broker::Broker;
use self::ledger::Fold;
use crate::node::{Making, Programs};

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Usage events that the ledger folds.
    pub(crate) events: u64,
    /// How long requests come in.
    pub(crate) load: Duration,
}

/// Runs all of it, printing as it goes; returns the figures for the results file.
pub(crate) async fn run(programs: Programs<'_>, provider: SocketAddr, size: Size) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let waits = waits::measure(Making::new(programs, folder.path()), provider, size.load).await?;
    println!("{}", waits.line());

    let folder = tempfile::tempdir()?;
    let broker = Broker::start(&folder.path().join("kafka"))?;
    broker.create_topic(TOPIC, flood::PARTITIONS).await?;
    let begun = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let bytes = flood::produce(&broker.address(), size.events, UnixMillis(i64::try_from(now)?))?;
    let [writers, organizations, keys, models, users] = flood::SPREAD;
    println!(
        "{} events of {} bytes on Kafka in {:.0} s: {writers} writers, {organizations} organizations, {keys} keys, {models} models, one in five of {users} users, one hour",
        size.events,
        bytes / size.events,
        begun.elapsed().as_secs_f64()
    );
    let mut folds = Vec::new();
    for store in ["none", "sqlite"] {
        let home = folder.path().join(store);
        std::fs::create_dir(&home)?;
        let fold = ledger::measure(Making::new(programs, &home), &broker, size.events, store)
            .with_context(|| format!("with `billing.store = \"{store}\"`"))?;
        println!("`billing.store = \"{store}\"`");
        for line in fold.lines() {
            println!("  {line}");
        }
        folds.push((store, fold));
    }
    let told = |fold: &Fold| {
        let paces = fold.paces.iter().map(|pace| {
            let stages = pace
                .stages
                .iter()
                .map(|(name, us)| ((*name).to_owned(), json!(us)));
            let stages: serde_json::Map<String, Value> = stages.collect();
            json!({"reader": pace.reader, "events_per_s": pace.events_per_s, "stage_us": stages})
        });
        json!({
            "readers": paces.collect::<Vec<_>>(),
            "replica_cpu_us": fold.threads,
            "broker_cpu_us": fold.broker_us,
        })
    };
    let folds: serde_json::Map<String, Value> = folds
        .iter()
        .map(|(store, fold)| ((*store).to_owned(), told(fold)))
        .collect();
    Ok(json!({
        "version": 1,
        "machine": {"cores": std::thread::available_parallelism()?.get()},
        "waits": {
            "first": {"requests": waits.first.requests, "waits": waits.first.waits},
            "then": {"requests": waits.then.requests, "waits": waits.then.waits},
            "p50_us": waits.p50_us,
            "p99_us": waits.p99_us,
        },
        "ledger": {"events": size.events, "event_bytes": bytes / size.events, "store": folds},
    }))
}
