//! The catalog and tenants that the suites use, and the comparison of everybody's books.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tollway_proto::usage::{EndState, UsageEvent, UsageSource};
use tollway_shared::cost::Prices;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::tokens::TokenCounts;
use tollway_tests::cluster::{Cluster, Plan, TOPIC};
use tollway_tests::events::{self, Recorded};
use tollway_tests::network::{HUB, Network};
use tollway_tests::provider::{End, Options, Provider, Route, Seen};
use tollway_tests::wait;

/// Served by `a`, or by `b` when `a` fails; OpenAI dialect.
pub(crate) const FAST: &str = "acme/fast";
/// Served by `c`; Anthropic dialect.
pub(crate) const LONG: &str = "acme/long";

/// What each endpoint charges per million tokens: input, output. Odd numbers, so that every line rounds.
const PRICES: [(&str, [&str; 2]); 3] = [
    ("a", ["0.137", "0.419"]),
    ("b", ["0.211", "0.833"]),
    ("c", ["3.000000007", "15.000000013"]),
];

/// A cluster with three providers, two models and two organizations.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) providers: BTreeMap<String, Provider>,
    /// Key id and key of each organization.
    pub(crate) keys: Vec<(String, String)>,
}

impl World {
    pub(crate) async fn start(plan: Plan) -> Result<Self> {
        Self::start_in(None, plan).await
    }

    /// The same in a network of its own.
    pub(crate) async fn start_in(network: Option<Network>, plan: Plan) -> Result<Self> {
        let host = network.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| HUB);
        let cluster = Cluster::start_in(network, plan).await?;
        let mut providers = BTreeMap::new();
        for (name, _) in PRICES {
            let provider = Provider::start_with(Options {
                listen: SocketAddr::from((host, 0)),
                ..Options::named(name)
            })?;
            let dialect = if name == "c" { "anthropic" } else { "openai" };
            cluster.add_provider(name, dialect, &provider).await?;
            providers.insert(name.to_owned(), provider);
        }
        cluster
            .add_model(
                FAST,
                &[
                    ("a", "tw-small", 0, prices_text("a")),
                    ("b", "tw-small", 1, prices_text("b")),
                ],
            )
            .await?;
        cluster
            .add_model(LONG, &[("c", "tw-large", 0, prices_text("c"))])
            .await?;
        let keys = vec![
            cluster.add_tenant("first").await?,
            cluster.add_tenant("second").await?,
        ];
        let mark = cluster.add_key("first-project").await?;
        ensure!(mark.0 != keys[0].0, "key ids are unique");
        let status = cluster.admin.get("cluster").await?;
        let revision = status["revision"].as_u64().context("the cluster's revision")?;
        cluster.settled_at(revision, Duration::from_secs(20)).await;
        Ok(Self {
            cluster,
            providers,
            keys,
        })
    }

    /// Everything the providers saw, by request id, in order of arrival.
    pub(crate) fn seen(&self) -> BTreeMap<String, Vec<Seen>> {
        let mut all: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
        for provider in self.providers.values() {
            for seen in provider.seen() {
                if matches!(seen.route, Route::Chat | Route::Messages) {
                    let id = seen
                        .request_id
                        .clone()
                        .expect("the gateway names the request to the provider");
                    all.entry(id).or_default().push(seen);
                }
            }
        }
        for attempts in all.values_mut() {
            attempts.sort_by_key(|seen| seen.attempt.clone());
        }
        all
    }

    /// Waits until Kafka holds an event for everything the providers saw, and returns the records.
    pub(crate) async fn events(&self, within: Duration) -> Result<Vec<Recorded>> {
        let bootstrap = self
            .cluster
            .kafka
            .as_ref()
            .context("this cluster has Kafka")?
            .bootstrap();
        wait::until_ok(
            within,
            "an event for every request that reached a provider",
            || async {
                let bootstrap = bootstrap.clone();
                let records =
                    tokio::task::spawn_blocking(move || events::read_all(&bootstrap, TOPIC)).await??;
                let ids: std::collections::BTreeSet<&str> = records
                    .iter()
                    .map(|record| record.event.request_id.as_str())
                    .collect();
                let seen = self.seen();
                let missing: Vec<&String> = seen.keys().filter(|id| !ids.contains(id.as_str())).collect();
                ensure!(
                    missing.is_empty(),
                    "{} of {} are missing, e.g. {}",
                    missing.len(),
                    seen.len(),
                    missing[0]
                );
                ensure!(
                    seen.values().flatten().all(|seen| seen.end != End::Open),
                    "a provider is still serving"
                );
                Ok::<_, anyhow::Error>(records)
            },
        )
        .await;
        // Once more, after the last straggler: what is compared must be everything there is.
        let records = tokio::task::spawn_blocking(move || events::read_all(&bootstrap, TOPIC)).await??;
        Ok(records)
    }

    /// Waits until the ledger has counted `records`, and compares its rows with the events' own sums, cell by cell.
    pub(crate) async fn ledger_agrees(&self, events: &[&UsageEvent], within: Duration) -> Result<NanoUsd> {
        let mut expected: BTreeMap<[String; 4], (u64, TokenCounts, NanoUsd)> = BTreeMap::new();
        for event in events {
            let cell = [
                event.tenant.organization.to_string(),
                event.tenant.key.to_string(),
                event.model.to_string(),
                event.started_at.0.day().to_string(),
            ];
            let sums = expected.entry(cell).or_default();
            sums.0 += 1;
            sums.1.add(&event.tokens);
            sums.2 = sums.2.plus(event.charge.total)?;
        }
        wait::until_ok(within, "the ledger agrees with the events", || async {
            let answer = self
                .cluster
                .admin
                .get("usage?group_by=organization,key,model,day&limit=1000")
                .await?;
            ensure!(answer["source"] == "billing", "from {}", answer["source"]);
            let mut found = BTreeMap::new();
            for row in answer["data"].as_array().context("rows")? {
                let text = |name: &str| {
                    row[name]
                        .as_str()
                        .map(str::to_owned)
                        .with_context(|| format!("{name} in {row}"))
                };
                let cell = [text("organization")?, text("key")?, text("model")?, text("day")?];
                found.insert(
                    cell,
                    (
                        count(row, "requests")?,
                        tokens(&row["tokens"])?,
                        NanoUsd::parse(&text("cost")?)?,
                    ),
                );
            }
            ensure!(found == expected, "ledger {found:#?}\nevents {expected:#?}");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        // That was the billing store; this compares all of it with the sums that budgets go by.
        let compared = self.cluster.admin.get("usage/reconciliation").await?;
        ensure!(
            compared["differing"] == 0 && compared["cells"].as_u64() >= Some(expected.len() as u64),
            "{compared:#}"
        );
        expected
            .values()
            .try_fold(NanoUsd::ZERO, |sum, cell| sum.plus(cell.2))
            .context("a sum in range")
    }
}

pub(crate) fn count(row: &Value, name: &str) -> Result<u64> {
    row[name].as_u64().with_context(|| format!("{name} in {row}"))
}

pub(crate) fn tokens(row: &Value) -> Result<TokenCounts> {
    Ok(TokenCounts {
        input: count(row, "input")?,
        input_cache_read: count(row, "input_cache_read")?,
        input_cache_write: count(row, "input_cache_write")?,
        input_cache_write_1h: count(row, "input_cache_write_1h")?,
        output: count(row, "output")?,
        output_reasoning: count(row, "output_reasoning")?,
    })
}

/// What a comparison found beside agreement.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// Events whose counts are the provider's own.
    pub(crate) exact: usize,
    /// Events that say their counts are estimates.
    pub(crate) estimated: usize,
    /// Requests on which nothing was used.
    pub(crate) unused: usize,
    /// Completion tokens of the estimated ones: by the provider's count, and by the events.
    pub(crate) estimated_completion: (u64, u64),
}

