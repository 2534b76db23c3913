//! A node that is killed with a prepaid organization's credit on it and never comes back: what it had stays charged until the operator
//! says, by `tollway incarnation` and `tollway account`, that nothing more will come of it; then all of it is there again.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollway_shared::money::NanoUsd;
use tollway_tests::cluster::{Node, Plan};
use tollway_tests::process::binary;
use tollway_tests::wait;

use crate::world::{FAST, World};

/// What was paid in.
const DOLLAR: NanoUsd = NanoUsd(tollway_shared::money::NANO_PER_USD);
/// Requests that the node serves before it dies.
const REQUESTS: usize = 5;
/// How long a node's report may take.
const REPORTED_WITHIN: Duration = Duration::from_secs(20);

/// The operator at a terminal.
struct Operator {
    url: String,
    key: String,
    ca: std::path::PathBuf,
}

impl Operator {
    /// Types a command. Returns its exit code and the JSON that it printed.
    fn types(&self, command: &str) -> Result<(i32, Value)> {
        let done = Command::new(binary("tollway")?)
            .args(command.split(' '))
            .args(["--output", "json"])
            .env("TOLLWAY_ADMIN_URL", &self.url)
            .env("TOLLWAY_ADMIN_KEY", &self.key)
            .env("TOLLWAY_CA", &self.ca)
            .output()?;
        let code = done.status.code().context("it ended by itself")?;
        let printed = String::from_utf8(done.stdout)?;
        let value = serde_json::from_str(&printed).unwrap_or(Value::String(printed));
        Ok((code, value))
    }

    fn done(&self, command: &str) -> Result<Value> {
        let (code, printed) = self.types(command)?;
        ensure!(code == 0, "`tollway {command}` ended with {code}: {printed}");
        Ok(printed)
    }

    /// What of the organization's credit is with nodes or uncounted, what of that is uncounted, and what may be spent.
    fn credit(&self) -> Result<[NanoUsd; 3]> {
        let account = self.done("account show first")?;
        let amount = |name: &str| -> Result<NanoUsd> {
            let text = account[name].as_str();
            Ok(NanoUsd::parse(
                text.with_context(|| format!("{name} in {account}"))?,
            )?)
        };
        Ok([amount("held")?, amount("uncounted")?, amount("spendable")?])
    }
}

async fn asks(world: &World, node: &Node) -> Result<u16> {
    let prompt = "[[tw:completion_tokens=5000]] [[tw:chunks=3]]";
    let body = json!({"model": FAST, "max_tokens": 5_000, "messages": [{"role": "user", "content": prompt}]});
    let request = world
        .cluster
        .http
        .post(format!("{}/chat/completions", node.api_url));
    let reply = request.bearer_auth(&world.keys[0].1).json(&body).send().await?;
    let status = reply.status().as_u16();
    reply.text().await?;
    Ok(status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_of_a_node_that_never_comes_back_is_the_operators_to_release() -> Result<()> {
    let _turn = crate::turn().await;
    let mut world = World::start(Plan {
        replicas: 1,
        nodes: vec!["eu", "us"],
        brokers: 0, // nothing is counted: as if every event died with the node
    })
    .await?;
    let operator = Operator {
        url: world.cluster.admin.first_url(),
        key: world.cluster.admin.key().to_owned(),
        ca: world.cluster.dir.path().join("replica-1").join("ca.pem"),
    };
    operator.done("account top-up first --amount 1 --method promo --reference pay-1")?;
    operator.done("account billing first --mode prepaid")?;
    let revision = world.cluster.admin.get("cluster").await?["revision"]
        .as_u64()
        .context("the cluster's revision")?;
    world.cluster.settled_at(revision, REPORTED_WITHIN).await;
    for _ in 0..REQUESTS {
        let status = asks(&world, &world.cluster.nodes[0]).await?;
        ensure!(status == 200, "{status}");
    }
    wait::until_ok(REPORTED_WITHIN, "the node says what it has spent", || async {
        let [_, uncounted, _] = operator.credit()?;
        ensure!(uncounted > NanoUsd::ZERO);
        Ok::<_, anyhow::Error>(())
    })
    .await;

    let listed = operator.done("incarnation list --node eu-1")?;
    let life = &listed["data"][0];
    ensure!(life["standing"] == "live", "{listed}");
    let id = life["id"].as_str().context("its id")?.to_owned();
    let (code, told) = operator.types(&format!("incarnation release {id}"))?;
    ensure!(code == 5, "a live one may still spend: {code}, {told}");

    let node = &mut world.cluster.nodes[0];
    node.member.kill();
    std::fs::remove_dir_all(&node.data_dir)?;
    operator.done(&format!("incarnation fence {id}"))?;
    let [held, spent, spendable] = operator.credit()?;
    ensure!(
        held > spent,
        "what it has out stays charged: {held}, {spent} of it spent"
    );
    ensure!(held.0 + spendable.0 == DOLLAR.0, "{held} and {spendable}");
    let leases = operator.done(&format!("get incarnation {id}"))?;
    ensure!(leases["leases"][0]["budget"] == "credit.first", "{leases}");

    operator.done(&format!("incarnation release {id}"))?;
    let [held, uncounted, _] = operator.credit()?;
    ensure!(
        held == uncounted && uncounted == spent,
        "what it said it spent stays charged: {held}, {uncounted}, {spent}"
    );
    let (code, told) = operator.types("account release first --amount 1")?;
    ensure!(code == 5, "more than there is: {code}, {told}");
    operator.done(&format!(
        "account release first --amount {uncounted} --reason burned"
    ))?;
    let found = operator.credit()?;
    ensure!(found == [NanoUsd::ZERO, NanoUsd::ZERO, DOLLAR], "{found:?}");
    let status = asks(&world, &world.cluster.nodes[1]).await?;
    ensure!(status == 200, "the other node serves: {status}");
    Ok(())
}
