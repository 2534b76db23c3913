//! While requests flow, processes die: the leader, a follower, a node, a broker, five times each.
//!
//! No acknowledged admin write is lost, no request is billed twice, every request that reached a provider has exactly one final
//! event, and callers on the node that lives see no error from anybody's death.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tollway_tests::admin::Admin;
use tollway_tests::cluster::Plan;
use tollway_tests::events;
use tollway_tests::traffic::{self, Answer, Call, Usage};
use tollway_tests::wait;

use crate::world::{self, FAST, LONG, World};

/// How often each kind of process dies.
const ROUNDS: usize = 5;
/// Requests per second over both nodes.
const RATE: u64 = 200;
/// How long a broker stays dead.
const BROKER_DOWN: Duration = Duration::from_secs(60);
/// Requests in flight before the generator holds back, so that a stall cannot grow without bound.
const IN_FLIGHT_MAX: usize = 2_000;

/// Callers that send at a fixed rate until told to stop. Returns what those on each node saw.
async fn callers(urls: [String; 2], keys: Vec<String>, stop: Arc<AtomicBool>) -> [Vec<Answer>; 2] {
    let client = traffic::client();
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut running = tokio::task::JoinSet::new();
    let mut answers = [Vec::new(), Vec::new()];
    let mut number = 0usize;
    while !stop.load(Relaxed) {
        ticks.tick().await;
        while let Some(done) = running.try_join_next() {
            let (node, answer): (usize, Answer) = done.expect("a caller does not panic");
            answers[node].push(answer);
        }
        if running.len() >= IN_FLIGHT_MAX {
            continue;
        }
        let node = number % 2;
        let model = if number.is_multiple_of(5) { LONG } else { FAST };
        let call = match number % 4 {
            0 | 1 => Call::plain(model, format!("chaos {number}")),
            2 => Call::streamed(
                model,
                format!("chaos {number} [[tw:chunks=5]] [[tw:delay_ms=10]]"),
                Usage::Asked,
            ),
            _ => Call::streamed(model, format!("chaos {number} [[tw:chunks=3]]"), Usage::NotAsked),
        };
        let (client, url, key) = (
            client.clone(),
            urls[node].clone(),
            keys[number % keys.len()].clone(),
        );
        running.spawn(async move { (node, traffic::send(&client, &url, &key, &call).await) });
        number += 1;
    }
    while let Some(done) = running.join_next().await {
        let (node, answer) = done.expect("a caller does not panic");
        answers[node].push(answer);
    }
    answers
}

