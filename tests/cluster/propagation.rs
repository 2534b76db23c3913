//! What an admin changes is in force on every connected node at once: a revoked key, an edited price.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tollway_tests::cluster::Plan;
use tollway_tests::events;
use tollway_tests::traffic::{self, Call};
use tollway_tests::wait;

use crate::world::{FAST, World};

/// The promise: from the admin answer to the last node.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);
/// How many keys are revoked.
const REVOCATIONS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_refused_everywhere_within_a_second() -> Result<()> {
    let _turn = crate::turn().await;
    let world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 0,
    })
    .await?;
    let client = traffic::client();
    let mut slowest = Duration::ZERO;
    for round in 0..REVOCATIONS {
        let (id, key) = world.cluster.add_key("first-project").await?;
        let call = Call::plain(FAST, "hello");
        for node in &world.cluster.nodes {
            wait::until_ok(Duration::from_secs(5), "the new key works", || async {
                let answer = traffic::send(&client, &node.api_url, &key, &call).await;
                anyhow::ensure!(answer.is_good(), "{answer:?}");
                Ok::<_, anyhow::Error>(())
            })
            .await;
        }
        let replica = round % world.cluster.replicas.len();
        world
            .cluster
            .admin
            .at(replica)
            .post(&format!("keys/{id}/revoke"), json!({}))
            .await?;
        let answered = Instant::now();
        for node in &world.cluster.nodes {
            loop {
                let answer = traffic::send(&client, &node.api_url, &key, &call).await;
                if answer.status == Some(401) {
                    assert_eq!(answer.json()["error"]["code"], "revoked_api_key", "{answer:?}");
                    break;
                }
                assert!(
                    answered.elapsed() < REVOKED_WITHIN,
                    "node {} still serves a revoked key",
                    node.id
                );
            }
        }
        slowest = slowest.max(answered.elapsed());
    }
    println!(
        "{REVOCATIONS} revocations, slowest {slowest:?} from the admin answer to the last node's refusal"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_price_is_one_delta_and_bills_from_its_revision_on() -> Result<()> {
    let _turn = crate::turn().await;
    let world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 1,
    })
    .await?;
    let client = traffic::client();
    let http = &world.cluster.http;
    // Two passes: only the second begins after every node is connected and quiet.
    let mut prices = Vec::new(); // (revision from which it is in force, input price)
    for pass in 1..=5u32 {
        let mut before = Vec::new();
        for node in &world.cluster.nodes {
            before.push((
                node.member.metric(http, "tollway_snapshot_deltas_total").await?,
                node.member.metric(http, "tollway_snapshot_changes_total").await?,
                node.member.metric(http, "tollway_snapshot_fulls_total").await?,
            ));
        }
        let price = format!("0.{pass}11");
        let revision = world.cluster.add_price("a/acme/fast", [&price, "0.7"]).await?;
        prices.push((revision, price));
        // Requests race with the push: each must be billed at the price of the revision it says it was admitted under.
        for number in 0..20 {
            let node = &world.cluster.nodes[number % 2];
            let answer = traffic::send(
                &client,
                &node.api_url,
                &world.keys[0].1,
                &Call::plain(FAST, "price"),
            )
            .await;
            assert!(answer.is_good(), "{answer:?}");
        }
        world.cluster.settled_at(revision, Duration::from_secs(5)).await;
        for (node, (deltas, changes, fulls)) in world.cluster.nodes.iter().zip(before) {
            let member = &node.member;
            assert_eq!(
                member.metric(http, "tollway_snapshot_deltas_total").await? - deltas,
                1.0,
                "one delta"
            );
            assert_eq!(
                member.metric(http, "tollway_snapshot_changes_total").await? - changes,
                1.0,
                "of one change"
            );
            assert_eq!(
                member.metric(http, "tollway_snapshot_fulls_total").await? - fulls,
                0.0,
                "and no full snapshot"
            );
        }
    }
    let records = world.events(Duration::from_secs(30)).await?;
    let events = events::deduplicated(&records)?;
    assert_eq!(events.len(), 100);
    for event in events {
        let in_force = prices
            .iter()
            .rev()
            .find(|(revision, _)| *revision <= event.revision.0);
        let expected = in_force.map_or("0.137", |(_, price)| price.as_str());
        assert_eq!(
            event.prices.input.to_string(),
            expected,
            "admitted under revision {}",
            event.revision
        );
        events::recompute(event).context("the charge")?;
    }
    Ok(())
}
