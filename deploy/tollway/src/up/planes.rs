//! Both planes in this process: made on the first start, found again on the next, stopped in order.
//!
//! The control plane is a cluster of one replica whose admin API speaks plain HTTP on loopback; the node joins it by a
//! token and connects with mutual TLS like any node. The embedded usage log stands between them in place of Kafka.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use tollway_data::identity::{self, Identity};
use tollway_shared::ids::NodeId;
use tollway_shared::settings::log_filter_problem;
use tracing_subscriber::EnvFilter;

use super::options::Listen;
use super::quickstart::{self, Keys};
use crate::client::{Client, Target};
use crate::exit::Failure;

/// The replica's folder inside the data folder.
const CONTROL: &str = "control";
/// The node's folder.
const NODE: &str = "node";
/// The embedded usage log.
const USAGE_LOG: &str = "usage-log";
/// The node's id and its region.
const LOCAL: &str = "local";
/// How long running answers may take to end after Ctrl-C.
const DRAIN_MS_MAX: u64 = 10_000;
/// How long the usage log is waited for at the end; what it misses stays in the spool.
const FLUSH_MS_MAX: u64 = 5_000;

/// The planes while they run.
pub(crate) struct Planes {
    /// Base URL of the admin API.
    pub(crate) admin_url: String,
    /// The owner's key.
    pub(crate) admin_key: String,
    /// The base URL that SDKs take.
    pub(crate) api_url: String,
    /// Base URL of health and metrics.
    pub(crate) ops_url: String,
    /// The folder of the embedded usage log.
    pub(crate) usage_log: PathBuf,
    control: tollway_control::run::Running,
    data: tollway_data::run::Running,
}

impl Planes {
    /// Starts both, making them first if the folder has none.
    pub(crate) async fn start(data_dir: &Path, listen: Listen, keys: &mut Keys) -> Result<Self, Failure> {
        // One recorder for the process: the node's, whose buckets suit both.
        if let Some(recorder) = tollway_data::metrics::install() {
            tollway_control::metrics::adopt(recorder);
        }
        let usage_log = data_dir.join(USAGE_LOG);
        let mut config = control_config(data_dir.join(CONTROL), listen, &usage_log)?;
        let admin_key = owner(data_dir, &config, keys).await?;
        config.data_dir = data_dir.join(CONTROL);
        let control = tollway_control::run::start(config)
            .await
            .context("the control plane does not start")?;
        let node = match node(data_dir, listen, &usage_log, &control, &admin_key).await {
            Ok(node) => node,
            Err(failure) => {
                control.stop().await;
                return Err(failure);
            }
        };
        Ok(Self {
            admin_url: control.admin_url.clone(),
            admin_key,
            api_url: format!("{}/v1", node.api_url),
            ops_url: node.ops_url.clone(),
            usage_log,
            control,
            data: node,
        })
    }

    /// Stops taking requests, lets answers end (until `hurried` is done: then they are ended with an error event), empties the spool, then
    /// stops the control plane.
    pub(crate) async fn stop(self, hurried: impl Future<Output = ()>) {
        self.data.stop_unless(hurried).await;
        self.control.stop().await;
    }
}

fn control_config(
    dir: PathBuf,
    listen: Listen,
    usage_log: &Path,
) -> anyhow::Result<tollway_control::config::Config> {
    let text = json!({
        "data_dir": dir,
        "admin": {"listen": listen.admin, "tls": "off"},
        "peer": {"listen": "127.0.0.1:0"},
        "usage": {"source": "file", "dir": usage_log},
    });
    serde_json::from_value(text).context("the control plane's settings")
}

