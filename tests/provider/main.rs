//! `tollway-provider`: the scripted provider as a process.
//!
//! It prints `listening http://ADDRESS` once it accepts connections and serves until it is killed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use tollway_provider::{Options, Provider};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A scripted LLM provider for tests.
#[derive(Parser)]
#[command(name = "tollway-provider")]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Name for directives such as `[[tw:fail_at=NAME]]`
    #[arg(long, default_value = "a")]
    name: String,
    /// Append one JSON line per request to this file, at the request's end
    #[arg(long)]
    record: Option<PathBuf>,
    /// Threads, each with its own socket on the same port
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The only credential accepted (default: any or none)
    #[arg(long)]
    key: Option<String>,
    /// A model for `GET /v1/models`; may be repeated
    #[arg(long = "model")]
    models: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut options = Options::named(&arguments.name);
    options.listen = arguments.listen;
    options.threads = arguments.threads;
    options.in_memory = false;
    options.record = arguments.record;
    options.key = arguments.key;
    if !arguments.models.is_empty() {
        options.models = arguments.models;
    }
    let provider = Provider::start_with(options)?;
    println!("listening {}", provider.base_url());
    loop {
        std::thread::park();
    }
}
