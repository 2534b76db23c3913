//! A real Apache Kafka cluster for one test, on loopback.
//!
//! A thin hand on `tests/kafka/broker`, which fetches the jars, writes the configuration and waits until every
//! broker answers. Whatever happens here is an error with the broker's log in it: a suite that cannot have a
//! real broker fails. The brokers end with the value, and also when the test process itself is killed.

use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// Ports are drawn from below the kernel's ephemeral range (32768 and up), so that a broker which is down for a
/// while does not lose its port to somebody's outgoing connection.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Draws before giving up on finding a row of free ports.
const PORT_DRAWS_MAX: usize = 100;

/// How long one admin request may take; a broker that is elected anew needs some seconds.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// One or three brokers with their own folder and ports.
#[derive(Debug)]
pub struct KafkaCluster {
    dir: tempfile::TempDir,
    host: Ipv4Addr,
    port: u16,
    nodes: u16,
}

impl KafkaCluster {
    /// Starts `nodes` brokers (1 or 3) and returns when each of them knows all the others.
    ///
    /// Blocks for 5 to 30 s: call it from `spawn_blocking` where other tasks have to run meanwhile. With three
    /// brokers a topic has three copies and takes writes while two of them live.
    pub fn start(nodes: u16) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, nodes)
    }

    /// The same at another address of this machine.
    pub fn start_at(host: Ipv4Addr, nodes: u16) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tollway-kafka-").tempdir()?;
        let port = row_of_free_ports(host, 2 * nodes)?;
        let cluster = Self {
            dir,
            host,
            port,
            nodes,
        };
        cluster.broker(&[
            "start",
            "--host",
            &host.to_string(),
            "--port",
            &port.to_string(),
            "--nodes",
            &nodes.to_string(),
        ])?;
        Ok(cluster)
    }

    /// What a client is configured with: every broker as `host:port`, separated by commas.
    pub fn bootstrap(&self) -> String {
        let hosts: Vec<String> = (0..self.nodes)
            .map(|i| format!("{}:{}", self.host, self.port + 2 * i))
            .collect();
        hosts.join(",")
    }

    /// The folder with the brokers' logs, for a test that failed.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends broker `i` (from 1) by SIGKILL: no flush, no handing over, no goodbye to its clients.
    pub fn kill_broker(&self, i: u16) -> Result<()> {
        self.check(i)?;
        let file = self.dir.path().join(format!("broker-{i}.pid"));
        let pid = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let status = Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .context("running kill")?;
        ensure!(
            status.success(),
            "broker {i} (process {}) was not there to kill",
            pid.trim()
        );
        Ok(())
    }

    /// Starts broker `i` again on its data and its port; returns when it answers. Does nothing while it runs.
    pub fn restart_broker(&self, i: u16) -> Result<()> {
        self.check(i)?;
        self.broker(&["start", "--only", &i.to_string()])
    }

    /// Stops broker `i` in good order: it flushes and hands its partitions over.
    pub fn stop_broker(&self, i: u16) -> Result<()> {
        self.check(i)?;
        self.broker(&["stop", "--only", &i.to_string()])
    }

    /// Creates a topic with as many copies as there are brokers.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.bootstrap())
            .create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(i32::from(self.nodes)));
        let options = AdminOptions::new()
            .operation_timeout(Some(ADMIN_TIMEOUT))
            .request_timeout(Some(ADMIN_TIMEOUT));
        for outcome in admin.create_topics([&topic], &options).await? {
            if let Err((topic, code)) = outcome {
                bail!("creating topic `{topic}` failed: {code}");
            }
        }
        Ok(())
    }

    fn check(&self, i: u16) -> Result<()> {
        ensure!(
            (1..=self.nodes).contains(&i),
            "there is no broker {i} in a cluster of {}",
            self.nodes
        );
        Ok(())
    }

    /// Runs `tests/kafka/broker` on this cluster's folder.
    fn broker(&self, args: &[&str]) -> Result<()> {
        let (verb, rest) = args.split_first().context("a verb for tests/kafka/broker")?;
        let mut command = Command::new(script());
        command
            .arg(verb)
            .arg("--dir")
            .arg(self.dir.path())
            .args(rest)
            .stdin(Stdio::null());
        if *verb == "start" {
            command.args(["--owner", &std::process::id().to_string()]);
        }
        let output = command
            .output()
            .with_context(|| format!("running {}", script().display()))?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for KafkaCluster {
    fn drop(&mut self) {
        // SIGKILL: the data goes with the folder, so a clean stop would only cost seconds. One that a test has
        // already killed is not there any more, which is fine.
        for i in 1..=self.nodes {
            let _ = self.kill_broker(i);
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka/broker")
}

/// The first of `count` neighbouring ports that nobody listens on.
fn row_of_free_ports(host: Ipv4Addr, count: u16) -> Result<u16> {
    for _ in 0..PORT_DRAWS_MAX {
        let draw = std::hash::RandomState::new().build_hasher().finish();
        let span = u64::from(PORTS.end - PORTS.start - count);
        let first = PORTS.start + u16::try_from(draw % span).expect("the span of a u16 range fits a u16");
        if (first..first + count).all(|port| TcpListener::bind((host, port)).is_ok()) {
            return Ok(first);
        }
    }
    bail!(
        "found no {count} free ports in a row between {} and {}",
        PORTS.start,
        PORTS.end
    )
}