/// Compares what the providers served with the events, request by request.
///
/// Every request that reached a provider has exactly one event; its attempts are the provider's entries; where the provider told
/// its usage the event has exactly these counts; its charge is these counts at the prices of the endpoint that served.
pub(crate) fn compare(
    seen: &BTreeMap<String, Vec<Seen>>,
    events: &[&UsageEvent],
    prices: impl Fn(&UsageEvent) -> Prices,
) -> Result<Comparison> {
    let mut by_id: BTreeMap<&str, &UsageEvent> = BTreeMap::new();
    for event in events {
        let other = by_id.insert(event.request_id.as_str(), event);
        ensure!(
            other.is_none(),
            "request {} has two final events",
            event.request_id
        );
        events::recompute(event)?;
        ensure!(
            event.prices == prices(event),
            "event {} carries other prices than its endpoint has",
            event.id
        );
        ensure!(
            seen.contains_key(event.request_id.as_str()) || event.end != EndState::Completed,
            "request {} was billed as completed, but no provider saw it",
            event.request_id
        );
    }
    let mut found = Comparison::default();
    for (id, attempts) in seen {
        let event = by_id
            .get(id.as_str())
            .with_context(|| format!("request {id} reached a provider and has no event"))?;
        let served = attempts.iter().find(|seen| seen.end != End::Refused);
        match (event.usage_source, served) {
            (UsageSource::Provider, Some(served)) => {
                found.exact += 1;
                let used = served.used;
                let counted = [
                    event.tokens.prompt(),
                    event.tokens.completion(),
                    event.tokens.input_cache_read,
                    event.tokens.cache_write(),
                    event.tokens.output_reasoning,
                ];
                let told = [
                    used.prompt,
                    used.completion,
                    used.cache_read,
                    used.cache_write,
                    used.reasoning,
                ];
                ensure!(
                    counted == told,
                    "request {id}: the provider counted {told:?}, the event says {counted:?}"
                );
                ensure!(
                    event.provider.as_str() == served.provider,
                    "request {id}: billed to the wrong provider"
                );
            }
            (UsageSource::Provider, None) => {
                anyhow::bail!("request {id} was refused everywhere and has provider counts")
            }
            (UsageSource::Estimated, _) => {
                found.estimated += 1;
                found.estimated_completion.0 += served.map_or(0, |seen| seen.used.completion);
                found.estimated_completion.1 += event.tokens.completion();
                ensure!(
                    event.estimator.is_some(),
                    "request {id}: an estimate must name its estimator"
                );
            }
            (UsageSource::None, _) => {
                found.unused += 1;
                let finished = attempts.iter().any(|seen| seen.end == End::Finished);
                ensure!(
                    !finished,
                    "request {id} was served and its event says nothing was used"
                );
            }
        }
    }
    Ok(found)
}

/// The price table of this world, for [`compare`].
pub(crate) fn listed(event: &UsageEvent) -> Prices {
    prices_of(event.provider.as_str())
}

/// What a provider of this world charges.
pub(crate) fn prices_of(provider: &str) -> Prices {
    let [input, output] = prices_text(provider);
    Prices::flat(
        Price::parse(input).expect("a price"),
        Price::parse(output).expect("a price"),
    )
}

/// The same as the admin API takes it.
pub(crate) fn prices_text(provider: &str) -> [&'static str; 2] {
    let listed = PRICES.iter().find(|(name, _)| *name == provider);
    listed.expect("one of our providers").1
}
