//! `tollway-data`: the data plane's process.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tollway_data::config::Config;

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
    /// Checks the settings and prints what is in force.
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

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Config(settings) => print!("{}", toml::to_string(&settings.load()?)?),
    }
    Ok(())
}
