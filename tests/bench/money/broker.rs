//! A real Apache Kafka on loopback for the length of a run, by the suites' own script (`tests/kafka/broker`).

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

/// Where a broker and its controller are looked for: below the ports that the kernel gives out.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How long making a topic may take.
const TOPIC_MAX: Duration = Duration::from_secs(30);

/// One broker. Dropping it stops it.
pub(crate) struct Broker {
    folder: PathBuf,
    port: u16,
}

impl Broker {
    /// Starts it in a folder of its own; returns when it answers.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let free = |port: &u16| (0..2).all(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, port + n)).is_ok());
        let first = PORTS.start + u16::try_from(std::process::id() % 5_000)?;
        let port = (first..PORTS.end).step_by(2).find(free).context("a free port")?;
        let broker = Self {
            folder: folder.to_owned(),
            port,
        };
        let owner = std::process::id().to_string();
        broker.script("start", &["--port", &port.to_string(), "--owner", &owner])?;
        Ok(broker)
    }

    /// What a client is configured with.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Result<u32> {
        let file = std::fs::read_to_string(self.folder.join("broker-1.pid"))?;
        Ok(file.trim().parse()?)
    }

    /// Makes a topic.
    pub(crate) async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.address())
            .create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(TOPIC_MAX));
        for made in admin.create_topics([&topic], &options).await? {
            if let Err((topic, code)) = made {
                bail!("cannot make topic `{topic}`: {code}");
            }
        }
        Ok(())
    }

    fn script(&self, verb: &str, more: &[&str]) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kafka/broker");
        let output = Command::new(&script)
            .args([verb, "--dir"])
            .arg(&self.folder)
            .args(more)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", script.display()))?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.script("stop", &[]); // its owner's end stops it too
    }
}
