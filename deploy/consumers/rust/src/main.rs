//! Reads `tollway.usage.v1` and keeps sums by the hour, every event counted exactly once, in SQLite or PostgreSQL.
//!
//! | file | what |
//! |---|---|
//! | `fold.rs` | pure: records of one partition → sums, repeats, gaps |
//! | `store.rs`, `sql.rs` | the database: sums, marks and offset in one transaction |
//! | `reader.rs` | Kafka: partitions that come and go, offsets from the database |

mod fold;
mod reader;
mod sql;
mod store;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use crate::reader::{Lost, Reader};

/// Waits after a fault: doubling from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Pause between two looks at whether to stop.
const PAUSE: Duration = Duration::from_millis(50);

/// Counts Tollway's usage events by the hour.
#[derive(Debug, Parser)]
struct Args {
    /// `host:port`, with commas.
    #[arg(long)]
    brokers: String,
    /// `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
    #[arg(long)]
    store: String,
    /// The topic.
    #[arg(long, default_value = "tollway.usage.v1")]
    topic: String,
    /// Consumers of one group share the partitions.
    #[arg(long, default_value = "tollway-usage-example")]
    group: String,
    /// A setting of librdkafka: TLS, SASL, ….
    #[arg(long, value_name = "NAME=VALUE")]
    kafka: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(stop.clone())?;
    let mut backoff = BACKOFF.0;
    while !stop.load(Relaxed) {
        let fault = match live(&args, &stop, &mut backoff) {
            Ok(()) => continue,
            Err(fault) => fault,
        };
        if fault.is::<Lost>() {
            tracing::error!("{fault:#}");
            return Ok(ExitCode::FAILURE);
        }
        tracing::warn!("starting again from the stored offsets: {fault:#}");
        let until = Instant::now() + backoff;
        while Instant::now() < until && !stop.load(Relaxed) {
            std::thread::sleep(PAUSE);
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
    tracing::info!("stopped; everything that was read is counted");
    Ok(ExitCode::SUCCESS)
}

/// Counts until `stop` or a fault; either way nothing is half done when it returns, and the group is left.
fn live(args: &Args, stop: &AtomicBool, backoff: &mut Duration) -> Result<()> {
    let mut reader = Reader::open(args)?;
    while !stop.load(Relaxed) {
        reader.turn()?;
        *backoff = BACKOFF.0;
    }
    Ok(())
}

/// SIGTERM and Ctrl-C ask for an end after the batch in hand.
fn watch_signals(stop: Arc<AtomicBool>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        stop.store(true, Relaxed);
    });
    Ok(())
}
