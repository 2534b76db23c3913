//! `tollway-control`: one replica of the control plane.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tollway_control::config::{Config, Log, LogFormat, Overrides};
use tollway_control::{raft, run};
use tracing_subscriber::EnvFilter;

/// One replica of Tollway's control plane.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a cluster of one replica in the data folder and prints the owner's admin key, once.
    Init {
        #[command(flatten)]
        settings: Settings,
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Makes this machine a replica of an existing cluster.
    Join {
        #[command(flatten)]
        settings: Settings,
        /// Base URL of any replica's admin API.
        #[arg(long)]
        control: String,
        /// A join token of kind `replica`.
        #[arg(long, env = "TOLLWAY_JOIN_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Runs the replica that is in the data folder.
    Run {
        #[command(flatten)]
        settings: Settings,
    },
    /// Checks the settings as `run` does and prints what is in force.
    Config {
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Debug, Args)]
struct Settings {
    /// The configuration file (TOML).
    #[arg(long, env = "TOLLWAY_CONTROL_CONFIG")]
    config: Option<PathBuf>,
    /// Where the replica keeps its data.
    #[arg(long, env = "TOLLWAY_CONTROL_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address and port of the admin API.
    #[arg(long, env = "TOLLWAY_CONTROL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// The base URL under which others reach the admin API.
    #[arg(long, env = "TOLLWAY_CONTROL_ADMIN_ADVERTISE_URL")]
    admin_advertise_url: Option<String>,
    /// Address and port for replicas and nodes.
    #[arg(long, env = "TOLLWAY_CONTROL_PEER_LISTEN")]
    peer_listen: Option<SocketAddr>,
    /// host:port under which replicas and nodes reach this replica.
    #[arg(long, env = "TOLLWAY_CONTROL_PEER_ADVERTISE")]
    peer_advertise: Option<String>,
    /// Log level or filter.
    #[arg(long, env = "TOLLWAY_CONTROL_LOG_LEVEL")]
    log_level: Option<String>,
    /// Prints the configuration that is in force, without secrets, and ends.
    #[arg(long)]
    print_config: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match act(cli.command) {
        Ok(code) => code,
        Err(fault) => {
            // One line: every fault of ours says its cause itself.
            eprintln!("tollway-control: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> anyhow::Result<ExitCode> {
    // Before the first TLS configuration anywhere in the process. A second install is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = match &action {
        Action::Init { settings, .. }
        | Action::Join { settings, .. }
        | Action::Run { settings }
        | Action::Config { settings } => settings,
    };
    let config = loaded(settings)?;
    if settings.print_config || matches!(action, Action::Config { .. }) {
        run::check(&config)?;
        print!("{}", config.printed());
        return Ok(ExitCode::SUCCESS);
    }
    logging(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match action {
            Action::Init { output, .. } => init(&config, output).await,
            Action::Join { control, token, .. } => join(&config, &control, &token).await,
            Action::Run { .. } => serve(config).await,
            Action::Config { .. } => Ok(ExitCode::SUCCESS),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}

fn loaded(settings: &Settings) -> anyhow::Result<Config> {
    let overrides = Overrides {
        data_dir: settings.data_dir.clone(),
        admin_listen: settings.admin_listen,
        admin_advertise_url: settings.admin_advertise_url.clone(),
        peer_listen: settings.peer_listen,
        peer_advertise: settings.peer_advertise.clone(),
        log_level: settings.log_level.clone(),
    };
    Ok(Config::load(settings.config.as_deref(), overrides)?)
}

fn logging(log: &Log) -> anyhow::Result<()> {
    // The consensus library tells at INFO what it does; ours is told by `raft`. Name `openraft` in the filter to hear it.
    let quiet = if log.level.contains("openraft") {
        String::new()
    } else {
        ",openraft=warn".to_owned()
    };
    let filter = EnvFilter::try_new(format!("{}{quiet}", log.level))
        .map_err(|fault| anyhow::anyhow!("`log.level` is `{}`: {fault}", log.level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let installed = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    installed.map_err(|fault| anyhow::anyhow!("logging: {fault}"))
}

async fn init(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let made = run::init(config).await?;
    let (cluster, key) = (&made.cluster, made.admin_key.expose());
    let authority = made.authority_file.display();
    match output {
        Output::Json => println!(
            "{}",
            serde_json::json!({"cluster": cluster, "admin_key": key, "ca_file": authority.to_string()})
        ),
        Output::Text => {
            println!("cluster    {cluster}");
            println!("admin key  {key}");
            println!("CA         {authority}");
            println!(
                "\nKeep the admin key: it is not stored and not shown again. Back up the sealing key: {}",
                config.seal_file().display()
            );
            println!("Start the replica with: tollway-control run");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn join(config: &Config, control: &str, token: &str) -> anyhow::Result<ExitCode> {
    let joined = run::join(config, control, token).await?;
    println!(
        "replica {} of cluster {}; start it with: tollway-control run",
        joined.replica, joined.cluster
    );
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let running = run::start(config).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        reason = running.failed() => {
            tracing::error!(reason, "this replica cannot go on; its disk may be damaged");
            return Ok(ExitCode::from(raft::EXIT_STORAGE));
        }
    }
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}
