//! A hard budget of one dollar on an organization, two nodes, callers on both of them at once, and one of them killed in the middle.
//!
//! The provider's own count, at the prices of the catalog, is not a nano-dollar above the dollar; and what was not spent is no more
//! than what the dead node's requests had set aside.

use std::time::Duration;

use anyhow::{Result, ensure};
use tollway_tests::cluster::Plan;
use tollway_tests::wait;

use crate::spend::{self, Callers, Question};
use crate::world::World;

/// Callers on each node.
const CALLERS: usize = 16;
/// Some five hundred of these cost a dollar.
const QUESTION: Question = Question {
    tokens: 5_000,
    stall_ms: 20,
};
/// Requests until the node is killed: a third of the dollar.
const A_THIRD: u64 = 160;
/// When to give up.
const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dollar_is_a_dollar_when_a_node_is_killed() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 3,
        nodes: vec!["eu", "us"],
        brokers: 0,
    })
    .await?;
    let callers = Callers::start(&world, CALLERS, QUESTION).await?;
    wait::until(DEADLINE, "a third is spent", || callers.served() >= A_THIRD).await;
    let node = &mut world.cluster.nodes[0];
    node.member.kill();
    node.member.start()?;
    node.member.ready(&world.cluster.http).await;
    let before = callers.served();
    println!("a node was killed after {before} requests and is back");

    let tally = callers.spent(DEADLINE).await?;
    spend::a_dollar_was_spent(&world, &tally, QUESTION, CALLERS).await?;
    ensure!(
        tally.served.load(std::sync::atomic::Ordering::Relaxed) > before,
        "nobody was served after the node was back"
    );
    Ok(())
}
