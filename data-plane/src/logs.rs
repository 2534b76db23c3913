//! Log lines: for people or for machines, to standard error. Prompts, replies and keys are in none of them.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{ConfigFault, Log, LogFormat};

/// Starts logging for the process. A second call changes nothing: in `tollway up` both planes share one log.
pub fn start(log: &Log) -> Result<(), ConfigFault> {
    let filter = EnvFilter::try_new(&log.level).map_err(|fault| ConfigFault::Value {
        field: "log.level",
        detail: format!("is not a filter such as `info` or `tollway_data=debug`: {fault}"),
    })?;
    let builder = fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // An error says that a subscriber is there already.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