/// An operator who keeps writing and remembers every acknowledged write.
async fn operator(
    admin: Admin,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    let mut number = 0usize;
    while !stop.load(Relaxed) {
        let id = format!("chaos-{}", number % 50);
        let name = format!("write {number}");
        let body = json!({"name": name});
        let path = format!("organizations/{id}");
        // Unanswered writes are retried with the same idempotency key until they are answered.
        if admin
            .send("PUT", &path, Some(&body), Duration::from_secs(60))
            .await
            .is_ok_and(|reply| reply.status < 300)
        {
            kept.insert(id, name);
            acknowledged.fetch_add(1, Relaxed);
        } else {
            panic!("a write was not answered within a minute although a majority lives");
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_billed_twice_whoever_dies() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 3,
    })
    .await?;
    // The consensus library may call a peer's death an error; what it means to the cluster is told by our own lines.
    world.cluster.announce(" openraft::");
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let urls = [
        world.cluster.nodes[0].api_url.clone(),
        world.cluster.nodes[1].api_url.clone(),
    ];
    let keys = world.keys.iter().map(|(_, key)| key.clone()).collect();
    let traffic = tokio::spawn(callers(urls, keys, stop.clone()));
    let writes = tokio::spawn(operator(
        world.cluster.admin.clone(),
        stop.clone(),
        acknowledged.clone(),
    ));
    let begun = Instant::now();
    for round in 0..ROUNDS {
        // In odd rounds two of three brokers die: nothing can be acknowledged until one is back.
        let brokers: Vec<u16> = (0..=u16::try_from(round % 2)?)
            .map(|n| (u16::try_from(round).unwrap_or(0) + n) % 3 + 1)
            .collect();
        let kafka = world.cluster.kafka.as_ref().context("Kafka")?;
        for broker in &brokers {
            kafka.kill_broker(*broker)?;
        }
        let broker_died = Instant::now();
        println!("{:?}: round {round}: brokers {brokers:?} killed", begun.elapsed());

        let leader = world.cluster.leader().await?;
        kill_and_restart(&mut world, leader, "leader", begun).await?;
        let leader = world.cluster.leader().await?;
        kill_and_restart(&mut world, (leader + 1) % 3, "follower", begun).await?;
        println!("{:?}: node killed", begun.elapsed());
        let node = &mut world.cluster.nodes[0];
        node.member.kill();
        node.member.start()?;
        node.member.ready(&world.cluster.http).await;

        tokio::time::sleep(BROKER_DOWN.saturating_sub(broker_died.elapsed())).await;
        let kafka = world.cluster.kafka.as_ref().context("Kafka")?;
        for broker in &brokers {
            tokio::task::block_in_place(|| kafka.restart_broker(*broker))?;
        }
        println!(
            "{:?}: brokers {brokers:?} back after {:?}",
            begun.elapsed(),
            broker_died.elapsed()
        );
    }
    stop.store(true, Relaxed);
    let answers = traffic.await?;
    let kept = writes.await?;
    let sent = answers[0].len() + answers[1].len();
    let rate = sent as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{sent} requests ({rate:.0}/s), {} acknowledged writes",
        acknowledged.load(Relaxed)
    );

    for answer in &answers[1] {
        assert!(
            answer.is_good(),
            "a caller on the node that lives saw an error: {answer:?}"
        );
    }
    for answer in &answers[0] {
        assert!(
            !matches!(answer.status, Some(401 | 403 | 404)),
            "our own trouble looks like the caller's: {answer:?}"
        );
    }
    for (id, name) in &kept {
        let found = world.cluster.admin.get(&format!("organizations/{id}")).await?;
        assert_eq!(
            found["name"],
            name.as_str(),
            "the last acknowledged write of {id} is gone"
        );
    }

    let records = world.events(Duration::from_secs(120)).await?;
    let events = events::deduplicated(&records)?;
    let seen = world.seen();
    let found = world::compare(&seen, &events, world::listed)?;
    println!(
        "{} records, {} events, {} requests at providers; {found:?}",
        records.len(),
        events.len(),
        seen.len()
    );
    let total = world.ledger_agrees(&events, Duration::from_secs(120)).await?;
    println!("the ledger agrees: {total} dollars");
    Ok(())
}

pub(crate) async fn kill_and_restart(
    world: &mut World,
    replica: usize,
    role: &str,
    begun: Instant,
) -> Result<()> {
    println!("{:?}: {role} (replica {}) killed", begun.elapsed(), replica + 1);
    let died = Instant::now();
    world.cluster.replicas[replica].kill();
    let admin = world.cluster.admin.clone();
    wait::until_ok(Duration::from_secs(30), "the other two take writes", || async {
        let body = json!({"name": "probe"});
        let reply = admin
            .send("PUT", "organizations/probe", Some(&body), Duration::from_secs(1))
            .await?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await;
    println!(
        "{:?}: next acknowledged write {:?} after the {role}'s death",
        begun.elapsed(),
        died.elapsed()
    );
    let member = &mut world.cluster.replicas[replica];
    member.start()?;
    wait::until_ok(
        Duration::from_secs(30),
        "the replica is back and has caught up",
        || async {
            // Each replica knows its own log; what the others have reached is asked of another one.
            let own = admin.at(replica).get("cluster").await?;
            let other = admin.at((replica + 1) % 3).get("cluster").await?;
            let (applied, last) = (
                own["applied"].as_u64().unwrap_or(0),
                other["last_log"].as_u64().unwrap_or(u64::MAX),
            );
            ensure!(applied + 50 >= last, "applied {applied} of {last}");
            Ok::<_, anyhow::Error>(())
        },
    )
    .await;
    Ok(())
}
