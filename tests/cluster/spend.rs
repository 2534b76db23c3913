//! Callers who spend a budget of one dollar as fast as they are let, and the providers' own count of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollway_shared::cost;
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;
use tollway_tests::provider::Route;
use tollway_tests::{traffic, wait};

use crate::world::{self, FAST, World};

/// The budget.
pub(crate) const DOLLAR: NanoUsd = NanoUsd(tollway_shared::money::NANO_PER_USD);
/// What may be left when nobody is served any more: on a busy machine nodes may pass the last few requests' money round for longer
/// than anybody waits.
const LEFT_MAX: NanoUsd = NanoUsd(DOLLAR.0 / 100);
/// Pause after a refusal that says that the money is spent, and after any other failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(50));
/// When nobody has been served for so long, and some were told so, everything is spent.
const QUIET: Duration = Duration::from_secs(4);
/// How long the books may take to hear of everything.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// What each caller asks for, again and again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    /// Tokens of the answer, which is also its cap.
    pub(crate) tokens: u64,
    /// How long the provider takes for it.
    pub(crate) stall_ms: u64,
}

impl Question {
    /// The most that one sets aside: its answer at the dearer of both endpoints, and a prompt of a thousand tokens.
    pub(crate) fn hold(self) -> i64 {
        self.tokens as i64 * 833 + 1_000 * 211
    }
}

/// What callers have seen.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) served: AtomicU64,
    spent: AtomicU64,
    unavailable: AtomicU64,
    broken: AtomicU64,
    /// How many had been served when one was first refused as spent.
    refused_at: AtomicI64,
    stop: AtomicBool,
}

impl Tally {
    fn new() -> Self {
        Self {
            refused_at: AtomicI64::new(i64::MAX),
            ..Self::default()
        }
    }

    /// For people.
    fn told(&self) -> String {
        let served = self.served.load(Relaxed);
        let first = self.refused_at.load(Relaxed);
        let first = if first == i64::MAX {
            "none".to_owned()
        } else {
            format!("the first after {first} were served")
        };
        format!(
            "{served} requests served, {} refused as spent ({first}), {} as unavailable, {} broken",
            self.spent.load(Relaxed),
            self.unavailable.load(Relaxed),
            self.broken.load(Relaxed),
        )
    }
}

/// Callers on every node.
pub(crate) struct Callers {
    pub(crate) tally: Arc<Tally>,
    running: JoinSet<()>,
}

impl Callers {
    /// Puts the budget on the first organization, and starts so many callers on every node.
    pub(crate) async fn start(world: &World, on_each: usize, question: Question) -> Result<Self> {
        let budget = json!({"scope": {"organization": "first"}, "limit": "1", "period": "lifetime"});
        let revision = world
            .cluster
            .admin
            .put("budgets/dollar", budget)
            .await?
            .revision();
        world.cluster.settled_at(revision, Duration::from_secs(20)).await;
        let tally = Arc::new(Tally::new());
        let mut running = JoinSet::new();
        for node in &world.cluster.nodes {
            for _ in 0..on_each {
                let (url, key) = (node.api_url.clone(), world.keys[0].1.clone());
                running.spawn(caller(url, key, question, tally.clone()));
            }
        }
        Ok(Self { tally, running })
    }

    /// How many requests were served.
    pub(crate) fn served(&self) -> u64 {
        self.tally.served.load(Relaxed)
    }

