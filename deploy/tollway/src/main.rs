//! The operator's binary: `tollway up` runs both planes on this machine, everything else is a client of the admin API.
//!
//! | file | what |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`operate`], [`account`] | the operator's commands |
//! | [`documents`], [`apply`], [`declared`] | declared resources: read, compared and made so, and the commands for it |
//! | [`client`], [`nouns`] | the admin API over HTTP, and its nouns |
//! | [`output`], [`exit`] | tables and JSON; exit codes |
//! | [`up`] | both planes in one process, providers found, first request sent |
//! | [`demo`] | the provider that is built in |

mod account;
mod apply;
mod cli;
mod client;
mod declared;
mod demo;
mod documents;
mod exit;
mod nouns;
mod operate;
mod output;
mod reports;
mod up;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::exit::Failure;

/// That of `tollway-data`: the request path allocates small and often.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.output == output::Format::Json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // In JSON mode a diff has already said everything.
            if !(json && matches!(failure, Failure::Differs(_))) {
                eprintln!("tollway: {failure}");
            }
            failure.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "tollway", &mut std::io::stdout());
        return Ok(());
    }
    install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match cli.command {
        Command::Up(options) => runtime.block_on(up::run(options)),
        command => runtime.block_on(operate::run(&cli.global, command)),
    }
}

/// Makes ring the one crypto provider of the process; a second call changes nothing.
pub(crate) fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
