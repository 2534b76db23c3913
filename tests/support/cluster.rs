//! A whole Tollway cluster for one test, on loopback or in a network of its own: replicas and nodes as real processes with fsync, real Kafka, and the
//! scripted provider as the only thing that is not what an operator would run.
//!
//! Built the way the README tells an operator: `init`, join tokens, `join`, `run`, then the catalog through the admin API.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::alarms;
use crate::config::{control_config, data_config};
use crate::kafka::KafkaCluster;
pub use crate::member::Member;
use crate::network::{HUB, Network, Place};
use crate::process::{binary, free_port};
use crate::provider::Provider;
use crate::wait;

/// Partitions of the usage topic in tests.
pub const PARTITIONS: i32 = 6;
/// The usage topic.
pub const TOPIC: &str = tollway_proto::usage::TOPIC;
/// Lines of each log that a failed test shows.
const LOG_LINES_SHOWN: usize = 15;
/// How long a cluster may take to count another voter on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// A node and its public API.
pub struct Node {
    /// The process.
    pub member: Member,
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// The base that clients take, ending in `/v1`.
    pub api_url: String,
    /// Its folder.
    pub data_dir: PathBuf,
}

/// What to build.
pub struct Plan {
    /// How many replicas.
    pub replicas: usize,
    /// One node per entry, in that region.
    pub nodes: Vec<&'static str>,
    /// How many Kafka brokers: 0 (no usage log at all), 1 or 3.
    pub brokers: u16,
}

/// A running cluster. Dropping it kills every process.
pub struct Cluster {
    /// The folder of everything.
    pub dir: tempfile::TempDir,
    /// The usage log.
    pub kafka: Option<KafkaCluster>,
    /// The replicas, in the order in which they joined.
    pub replicas: Vec<Member>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The admin API of all replicas.
    pub admin: Admin,
    /// A client for plain HTTP.
    pub http: reqwest::Client,
    /// The network, if the cluster has one of its own.
    pub network: Option<Network>,
    announced: Vec<&'static str>,
}

impl Cluster {
    /// Builds and starts everything; every process is ready when this returns.
    pub async fn start(plan: Plan) -> Result<Self> {
        Self::start_in(None, plan).await
    }

