//! `tollway-data`: the data plane's process.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use tollway_data::config::Config;
use tollway_data::identity::{self, Identity};
use tollway_shared::ids::NodeId;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "tollway-data",
    version,
    about = "The data plane of Tollway: routes, relays and meters requests"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes this machine a node of a cluster: trades a join token for an identity.
    Join {
        #[command(flatten)]
        settings: Settings,
        /// Base URL of any replica's admin API.
        #[arg(long)]
        control: String,
        /// A join token of kind `node`; it says in which region the node is.
        #[arg(long, env = "TOLLWAY_JOIN_TOKEN", hide_env_values = true)]
        token: String,
        /// The node's id; a random one when absent.
        #[arg(long)]
        node: Option<String>,
    },
    /// Runs the node whose identity is in the data folder.
    Run {
        #[command(flatten)]
        settings: Settings,
        /// Prints the configuration that is in force and ends, as `config` does.
        #[arg(long)]
        print_config: bool,
    },
    /// Checks the settings as `run` does and prints what is in force.
    Config(Settings),
}

/// Where settings come from: the file, then environment and flags.
#[derive(Args)]
struct Settings {
    /// The configuration file; without one the defaults hold.
    #[arg(long, env = "TOLLWAY_CONFIG")]
    config: Option<PathBuf>,
    /// `data_dir`.
    #[arg(long, env = "TOLLWAY_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// `api.listen`.
    #[arg(long, env = "TOLLWAY_API_LISTEN")]
    api_listen: Option<std::net::SocketAddr>,
    /// `ops.listen`.
    #[arg(long, env = "TOLLWAY_OPS_LISTEN")]
    ops_listen: Option<std::net::SocketAddr>,
    /// `log.level`.
    #[arg(long, env = "TOLLWAY_LOG_LEVEL")]
    log_level: Option<String>,
}

impl Settings {
    fn load(self) -> Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        config.data_dir = self.data_dir.unwrap_or(config.data_dir);
        config.api.listen = self.api_listen.unwrap_or(config.api.listen);
        config.ops.listen = self.ops_listen.unwrap_or(config.ops.listen);
        config.log.level = self.log_level.unwrap_or(config.log.level);
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    match act() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // One line: every fault of ours says its cause itself.
            eprintln!("tollway-data: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn act() -> Result<()> {
    // One provider of cryptography in the process; an error means that it was chosen already.
    drop(rustls::crypto::ring::default_provider().install_default());
    match Cli::parse().command {
        Command::Config(settings)
        | Command::Run {
            settings,
            print_config: true,
        } => {
            let config = settings.load()?;
            tollway_data::run::check(&config)?;
            print!("{}", config.printed());
            Ok(())
        }
        Command::Join {
            settings,
            control,
            token,
            node,
        } => block_on(join(settings.load()?, control, token, node)),
        Command::Run { settings, .. } => block_on(run(settings.load()?)),
    }
}

/// Serving has threads of its own; what is left is little.
fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

async fn join(config: Config, control: String, token: String, node: Option<String>) -> Result<()> {
    if Identity::exists(&config.data_dir) {
        bail!(
            "`{}` holds an identity already; choose another data folder",
            config.data_dir.display()
        );
    }
    let node = match node {
        Some(text) => NodeId::parse(&text).map_err(|fault| anyhow!("`--node` {fault}"))?,
        None => NodeId::trusted(format!("node-{}", uuid::Uuid::now_v7().simple())),
    };
    let identity = identity::join(control.trim_end_matches('/'), &token, node, &config.data_dir).await?;
    let membership = &identity.membership;
    println!(
        "node {} joined cluster {} in region {}",
        membership.node, membership.cluster, membership.region
    );
    Ok(())
}

async fn run(config: Config) -> Result<()> {
    tollway_data::logs::start(&config.log)?;
    let running = tollway_data::run::start(&config).await?;
    tollway_data::run::told_to_end().await?;
    let again = async {
        match tollway_data::run::told_to_end().await {
            Ok(()) => tracing::warn!("told to end again: running answers are ended with an error event"),
            Err(_) => std::future::pending().await,
        }
    };
    running.stop_unless(again).await;
    Ok(())
}
