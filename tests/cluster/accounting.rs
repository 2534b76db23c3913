//! Two thousand requests through three replicas, whose leader dies halfway, and nodes in two regions: the provider's own count, the
//! events on Kafka, the ledger's sums, the admin API and the topic of sums by the hour agree request by request and to the nano-dollar.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use tollway_proto::usage::EndState;
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;
use tollway_tests::cluster::Plan;
use tollway_tests::traffic::{self, AnswerEnd, Call, Usage};
use tollway_tests::{aggregates, events, wait};

use crate::chaos::kill_and_restart;
use crate::world::{self, FAST, LONG, World};

/// How many requests.
const REQUESTS: usize = 2_000;
/// How many at once.
const CONCURRENCY: usize = 32;
/// The seed of the mix.
const SEED: u64 = 20_261_122;
/// How long sums may take from the billing store to Kafka, with a leader that must find out first how far the last one was.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(90);

/// One in ten hangs up, one in ten fails over, the rest is half streamed, a quarter of it in the Anthropic dialect.
fn mix(rng: &mut impl Rng, number: usize) -> Call {
    let words: String = (0..rng.random_range(1..60))
        .map(|n| format!("word{n} "))
        .collect();
    let text = format!("request {number}: {words}");
    match number % 10 {
        0 => {
            let model = if number.is_multiple_of(20) { FAST } else { LONG };
            let usage = if rng.random() {
                Usage::Asked
            } else {
                Usage::NotAsked
            };
            let prompt = format!("{text} [[tw:chunks=60]] [[tw:delay_ms=5]]");
            Call::streamed(model, prompt, usage).hanging_up_after(rng.random_range(1..20))
        }
        1 if number % 20 == 1 => Call::plain(FAST, format!("{text} [[tw:fail_at=a]]")),
        1 => Call::streamed(FAST, format!("{text} [[tw:fail_at=a]]"), Usage::NotAsked),
        rest => {
            let model = if rest % 4 == 0 { LONG } else { FAST };
            match rest % 3 {
                0 => Call::streamed(model, text, Usage::Asked),
                1 => Call::streamed(model, text, Usage::NotAsked),
                _ => Call::plain(model, text),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_kafka_ledger_and_api_agree_to_the_nano_dollar() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 1,
    })
    .await?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(SEED);
    println!("seed {SEED}");
    // The consensus library may call the leader's death an error.
    world.cluster.announce(" openraft::");
    let begun = Instant::now();
    let gate = Arc::new(tokio::sync::Semaphore::new(CONCURRENCY));
    let client = traffic::client();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..REQUESTS {
        if number == REQUESTS / 2 {
            // The first leader has published some of it, and the next one goes on.
            wait::until_ok(PUBLISHED_WITHIN, "the leader publishes sums", async || {
                let found = published(&world).await?;
                ensure!(!found.is_empty(), "no sums yet");
                Ok::<_, anyhow::Error>(())
            })
            .await;
            let leader = world.cluster.leader().await?;
            kill_and_restart(&mut world, leader, "leader", begun).await?;
        }
        let call = mix(&mut rng, number);
        let node = &world.cluster.nodes[number % 2];
        let (url, key) = (node.api_url.clone(), world.keys[number % 3 % 2].1.clone());
        let (client, permit) = (client.clone(), gate.clone().acquire_owned().await?);
        running.spawn(async move {
            let answer = traffic::send(&client, &url, &key, &call).await;
            drop(permit);
            (call, answer)
        });
    }
    let mut ids = Vec::new();
    let mut hung_up = 0;
    while let Some(done) = running.join_next().await {
        let (call, answer) = done?;
        match call.hang_up_after {
            Some(_) => {
                hung_up += usize::from(answer.end == AnswerEnd::HungUp);
                assert!(answer.status == Some(200), "{call:?}: {answer:?}");
            }
            None => assert!(answer.is_good(), "{call:?}: {answer:?}"),
        }
        let told_usage = answer.body.contains("\"usage\":{");
        let wants_usage = call.stream != Some(Usage::NotAsked);
        if call.hang_up_after.is_none() {
            assert_eq!(
                told_usage, wants_usage,
                "the usage chunk is for those who asked: {call:?}: {}",
                answer.body
            );
        }
        ids.push(answer.request_id.expect("every answer names its request"));
    }
    assert_eq!(
        hung_up,
        REQUESTS / 10,
        "every planned hang-up happened while the stream was running"
    );

    let records = world.events(Duration::from_secs(60)).await?;
    let events = events::deduplicated(&records)?;
    assert_eq!(events.len(), REQUESTS, "one event each");
    for id in &ids {
        assert!(
            events.iter().any(|event| event.request_id.as_str() == id),
            "{id} has no event"
        );
    }
    for record in &records {
        assert_eq!(record.key, record.event.tenant.organization.as_str());
        for (name, value) in record.event.headers() {
            assert_eq!(record.headers.get(name), Some(&value), "header {name}");
        }
    }
    let seen = world.seen();
    let found = world::compare(&seen, &events, world::listed)?;
    println!("{found:?}");
    assert!(
        found.exact >= REQUESTS * 9 / 10,
        "all that ended well are exact: {found:?}"
    );
    let cancelled = events
        .iter()
        .filter(|event| event.end == EndState::Cancelled)
        .count();
    assert_eq!(cancelled, REQUESTS / 10);
    let failed_over = events.iter().filter(|event| event.attempts.len() == 2).count();
    assert_eq!(
        failed_over,
        REQUESTS / 10,
        "one in ten was served by the second endpoint"
    );
    let total = world.ledger_agrees(&events, Duration::from_secs(60)).await?;
    topic_agrees(&world).await?;
    println!("{} events, {total} dollars", events.len());
    Ok(())
}

async fn published(world: &World) -> Result<aggregates::ByKey> {
    let bootstrap = world.cluster.kafka.as_ref().context("Kafka")?.bootstrap();
    tokio::task::spawn_blocking(move || aggregates::read_all(&bootstrap)).await?
}

/// Requests, tokens, list price and what is owed, of an organization and hour.
type Sums = BTreeMap<String, (u64, TokenCounts, NanoUsd, NanoUsd)>;

/// The hours of the billing store, by the key that they are published under.
async fn stored(world: &World) -> Result<Sums> {
    let answer = world
        .cluster
        .admin
        .get("usage?group_by=organization,hour&limit=1000")
        .await?;
    ensure!(answer["source"] == "billing", "from {}", answer["source"]);
    ensure!(answer["next"].is_null(), "more than one page");
    let mut sums = Sums::new();
    for row in answer["data"].as_array().context("rows")? {
        let text = |name: &str| row[name].as_str().with_context(|| format!("{name} in {row}"));
        let key = format!("{}/{}", text("organization")?, text("hour")?);
        let of = (
            world::count(row, "requests")?,
            world::tokens(&row["tokens"])?,
            NanoUsd::parse(text("cost")?)?,
            NanoUsd::parse(text("billed")?)?,
        );
        sums.insert(key, of);
    }
    Ok(sums)
}

/// Waits until the newest record of each key is the store's sum of that hour. No key's records ever went back, whoever led.
async fn topic_agrees(world: &World) -> Result<()> {
    let wanted = stored(world).await?;
    ensure!(wanted.len() >= 2, "both organizations: {wanted:?}");
    let found = wait::until_ok(
        PUBLISHED_WITHIN,
        "the newest sums on Kafka are the store's",
        async || {
            let found = published(world).await?;
            let newest: Sums = found
                .iter()
                .filter_map(|(key, records)| {
                    let last = records.last()?;
                    let sums = (last.requests, last.tokens, last.charge, last.billed);
                    Some((key.clone(), sums))
                })
                .collect();
            ensure!(newest == wanted, "Kafka {newest:#?}\nstore {wanted:#?}");
            Ok::<_, anyhow::Error>(found)
        },
    )
    .await;
    for (key, records) in &found {
        for pair in records.windows(2) {
            ensure!(
                pair[0].covers.to_offset <= pair[1].covers.to_offset
                    && pair[0].requests <= pair[1].requests
                    && pair[0].revision.0 <= pair[1].revision.0,
                "{key} went back: {pair:#?}"
            );
        }
    }
    let records: usize = found.values().map(Vec::len).sum();
    println!("{} hours in {records} aggregates", found.len());
    Ok(())
}
