//! `tollway-bench`: what a request through the gateway costs, as a ratio to the cheapest proxy on the same machine.
//!
//! It starts the scripted provider and the floor (`floor.rs`), reaches or starts a gateway, and puts the same load on
//! each in turns, so that what the machine does meanwhile meets all of them. It prints a table and writes
//! `target/bench/results.json`. Failed requests fail the run; slow ones never do. `README.md` has the method.

mod load;
mod money;
mod node;
mod parts;
mod proc;
mod report;
mod rounds;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use load::Target;
use parts::{Gateway, Part, endpoint};
use report::Figures;
use rounds::{Measured, Plan, measure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a gateway against the bare proxy kept beside this program.
#[derive(Parser)]
#[command(name = "tollway-bench")]
struct Arguments {
    /// Start this `tollway` with `up` on a fresh data folder, the provider as its upstream
    #[arg(long, conflicts_with_all = ["gateway_url", "self_check"])]
    spawn: Option<PathBuf>,
    /// Start `tollway-control` and a node, `tollway-data`, that joins it, from this folder, and measure the node
    #[arg(long, value_name = "DIR", conflicts_with_all = ["spawn", "gateway_url", "self_check"])]
    node: Option<PathBuf>,
    /// Where `tollway-control` and `tollway` are, when not in the folder of `--node`: only the node is measured
    #[arg(long, value_name = "DIR", requires = "node")]
    replica: Option<PathBuf>,
    /// A Kafka for the usage events of `--node`; without one they stay in the node's folder
    #[arg(long, value_name = "BROKERS", requires = "node")]
    kafka: Option<String>,
    /// One more argument for the spawned gateway; may be repeated
    #[arg(long = "spawn-arg", allow_hyphen_values = true)]
    spawn_args: Vec<String>,
    /// Measure a gateway that runs already
    #[arg(long, requires = "gateway_pid")]
    gateway_url: Option<String>,
    /// Its process
    #[arg(long)]
    gateway_pid: Option<u32>,
    /// The API key for it
    #[arg(long, default_value = "sk-bench")]
    api_key: String,
    /// The model to ask for (default: what the spawned gateway names)
    #[arg(long)]
    model: Option<String>,
    /// Measure a second floor in the gateway's place: every ratio must come out near 1
    #[arg(long)]
    self_check: bool,
    /// Measure what keeping accounts costs instead, with the programs of `--node`; starts a Kafka (about two minutes, `--short` one)
    #[arg(long, requires = "node", conflicts_with = "kafka")]
    money: bool,
    /// Usage events that the ledger folds with `--money`
    #[arg(long, requires = "money")]
    events: Option<u64>,
    /// Where the provider listens; fix it when a running gateway has it as its upstream
    #[arg(long, default_value = "127.0.0.1:0")]
    provider_listen: SocketAddr,
    /// About a minute instead of six: wide spreads, for pipelines
    #[arg(long)]
    short: bool,
    /// Rounds per workload
    #[arg(long)]
    rounds: Option<usize>,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The results file
    #[arg(long, default_value = "target/bench/results.json")]
    out: PathBuf,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if arguments.money {
        let figures = runtime.block_on(account(&arguments))?;
        write(&arguments.out, &figures)?;
        println!("wrote {}", arguments.out.display());
        return Ok(ExitCode::SUCCESS);
    }
    let figures = runtime.block_on(run(&arguments))?;
    print!("{}", figures.table());
    for warning in &figures.warnings {
        println!("warning: {warning}");
    }
    for (place, failure) in &figures.failures {
        println!("FAILED {place}: {failure}");
    }
    write_results(&arguments, &figures)?;
    println!(
        "{} failed requests; wrote {}",
        figures.failed,
        arguments.out.display()
    );
    Ok(if figures.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The run of `--money`.
async fn account(arguments: &Arguments) -> Result<serde_json::Value> {
    let node = arguments.node.as_ref().context("`--node` names the programs")?;
    let replica = arguments.replica.as_ref().unwrap_or(node);
    let (events, seconds) = if arguments.short {
        (100_000, 20)
    } else {
        (1_000_000, 60)
    };
    let size = money::Size {
        events: arguments.events.unwrap_or(events),
        load: std::time::Duration::from_secs(seconds),
    };
    let listen = ["--listen".to_owned(), arguments.provider_listen.to_string()];
    let (_provider, provider) = Part::start("tollway-provider", &listen)?;
    money::run(node::Programs { node, replica }, provider, size).await
}

async fn run(arguments: &Arguments) -> Result<Figures> {
    let plan = Plan::new(arguments.short, arguments.rounds);
    let folder = tempfile::tempdir()?;
    let (_provider, provider) = Part::start(
        "tollway-provider",
        &["--listen".to_owned(), arguments.provider_listen.to_string()],
    )?;
    let upstream = ["--upstream".to_owned(), provider.to_string()];
    let (floor, floor_address) = Part::start("tollway-floor", &upstream)?;
    let kafka = arguments.kafka.as_deref();
    let ours = (&arguments.node, &arguments.spawn);
    let gateway = match (ours, &arguments.gateway_url, arguments.gateway_pid) {
        ((Some(node), _), _, _) => {
            let replica = arguments.replica.as_ref().unwrap_or(node);
            node::deploy(node::Programs { node, replica }, folder.path(), provider, kafka)?
        }
        ((_, Some(program)), _, _) => {
            Gateway::spawn(program, folder.path(), provider, &arguments.spawn_args)?
        }
        (_, Some(url), Some(pid)) => {
            let (address, path) = endpoint(url)?;
            Gateway {
                address,
                path,
                api_key: arguments.api_key.clone(),
                model: None,
                pid,
                parts: Vec::new(),
            }
        }
        _ => {
            ensure!(
                arguments.self_check,
                "give one of --node, --spawn, --gateway-url with --gateway-pid, or --self-check"
            );
            let (part, address) = Part::start("tollway-floor", &upstream)?;
            let (pid, path) = (part.pid(), "/v1/chat/completions".to_owned());
            Gateway {
                address,
                path,
                api_key: arguments.api_key.clone(),
                model: None,
                pid,
                parts: vec![part],
            }
        }
    };
    let model = arguments
        .model
        .clone()
        .or(gateway.model.clone())
        .unwrap_or_else(|| "tw-small".to_owned());
    let target = |name, address| Target {
        name,
        address,
        path: "/v1/chat/completions".to_owned(),
        api_key: gateway.api_key.clone(),
    };
    let direct = Measured {
        target: target("direct", provider),
        pid: None,
    };
    let floor = Measured {
        target: target("floor", floor_address),
        pid: Some(floor.pid()),
    };
    let behind = Measured {
        target: Target {
            path: gateway.path.clone(),
            ..target("gateway", gateway.address)
        },
        pid: Some(gateway.pid),
    };
    let measured = measure(&arguments.only, plan, &model, [direct, floor, behind]).await;
    drop(gateway.parts);
    measured
}

fn write_results(arguments: &Arguments, figures: &Figures) -> Result<()> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let gateway = match (&arguments.node, &arguments.spawn, arguments.self_check) {
        (Some(_), _, _) => "a node",
        (_, Some(_), _) => "both planes in one process",
        (_, _, true) => "a second floor",
        (_, _, false) => "running",
    };
    let results = serde_json::json!({
        "version": 1,
        "size": if arguments.short { "short" } else { "full" },
        "gateway": gateway,
        "machine": {"cores": std::thread::available_parallelism()?.get(), "kernel": kernel.trim()},
        "failed_requests": figures.failed,
        "failures": figures.failures,
        "warnings": figures.warnings,
        "figures": figures.reports(),
    });
    write(&arguments.out, &results)
}

fn write(out: &Path, results: &serde_json::Value) -> Result<()> {
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(out, serde_json::to_vec_pretty(results)?)
        .with_context(|| format!("cannot write `{}`", out.display()))
}