    /// The same with each process in a namespace of the network.
    pub async fn start_in(network: Option<Network>, plan: Plan) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tollway-cluster-").tempdir()?;
        let kafka = match plan.brokers {
            0 => None,
            brokers => {
                let host = network.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| HUB);
                let kafka =
                    tokio::task::spawn_blocking(move || KafkaCluster::start_at(host, brokers)).await??;
                kafka.create_topic(TOPIC, PARTITIONS).await?;
                Some(kafka)
            }
        };
        let bootstrap = kafka.as_ref().map(KafkaCluster::bootstrap);
        let http = crate::traffic::client();
        let mut replicas = Vec::new();
        let mut urls = Vec::new();
        let mut peers = Vec::new();
        let mut first: Option<(Admin, Vec<u8>, String)> = None;
        for number in 1..=plan.replicas {
            let ports = (free_port()?, free_port()?);
            let place = place_in(network.as_ref())?;
            let home = dir.path().join(format!("replica-{number}"));
            let config = control_config(&home, place.ip, ports, bootstrap.as_deref())?;
            let url = format!("https://{}:{}", place.ip, ports.0);
            match &first {
                None => {
                    let printed = tool(
                        "tollway-control",
                        &["init", "--config", text(&config), "--output", "json"],
                    )?;
                    let printed: Value = serde_json::from_str(&printed).context("init prints JSON")?;
                    let key = printed["admin_key"]
                        .as_str()
                        .context("init prints the admin key")?
                        .to_owned();
                    let ca = std::fs::read(home.join("ca.pem")).context("init writes ca.pem")?;
                    first = Some((Admin::new(vec![url.clone()], &key, &ca)?, ca, key));
                }
                Some((admin, ..)) => {
                    let token = admin.post("join-tokens", json!({"kind": "replica"})).await?;
                    let token = token.body["token"].as_str().context("a token")?.to_owned();
                    let arguments = [
                        "join",
                        "--config",
                        text(&config),
                        "--control",
                        urls[0],
                        "--token",
                        &token,
                    ];
                    tool("tollway-control", &arguments)?;
                }
            }
            let mut member = Member {
                name: format!("replica-{number}"),
                place,
                program: binary("tollway-control")?,
                config,
                logs: dir.path().join("logs"),
                process: None,
                ops_url: url.clone(),
            };
            member.start()?;
            urls.push(Box::leak(url.into_boxed_str()) as &str);
            peers.push(format!("{}:{}", member.place.ip, ports.1));
            let (admin, ca, key) = first.as_ref().context("the first replica made the cluster")?;
            member.ready(&Admin::http(ca)?).await;
            let voters = number;
            wait::until_ok(READY, &format!("{voters} voters"), || async {
                let status = admin.get("cluster").await?;
                let found = status["members"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|m| m["voter"] == true)
                    .count();
                ensure!(found == voters, "{found} voters: {status}");
                Ok::<_, anyhow::Error>(())
            })
            .await;
            let _ = key;
            replicas.push(member);
        }
        let (_, ca, key) = first.context("at least one replica")?;
        let admin = Admin::new(urls.iter().map(|url| (*url).to_owned()).collect(), &key, &ca)?;
        let mut cluster = Self {
            dir,
            kafka,
            replicas,
            nodes: Vec::new(),
            admin,
            http,
            network,
            announced: Vec::new(),
        };
        for region in plan.nodes {
            cluster.add_node(region, &peers).await?;
        }
        Ok(cluster)
    }

    /// Says that lines at level ERROR with this text come from what the test does. Any other fails the test at its end.
    pub fn announce(&mut self, text: &'static str) {
        self.announced.push(text);
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.replicas
            .iter()
            .chain(self.nodes.iter().map(|node| &node.member))
    }

    /// Every line that should have woken somebody up, after the name of who wrote it.
    fn alarms(&self) -> Vec<String> {
        let of = |member: &Member| -> Vec<String> {
            let log = member.log();
            let alarms = alarms::unannounced(&log, &self.announced);
            alarms
                .iter()
                .map(|line| format!("{}: {line}", member.name))
                .collect()
        };
        self.members().flat_map(of).collect()
    }

    async fn add_node(&mut self, region: &str, peers: &[String]) -> Result<()> {
        let id = format!("{region}-{}", self.nodes.len() + 1);
        let ports = (free_port()?, free_port()?);
        let place = place_in(self.network.as_ref())?;
        let ip = place.ip;
        let home = self.dir.path().join(&id);
        let config = data_config(
            &home,
            ip,
            ports,
            peers,
            self.kafka.as_ref().map(KafkaCluster::bootstrap).as_deref(),
        )?;
        let token = self
            .admin
            .post("join-tokens", json!({"kind": "node", "region": region}))
            .await?;
        let token = token.body["token"].as_str().context("a token")?.to_owned();
        let url = self.admin.first_url();
        tool(
            "tollway-data",
            &[
                "join",
                "--config",
                text(&config),
                "--control",
                &url,
                "--token",
                &token,
                "--node",
                &id,
            ],
        )?;
        let mut member = Member {
            name: id.clone(),
            place,
            program: binary("tollway-data")?,
            config,
            logs: self.dir.path().join("logs"),
            process: None,
            ops_url: format!("http://{ip}:{}", ports.1),
        };
        member.start()?;
        self.nodes.push(Node {
            member,
            id,
            region: region.to_owned(),
            api_url: format!("http://{ip}:{}/v1", ports.0),
            data_dir: home,
        });
        let node = self.nodes.last().context("it was pushed a line ago")?;
        node.member.ready(&self.http).await;
        Ok(())
    }

    /// Puts a provider, with a credential, into the catalog.
    pub async fn add_provider(&self, id: &str, dialect: &str, provider: &Provider) -> Result<()> {
        let path = format!("providers/{id}");
        let auth = if dialect == "anthropic" {
            "x_api_key"
        } else {
            "bearer"
        };
        let base_url = format!("{}/v1", provider.base_url());
        let body = json!({"name": id, "dialect": dialect, "base_url": base_url, "auth": auth, "private_network": true,
            "stream_usage": dialect == "openai"});
        self.admin.put(&path, body).await?;
        let secret = json!({"secret": format!("secret-of-{id}")});
        self.admin
            .put(&format!("{path}/credentials/{id}-main"), secret)
            .await?;
        Ok(())
    }

    /// Puts a model into the catalog, served by `endpoints`: provider, upstream name, rank, prices per million.
    pub async fn add_model(&self, model: &str, endpoints: &[(&str, &str, u32, [&str; 2])]) -> Result<()> {
        self.admin
            .put(
                &format!("models/{model}"),
                json!({"name": model, "context_tokens": 128_000}),
            )
            .await?;
        for (provider, upstream, rank, prices) in endpoints {
            let id = format!("{provider}/{model}");
            let body =
                json!({"model": model, "provider": provider, "upstream_model": upstream, "rank": rank});
            self.admin.put(&format!("endpoints/{id}"), body).await?;
            self.add_price(&id, *prices).await?;
        }
        Ok(())
    }

    /// Adds a price version, in force at once. Returns the revision.
    pub async fn add_price(&self, endpoint: &str, [input, output]: [&str; 2]) -> Result<u64> {
        let body = json!({"endpoint": endpoint, "prices": {"input": input, "output": output}});
        Ok(self.admin.post("prices", body).await?.revision())
    }

    /// Makes an organization with one project and one key in it. Returns key id and key.
    pub async fn add_tenant(&self, organization: &str) -> Result<(String, String)> {
        self.admin
            .put(
                &format!("organizations/{organization}"),
                json!({"name": organization}),
            )
            .await?;
        let project = format!("{organization}-project");
        let body = json!({"organization": organization, "name": project});
        self.admin.put(&format!("projects/{project}"), body).await?;
        self.add_key(&project).await
    }

    /// Makes a key in a project. Returns key id and key.
    pub async fn add_key(&self, project: &str) -> Result<(String, String)> {
        let made = self
            .admin
            .post("keys", json!({"project": project, "name": "a key"}))
            .await?
            .body;
        let field = |name: &str| {
            made[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {name} in {made}"))
        };
        Ok((field("id")?, field("key")?))
    }

    /// Waits until every node runs on `revision` or a later one.
    pub async fn settled_at(&self, revision: u64, within: Duration) {
        wait::until_ok(within, &format!("all nodes at revision {revision}"), || async {
            let nodes = self.admin.get("nodes").await?;
            let list = nodes["data"].as_array().context("a list")?.clone();
            for node in &self.nodes {
                let at = list
                    .iter()
                    .find(|n| n["id"] == node.id.as_str())
                    .and_then(|n| n["revision"].as_u64());
                ensure!(
                    at.is_some_and(|at| at >= revision),
                    "node {} is at {at:?}",
                    node.id
                );
            }
            Ok::<_, anyhow::Error>(())
        })
        .await;
    }

    /// The number (from 0) of the leading replica.
    pub async fn leader(&self) -> Result<usize> {
        let status = self.admin.get("cluster").await?;
        let id = status["leader"].as_u64().context("a leader")?;
        Ok(usize::try_from(id)? - 1)
    }
}

impl Drop for Cluster {
    /// Fails a test that made somebody log at level ERROR unannounced. A failed test keeps its folder, and shows the end of
    /// every log.
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let alarms = self.alarms();
        if !failed && alarms.is_empty() && std::env::var_os("TOLLWAY_KEEP").is_none() {
            return;
        }
        self.dir.disable_cleanup(true);
        eprintln!("kept: {}", self.dir.path().display());
        for member in self.members() {
            let log = member.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- {}\n{}", member.name, end.join("\n"));
        }
        assert!(
            failed || alarms.is_empty(),
            "logged at level ERROR and not announced by the test:\n{}",
            alarms.join("\n")
        );
    }
}

fn place_in(network: Option<&Network>) -> Result<Place> {
    network.map_or_else(|| Ok(Place::loopback()), Network::place)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Runs one of our programs to its end and returns what it printed.
fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(binary(program)?).args(arguments).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {complaint}",
        output.status
    );
    Ok(printed)
}