    /// Waits until nobody is served any more because all is spent, or `longest`, and ends the callers.
    pub(crate) async fn spent(mut self, longest: Duration) -> Result<Arc<Tally>> {
        let counts = |tally: &Tally| (tally.served.load(Relaxed), tally.spent.load(Relaxed));
        let (begun, mut since) = (Instant::now(), Instant::now());
        let (mut served, mut refused) = counts(&self.tally);
        loop {
            let now = counts(&self.tally);
            if now.0 != served {
                ((served, refused), since) = (now, Instant::now());
            }
            // Nobody served and nobody refused: the cluster is busy with what was done to it.
            let over = now.1 > refused && since.elapsed() >= QUIET;
            if over || begun.elapsed() >= longest {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.tally.stop.store(true, Relaxed);
        while let Some(ended) = self.running.join_next().await {
            ended.context("a caller panicked")?;
        }
        Ok(self.tally)
    }
}

/// Asks again and again, whatever comes.
async fn caller(url: String, key: String, question: Question, tally: Arc<Tally>) {
    let client = traffic::client();
    let Question { tokens, stall_ms } = question;
    let prompt = format!("[[tw:completion_tokens={tokens}]] [[tw:chunks=3]] [[tw:stall_ms={stall_ms}]]");
    let body =
        json!({"model": FAST, "max_tokens": tokens, "messages": [{"role": "user", "content": prompt}]});
    while !tally.stop.load(Relaxed) {
        let request = client.post(format!("{url}/chat/completions"));
        let sent = request.bearer_auth(&key).json(&body).send().await;
        let (count, pause) = match sent.as_ref().map(|response| response.status().as_u16()) {
            Ok(200) => (&tally.served, Duration::ZERO),
            Ok(403) => (&tally.spent, PAUSES.0),
            Ok(503) => (&tally.unavailable, PAUSES.1),
            _ => (&tally.broken, PAUSES.1),
        };
        count.fetch_add(1, Relaxed);
        if let Ok(response) = sent {
            let refused = response.status() == 403;
            let text = response.text().await.unwrap_or_default();
            if refused {
                let served = i64::try_from(tally.served.load(Relaxed)).unwrap_or(i64::MAX);
                tally.refused_at.fetch_min(served, Relaxed);
                let body: Value = serde_json::from_str(&text).expect("a refusal is JSON");
                assert_eq!(body["error"]["code"], "budget_exhausted", "{body}");
                assert_eq!(
                    body["error"]["metadata"]["limit_source"], "organization",
                    "{body}"
                );
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// What the providers have served, at the prices of the catalog.
pub(crate) fn provider_count(world: &World) -> Result<NanoUsd> {
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

/// Compares what was spent with the dollar and with the books.
///
/// - `killed`: the most requests that were under way on nodes when these were killed. Whose end nobody saw counts whole.
pub(crate) async fn a_dollar_was_spent(
    world: &World,
    tally: &Tally,
    question: Question,
    killed: usize,
) -> Result<()> {
    let counted = provider_count(world)?;
    println!("the providers counted {counted} dollars; {}", tally.told());
    ensure!(counted <= DOLLAR, "{counted} dollars were spent of one");
    // The books say so too, once all is told: no less is settled than was spent, and no more than what died.
    let within = i64::try_from(killed)? * question.hold();
    let books = || async {
        let budget = world.cluster.admin.get("budgets/dollar").await?;
        let amount = |name: &str| -> Result<NanoUsd> {
            let text = budget[name].as_str();
            Ok(NanoUsd::parse(
                text.with_context(|| format!("{name} in {budget}"))?,
            )?)
        };
        Ok::<_, anyhow::Error>([amount("settled")?, amount("leased")?, amount("free")?])
    };
    let [settled, leased, free] = wait::until_ok(SETTLED_WITHIN, "the books are settled", || async {
        let [settled, leased, free] = books().await?;
        ensure!(settled >= counted, "settled {settled} of {counted} counted");
        ensure!(
            settled.0 + leased.0 + free.0 == DOLLAR.0 && leased.0 >= 0 && free.0 >= 0,
            "settled {settled}, leased {leased} and free {free} are not a dollar"
        );
        ensure!(
            settled.0 - counted.0 <= within,
            "settled {settled} of {counted} counted: {killed} requests cannot make the difference"
        );
        ensure!(
            leased.0 + free.0 <= LEFT_MAX.0,
            "{leased} leased and {free} free are left, and nobody was served any more"
        );
        Ok::<_, anyhow::Error>([settled, leased, free])
    })
    .await;
    println!(
        "of the dollar {settled} are settled, {leased} leased, {free} free; {} of the settled were set aside by requests that died",
        NanoUsd(settled.0 - counted.0)
    );
    Ok(())
}
