//! With every replica dead, a node restarts from its disk and serves; when they return it follows within five seconds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tollway_tests::cluster::Plan;
use tollway_tests::traffic::{self, Call, Usage};
use tollway_tests::wait;

use crate::world::{FAST, World};

/// The promise: from the replicas' readiness to a node on a newer revision.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(5);

/// What the tenant reads of its credit: status and body.
async fn credits(client: &reqwest::Client, api_url: &str, key: &str) -> Result<(u16, Value)> {
    let request = client.get(format!("{api_url}/credits")).bearer_auth(key);
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_from_disk_and_follows_the_returning_control_plane() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 0,
    })
    .await?;
    let client = traffic::client();
    world
        .cluster
        .replicas
        .iter_mut()
        .for_each(|replica| replica.kill());
    let node = &mut world.cluster.nodes[0];
    node.member.kill();
    let begun = Instant::now();
    node.member.start()?;
    node.member.ready(&client).await;
    println!("ready from disk after {:?}", begun.elapsed());
    for node in &world.cluster.nodes {
        for call in [
            Call::plain(FAST, "from disk"),
            Call::streamed(FAST, "from disk", Usage::Asked),
        ] {
            let answer = traffic::send(&client, &node.api_url, &world.keys[0].1, &call).await;
            assert!(answer.is_good(), "{}: {answer:?}", node.id);
        }
        let answer = traffic::send(&client, &node.api_url, "sk-tw-v1-wrong", &Call::plain(FAST, "x")).await;
        assert_eq!(answer.status, Some(401), "a wrong key is wrong from disk too");
        let (status, body) = credits(&client, &node.api_url, &world.keys[0].1).await?;
        assert_eq!(status, 503, "nobody says what was used: {body}");
        assert_eq!(body["error"]["metadata"]["code"], "usage_unavailable");
    }
    for replica in &mut world.cluster.replicas {
        replica.start()?;
    }
    let admin = world.cluster.admin.clone();
    wait::until_ok(
        Duration::from_secs(30),
        "the control plane has a leader again",
        || async {
            let reply = admin.send("GET", "cluster", None, Duration::from_secs(1)).await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok::<_, anyhow::Error>(())
        },
    )
    .await;
    let returned = Instant::now();
    let revision = admin
        .put("organizations/late", json!({"name": "late"}))
        .await?
        .revision();
    world.cluster.settled_at(revision, FOLLOWS_WITHIN).await;
    println!(
        "all nodes at the new revision {:?} after the return",
        returned.elapsed()
    );
    for node in &world.cluster.nodes {
        wait::until_ok(FOLLOWS_WITHIN, "usage can be read again", || async {
            let (status, body) = credits(&client, &node.api_url, &world.keys[0].1).await?;
            ensure!(
                status == 200 && body["data"]["total_usage"] == 0,
                "{status} {body}"
            );
            Ok::<_, anyhow::Error>(())
        })
        .await;
    }
    Ok(())
}