/// Makes the cluster if there is none, and returns the owner's key.
///
/// It is made beside its place and moved there once the key is kept: a crash in between leaves no cluster whose only key
/// is lost.
async fn owner(
    data_dir: &Path,
    config: &tollway_control::config::Config,
    keys: &mut Keys,
) -> anyhow::Result<String> {
    let place = data_dir.join(CONTROL);
    if place.exists() {
        return keys.admin_key.clone().with_context(|| {
            format!(
                "{} holds a cluster, but its admin key is in neither keys.json nor {} there; bring one of them back, or begin anew in another folder",
                data_dir.display(),
                quickstart::FILE
            )
        });
    }
    let part = data_dir.join(format!("{CONTROL}.part"));
    if part.exists() {
        std::fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
    }
    let mut config = config.clone();
    config.data_dir.clone_from(&part);
    let made = tollway_control::run::init(&config)
        .await
        .context("the cluster cannot be made")?;
    let key = made.admin_key.expose().clone();
    *keys = Keys {
        admin_key: Some(key.clone()),
        ..Keys::default()
    };
    quickstart::write_keys(data_dir, keys)?;
    std::fs::rename(&part, &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(key)
}

/// Starts the node, after letting it join if it has not, or was removed since.
async fn node(
    data_dir: &Path,
    listen: Listen,
    usage_log: &Path,
    control: &tollway_control::run::Running,
    admin_key: &str,
) -> Result<tollway_data::run::Running, Failure> {
    let text = json!({
        "data_dir": data_dir.join(NODE),
        "api": {"listen": listen.api},
        "ops": {"listen": listen.ops},
        "control": {"peers": [control.peer_address]},
        "usage": {"sink": "file", "dir": usage_log, "partitions": 1},
        "drain": {"grace_ms": 0, "max_stream_ms": DRAIN_MS_MAX, "flush_ms": FLUSH_MS_MAX},
    });
    let config: tollway_data::config::Config = serde_json::from_value(text).context("the node's settings")?;
    let client = Client::new(Target {
        urls: vec![control.admin_url.clone()],
        key: admin_key.to_owned(),
        ca: None,
    })?;
    // Removed by hand, it would be refused for good. Its spool stays where it is, so what it has not delivered is still billed.
    let registered = client.find(&format!("nodes/{LOCAL}")).await?.is_some();
    if !registered || !Identity::exists(&config.data_dir) {
        let token = client
            .post("join-tokens", &json!({"kind": "node", "region": LOCAL}))
            .await?;
        let token = token["token"]
            .as_str()
            .context("the answer to a join token has no `token`")?;
        identity::join(
            &control.admin_url,
            token,
            NodeId::trusted(LOCAL),
            &config.data_dir,
        )
        .await
        .context("the node cannot join")?;
    }
    let running = tollway_data::run::start(&config)
        .await
        .context("the data plane does not start")?;
    Ok(running)
}

/// Log lines of both planes go to the standard error; TOLLWAY_LOG is a filter such as `info` or `tollway_data=debug`.
pub(crate) fn log() -> Result<(), Failure> {
    let filter = log_filter(std::env::var("TOLLWAY_LOG").ok())?;
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("warn"));
    // A second initialization changes nothing, which is right for tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    Ok(())
}

/// The filter in force. A variable that is set to nothing is not set.
fn log_filter(given: Option<String>) -> Result<String, Failure> {
    let Some(filter) = given.filter(|filter| !filter.trim().is_empty()) else {
        return Ok("warn".into());
    };
    match log_filter_problem(&filter) {
        Some(problem) => Err(Failure::Usage(format!("TOLLWAY_LOG {problem}"))),
        None => Ok(filter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_filter_that_is_set_to_nothing_is_the_default() {
        let filter = |text: &str| log_filter(Some(text.into())).ok();
        assert_eq!(filter("").as_deref(), Some("warn"));
        assert_eq!(filter(" ").as_deref(), Some("warn"));
        assert_eq!(filter("info").as_deref(), Some("info"));
        assert_eq!(filter("inof"), None);
        assert_eq!(log_filter(None).unwrap(), "warn");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_was_removed_joins_again_at_the_next_start_and_keeps_its_spool() {
        crate::install_crypto();
        let dir = std::env::temp_dir().join(format!("tollway-rejoin-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = Listen {
            api: any,
            admin: any,
            ops: any,
        };
        let mut keys = Keys::default();
        let client = |planes: &Planes| {
            let target = Target {
                urls: vec![planes.admin_url.clone()],
                key: planes.admin_key.clone(),
                ca: None,
            };
            Client::new(target).unwrap()
        };
        let planes = Planes::start(&dir, listen, &mut keys).await.unwrap();
        client(&planes).delete("nodes/local", None).await.unwrap();
        planes.stop(std::future::pending()).await;
        let kept = dir.join(NODE).join("spool/kept");
        std::fs::write(&kept, "kept").unwrap();

        let planes = Planes::start(&dir, listen, &mut keys).await.unwrap();
        super::super::arrived(&client(&planes)).await.unwrap();
        planes.stop(std::future::pending()).await;
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "kept");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
