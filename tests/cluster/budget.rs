//! A hard budget of one dollar on an organization, two nodes, callers on both of them at once, and one of them killed in the middle.
//!
//! The provider's own count, at the prices of the catalog, is not a nano-dollar above the dollar; and what was not spent is no more
//! than what the dead node's requests had set aside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollway_shared::cost;
use tollway_shared::money::{NANO_PER_USD, NanoUsd};
use tollway_shared::tokens::TokenCounts;
use tollway_tests::cluster::Plan;
use tollway_tests::provider::Route;
use tollway_tests::{traffic, wait};

use crate::world::{self, FAST, World};

/// Callers on each node.
const CALLERS: usize = 16;
/// Tokens of each answer, which is also its cap: some five hundred requests cost a dollar.
const TOKENS: u64 = 5_000;
/// The most that a request sets aside: its answer at the dearer of both endpoints, and a prompt of a thousand tokens.
const HOLD: i64 = TOKENS as i64 * 833 + 1_000 * 211;
/// When nobody has been served for so long, everything is spent.
const QUIET: Duration = Duration::from_secs(4);
/// When to give up.
const DEADLINE: Duration = Duration::from_secs(120);

/// What callers have seen.
#[derive(Default)]
struct Tally {
    served: AtomicU64,
    spent: AtomicU64,
    unavailable: AtomicU64,
    broken: AtomicU64,
    stop: AtomicBool,
}

/// Asks again and again, whatever comes.
async fn caller(url: String, key: String, tally: Arc<Tally>) {
    let client = traffic::client();
    let prompt = format!("[[tw:completion_tokens={TOKENS}]] [[tw:chunks=3]] [[tw:stall_ms=20]]");
    let body =
        json!({"model": FAST, "max_tokens": TOKENS, "messages": [{"role": "user", "content": prompt}]});
    while !tally.stop.load(Relaxed) {
        let request = client.post(format!("{url}/chat/completions"));
        let sent = request.bearer_auth(&key).json(&body).send().await;
        let (count, pause_ms) = match sent.as_ref().map(|response| response.status().as_u16()) {
            Ok(200) => (&tally.served, 0),
            Ok(403) => (&tally.spent, 200),
            Ok(503) => (&tally.unavailable, 50),
            _ => (&tally.broken, 50),
        };
        count.fetch_add(1, Relaxed);
        if let Ok(response) = sent {
            let refused = response.status() == 403;
            let text = response.text().await.unwrap_or_default();
            if refused {
                let body: Value = serde_json::from_str(&text).expect("a refusal is JSON");
                assert_eq!(body["error"]["code"], "budget_exhausted", "{body}");
                assert_eq!(
                    body["error"]["metadata"]["limit_source"], "organization",
                    "{body}"
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}

/// What the providers have served, at the prices of the catalog.
fn provider_count(world: &World) -> Result<NanoUsd> {
    let mut sum = NanoUsd::ZERO;
    for (name, provider) in &world.providers {
        for seen in provider.seen() {
            if !matches!(seen.route, Route::Chat | Route::Messages) {
                continue;
            }
            let counts = TokenCounts {
                input: seen.used.prompt,
                output: seen.used.completion,
                ..TokenCounts::default()
            };
            sum = sum.plus(cost::charge(&counts, &world::prices_of(name))?.total)?;
        }
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dollar_is_a_dollar_when_a_node_is_killed() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 0,
    })
    .await?;
    let budget = json!({"scope": {"organization": "first"}, "limit": "1", "period": "lifetime"});
    let revision = world
        .cluster
        .admin
        .put("budgets/dollar", budget)
        .await?
        .revision();
    world.cluster.settled_at(revision, Duration::from_secs(20)).await;

    let tally = Arc::<Tally>::default();
    let key = world.keys[0].1.clone();
    let mut callers = tokio::task::JoinSet::new();
    for node in &world.cluster.nodes {
        for _ in 0..CALLERS {
            callers.spawn(caller(node.api_url.clone(), key.clone(), tally.clone()));
        }
    }
    let served = || tally.served.load(Relaxed);
    wait::until(DEADLINE, "a third is spent", || served() >= 160).await;
    let node = &mut world.cluster.nodes[0];
    node.member.kill();
    node.member.start()?;
    node.member.ready(&world.cluster.http).await;
    println!("a node was killed after {} requests and is back", served());

    let (begun, mut last, mut since) = (Instant::now(), 0, Instant::now());
    while since.elapsed() < QUIET {
        ensure!(
            begun.elapsed() < DEADLINE,
            "requests are still served: {}",
            served()
        );
        if served() != last {
            (last, since) = (served(), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tally.stop.store(true, Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.context("a caller panicked")?;
    }

    let counted = provider_count(&world)?;
    println!(
        "the providers counted {counted} dollars; {} requests served, {} refused as spent, {} as unavailable, {} broken",
        served(),
        tally.spent.load(Relaxed),
        tally.unavailable.load(Relaxed),
        tally.broken.load(Relaxed),
    );
    ensure!(
        counted <= NanoUsd(NANO_PER_USD),
        "{counted} dollars were spent of one"
    );
    // What was in flight at the dead node counts whole, and the last request did not fit.
    let stranded = HOLD * (CALLERS as i64 + 1);
    ensure!(
        counted.0 >= NANO_PER_USD - stranded,
        "only {counted} dollars were spent of one, and at most {} can be out of reach",
        NanoUsd(stranded)
    );
    // The books say so too, once all is told: nothing is out, and no less is settled than was spent.
    wait::until_ok(Duration::from_secs(20), "the books are settled", || async {
        let budget = world.cluster.admin.get("budgets/dollar").await?;
        let amount = |name: &str| -> Result<NanoUsd> {
            let text = budget[name]
                .as_str()
                .with_context(|| format!("{name} in {budget}"))?;
            Ok(NanoUsd::parse(text)?)
        };
        let (settled, free) = (amount("settled")?, amount("free")?);
        ensure!(settled >= counted, "settled {settled} of {counted} counted");
        ensure!(
            settled.0 <= NANO_PER_USD && free.0 >= 0,
            "settled {settled}, free {free}"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await;
    ensure!(served() > 160, "nobody was served after the node was back");
    Ok(())
}
