//! The share of requests that wait for a lease: a node with budgets on four levels of every caller's path, under a steady load.
//!
//! Nobody has leased anything before the first request, so the first seconds are told apart: then every budget of every caller is
//! leased for the first time, by a node that does not know yet how much of it is used.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::join_all;

use super::scrape::Metrics;
use crate::load::{Target, Work, open_loop};
use crate::node::Making;
use crate::report::quantile;

/// Callers: each has a key of its own, five keys share a project, two projects a team.
const KEYS: usize = 20;
const KEYS_OF_PROJECT: usize = 5;
const PROJECTS_OF_TEAM: usize = 2;
/// Requests a second of each caller.
const RATE_PER_S: u32 = 10;
/// What the budget of a key has, US dollars; of the levels above, as much as all below. A request costs some $0.00005.
const KEY_LIMIT: usize = 1;

/// The first seconds.
const FIRST: Duration = Duration::from_secs(5);

/// Requests that the node answered, and how many of them waited for a lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) requests: f64,
    pub(crate) waits: f64,
}

impl Count {
    fn of(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.sum("tollway_requests_total"),
            waits: metrics.sum("tollway_lease_waits_total"),
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            waits: self.waits - earlier.waits,
        }
    }

    fn text(self) -> String {
        let share = 100.0 * self.waits / self.requests;
        format!("{:.0} of {:.0} ({share:.2} %)", self.waits, self.requests)
    }
}

/// What was counted.
pub(crate) struct Waits {
    /// In the first seconds.
    pub(crate) first: Count,
    /// After them.
    pub(crate) then: Count,
    /// Of a whole answer, microseconds.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Waits {
    /// How it is printed.
    pub(crate) fn line(&self) -> String {
        format!(
            "waited for a lease: {} in the first {FIRST:?}, {} after; {KEYS} keys, budgets on 4 levels, {} requests/s; answers p50 {:.0} µs, p99 {:.0} µs",
            self.first.text(),
            self.then.text(),
            KEYS as u32 * RATE_PER_S,
            self.p50_us,
            self.p99_us,
        )
    }
}

/// Runs the load on a fresh cluster.
pub(crate) async fn measure(mut making: Making<'_>, provider: SocketAddr, lasts: Duration) -> Result<Waits> {
    let (mut gateway, ops) = making.deploy(provider, None)?;
    let keys = tenants(&making)?;
    let (_, last) = making.key("bench")?; // written after the budgets, so the node that knows it has them too
    making.served(&mut gateway.parts[0], gateway.address, &last)?;

    let model = gateway.model.as_deref().unwrap_or_default();
    let work = Work::chat(model, "", 1_000, false);
    let before = Count::of(&Metrics::of(ops)?);
    let targets: Vec<Target> = keys
        .into_iter()
        .map(|api_key| Target {
            name: "gateway",
            address: gateway.address,
            path: gateway.path.clone(),
            api_key,
        })
        .collect();
    let loads = targets
        .iter()
        .map(|target| open_loop(target, &work, RATE_PER_S, lasts, || {}));
    let first = async {
        tokio::time::sleep(FIRST).await;
        Metrics::of(ops)
    };
    let (outcomes, first) = tokio::join!(join_all(loads), first);
    let first = Count::of(&first?);
    let after = Count::of(&Metrics::of(ops)?);
    let mut times = Vec::new();
    for outcome in outcomes {
        ensure!(
            outcome.failures == 0,
            "{} requests failed, the first with {:?}",
            outcome.failures,
            outcome.first_failure
        );
        times.extend(outcome.times);
    }
    Ok(Waits {
        first: first.since(before),
        then: after.since(first),
        p50_us: quantile(&times, 0.5, |times| times.total_us),
        p99_us: quantile(&times, 0.99, |times| times.total_us),
    })
}

/// Makes the tenants and their budgets; returns the keys.
fn tenants(making: &Making<'_>) -> Result<Vec<String>> {
    let projects = KEYS / KEYS_OF_PROJECT;
    let mut document = String::new();
    let mut budgets = String::new();
    let mut budget = |level: &str, id: &str, keys: usize| {
        let limit = keys * KEY_LIMIT;
        budgets += &format!(
            "[[resources]]\nkind = \"budget\"\nid = \"{level}-{id}\"\nscope = {{ {level} = \"{id}\" }}\nlimit = \"{limit}\"\nperiod = \"lifetime\"\n"
        );
    };
    budget("organization", "bench", KEYS);
    for team in 0..projects / PROJECTS_OF_TEAM {
        document += &format!(
            "[[resources]]\nkind = \"team\"\nid = \"team-{team}\"\norganization = \"bench\"\nname = \"Team\"\n"
        );
        budget(
            "team",
            &format!("team-{team}"),
            KEYS_OF_PROJECT * PROJECTS_OF_TEAM,
        );
    }
    for project in 0..projects {
        let team = project / PROJECTS_OF_TEAM;
        document += &format!(
            "[[resources]]\nkind = \"project\"\nid = \"project-{project}\"\norganization = \"bench\"\nteam = \"team-{team}\"\nname = \"Project\"\n"
        );
        budget("project", &format!("project-{project}"), KEYS_OF_PROJECT);
    }
    making.apply(&document)?;
    let mut keys = Vec::with_capacity(KEYS);
    for number in 0..KEYS {
        let (id, key) = making.key(&format!("project-{}", number / KEYS_OF_PROJECT))?;
        budget("key", &id, 1);
        keys.push(key);
    }
    making.apply(&budgets)?;
    Ok(keys)
}
