//! A node's start and its end.
//!
//! Start: usage first (what an earlier life left is billed before anything new), then the cores, then the ops port. End: not ready → no new
//! connections → running answers finish or are told → the usage log gets the rest.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::{self, Live};
use crate::config::Config;
use crate::identity::{Identity, IdentityFault, renew};
use crate::lease::{self, Call, Desk, Inheritance, Leases, Places};
use crate::minute::FreeMinute;
use crate::ops::{self, Ops};
use crate::plane::{Dice, Limits, Names, Phase, Plane, Streams};
use crate::reading::{self, Reading};
use crate::server::{self, Crowd, Deadlines, Stage};
use crate::upstream::{self, Upstream};
use crate::usage::{self, Usage};

/// Where the usage spool is, inside the data folder.
const SPOOL: &str = "spool";
/// Where the journals of leases are.
const LEASES: &str = "leases";
/// How long answers that were told to end may take to say so.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// A setting.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigFault),
    /// Who this node is.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The usage pipeline.
    #[error(transparent)]
    Usage(#[from] usage::StartFault),
    /// The extra authority for providers.
    #[error(transparent)]
    Tls(#[from] upstream::TlsFault),
    /// An address cannot be listened on.
    #[error("`{field}` `{address}` cannot be listened on: {source}")]
    Listen {
        /// The setting.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What an earlier life spent of its leases cannot be read or written down.
    #[error("the leases in `{path}` cannot be kept: {source}")]
    Leases {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
}

/// A running node.
pub struct Running {
    /// The base of the public API, without `/v1`.
    pub api_url: String,
    /// The base of the ops port.
    pub ops_url: String,
    drain: crate::config::Drain,
    phase: Arc<Phase>,
    stage: watch::Sender<Stage>,
    cores: Vec<oneshot::Receiver<()>>,
    cancel: CancellationToken,
    usage: Option<Arc<Usage>>,
    leases: Option<Leases>,
}

/// Whether a node can run on these settings; that says no more of the machine than that the files they name can be read.
pub fn check(config: &Config) -> Result<(), StartFault> {
    config.check()?;
    usage::check(&config.usage)?;
    upstream::client_config(config.upstream.ca_file.as_deref())?;
    Ok(())
}

/// Starts the node whose identity is in the data folder. Must be called inside a tokio runtime.
pub async fn start(config: &Config) -> Result<Running, StartFault> {
    check(config)?;
    let identity = Identity::load(&config.data_dir)?;
    let live = Live::new(identity.secrets.clone());
    let cancel = CancellationToken::new();
    let membership = identity.membership.clone();
    let peers = match config.control.peers.is_empty() {
        true => membership.peers,
        false => config.control.peers.clone(),
    };
    let names = Names {
        cluster: membership.cluster,
        node: membership.node,
        region: membership.region,
    };
    let desk = Arc::<OnceLock<Desk>>::default();
    let (heard, dial) = (desk.clone(), identity.dial()?);
    let subscription = catalog::Config {
        cluster: names.cluster.clone(),
        node: names.node.clone(),
        region: names.region.clone(),
        peers: peers.clone(),
        data_dir: config.data_dir.clone(),
        dial: dial.clone(),
        caps: catalog::intake::Caps::default(),
        recalls: Arc::new(move |recall| {
            // Before there is a desk there is nothing to give back.
            if let Some(desk) = heard.get() {
                desk.recall(recall);
            }
        }),
    };
    // A thread of its own: decoding a large snapshot never takes a serving core. It serves from disk first.
    catalog::subscribe::spawn(live.clone(), subscription, cancel.clone()).map_err(StartFault::Thread)?;
    let link = Link {
        call: lease::link::to_peers(peers.clone(), dial.clone()),
        desk,
        reads: Some(reading::to_peers(peers.clone(), dial)),
    };
    let started = serve_until(config, names, live, cancel.clone(), Some(link)).await;
    match &started {
        Ok(_) => drop(tokio::spawn(renew::run(
            identity,
            peers,
            config.data_dir.clone(),
            cancel,
        ))),
        Err(_) => cancel.cancel(),
    }
    started
}

/// Starts serving what `live` has and will have. Must be called inside a tokio runtime, which serves the ops port. Leased budgets
/// let nothing through: there is nobody to lease from.
pub async fn serve(config: &Config, names: Names, live: Live) -> Result<Running, StartFault> {
    serve_until(config, names, live, CancellationToken::new(), None).await
}

/// The same with somebody to lease from, for tests of the request path.
///
/// - `desk`: gets the node's desk, which takes recalls.
pub async fn serve_leased(
    config: &Config,
    names: Names,
    live: Live,
    call: Call,
    desk: Arc<OnceLock<Desk>>,
) -> Result<Running, StartFault> {
    serve_until(
        config,
        names,
        live,
        CancellationToken::new(),
        Some(Link {
            call,
            desk,
            reads: None,
        }),
    )
    .await
}

/// Whom to lease from, where to leave the desk, and whom to ask what tenants want to read.
struct Link {
    call: Call,
    desk: Arc<OnceLock<Desk>>,
    reads: Option<reading::Call>,
}

async fn serve_until(
    config: &Config,
    names: Names,
    live: Live,
    cancel: CancellationToken,
    link: Option<Link>,
) -> Result<Running, StartFault> {
    config.check()?;
    let recorder = crate::metrics::install();
    let threads = config.threads();
    let spool = config.data_dir.join(SPOOL);
    let places = Places {
        folder: config.data_dir.join(LEASES),
        spool: spool.clone(),
    };
    let kept = |source| StartFault::Leases {
        path: config.data_dir.join(LEASES),
        source,
    };
    // Ahead of the spool's recovery, which ships and removes what this is read from.
    let inheritance = inherit(&places).await.map_err(kept)?;
    let usage = Arc::new(start_usage(&config.usage, &spool, threads).await?);
    let reading = Reading::new(link.as_ref().and_then(|link| link.reads.clone()));
    let (leases, desk) = match link {
        Some(link) => {
            let started = Leases::start(places, inheritance, usage.track(), link.call);
            let (leases, desk) = started.map_err(kept)?;
            let _ = link.desk.set(desk.clone());
            (Some(leases), desk)
        }
        None => (None, Desk::closed()),
    };
    let tls = upstream::client_config(config.upstream.ca_file.as_deref())?;
    let phase = Arc::<Phase>::default();
    let free = Arc::<FreeMinute>::default();
    let (stage, watched) = watch::channel(Stage::Serve);
    let crowd = Crowd::new(config.api.connections_per_address_max, config.trusted_proxies()?);
    let mut address = config.api.listen;
    let mut cores = Vec::with_capacity(threads);
    for number in 0..threads {
        let listener = server::listen(address).map_err(|source| StartFault::Listen {
            field: "api.listen",
            address,
            source,
        })?;
        // Port 0 becomes a real one with the first socket; the others share it.
        address = listener.local_addr().unwrap_or(address);
        let core = Core {
            names: names.clone(),
            limits: limits(config)?,
            live: live.clone(),
            desk: desk.clone(),
            reading: reading.clone(),
            writer: usage.writer(number),
            pool: upstream::Settings {
                idle_max: config.upstream.idle_connections_max,
                idle_timeout: Duration::from_millis(config.upstream.idle_timeout_ms),
            },
            tls: tls.clone(),
            phase: phase.clone(),
            free: free.clone(),
            server: server_settings(config, threads, crowd.clone()),
            stage: watched.clone(),
        };
        cores.push(core.start(number, listener).map_err(StartFault::Thread)?);
    }
    let listen_fault = |source| StartFault::Listen {
        field: "ops.listen",
        address: config.ops.listen,
        source,
    };
    let listener = TcpListener::bind(config.ops.listen).await.map_err(listen_fault)?;
    let ops_address = listener.local_addr().map_err(listen_fault)?;
    let ops = Arc::new(Ops {
        live,
        usage: Arc::downgrade(&usage),
        phase: phase.clone(),
        metrics: recorder,
    });
    tokio::spawn(ops::serve(ops, listener, cancel.clone()));
    tracing::info!(api = %address, ops = %ops_address, threads, "serving");
    Ok(Running {
        api_url: format!("http://{address}"),
        ops_url: format!("http://{ops_address}"),
        drain: config.drain.clone(),
        phase,
        stage,
        cores,
        cancel,
        usage: Some(usage),
        leases,
    })
}

async fn inherit(places: &Places) -> io::Result<Inheritance> {
    let places = places.clone();
    let read = tokio::task::spawn_blocking(move || Inheritance::read(&places)).await;
    read.map_err(io::Error::other)?
}

async fn start_usage(settings: &usage::Settings, spool: &Path, writers: usize) -> Result<Usage, StartFault> {
    let (settings, spool) = (settings.clone(), spool.to_owned());
    let started = tokio::task::spawn_blocking(move || usage::start(&settings, &spool, writers)).await;
    Ok(started.map_err(|fault| StartFault::Thread(io::Error::other(fault)))??)
}

/// Waits until the process is told to end: SIGTERM, or Ctrl-C.
pub async fn told_to_end() -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

impl Running {
    /// The orderly end. Returns whether the usage log has everything; what it has not stays in the spool.
    pub async fn stop(self) -> bool {
        self.stop_unless(std::future::pending()).await
    }

    /// [`Running::stop`] that waits for no running answer any more once `hurried` is done: each is ended with its error event at once.
    pub async fn stop_unless(mut self, hurried: impl Future<Output = ()>) -> bool {
        self.phase.advance(Phase::DRAINING);
        tracing::info!("draining");
        let waiting = async {
            tokio::time::sleep(Duration::from_millis(self.drain.grace_ms)).await;
            self.stage.send_replace(Stage::Finish);
            let streams = Duration::from_millis(self.drain.max_stream_ms);
            tokio::time::timeout(streams, ended(&mut self.cores))
                .await
                .is_ok()
        };
        let all_ended = tokio::select! {
            all_ended = waiting => all_ended,
            () = hurried => false,
        };
        if !all_ended {
            tracing::warn!("answers that still run are ended with an error event");
            self.phase.advance(Phase::ENDING);
            self.stage.send_replace(Stage::End);
            if tokio::time::timeout(END_TIMEOUT, ended(&mut self.cores))
                .await
                .is_err()
            {
                tracing::warn!("some connections did not take their error event");
            }
        }
        if let Some(leases) = self.leases.take() {
            leases.stop().await;
        }
        self.cancel.cancel();
        let flush = Duration::from_millis(self.drain.flush_ms);
        let usage = self.usage.take().and_then(Arc::into_inner);
        let delivered = match usage {
            Some(usage) => tokio::task::spawn_blocking(move || usage.stop(flush))
                .await
                .unwrap_or(false),
            None => false,
        };
        tracing::info!(delivered, "stopped");
        delivered
    }
}

/// Waits until every core has ended. Each is waited for once, so an interrupted wait can go on later.
async fn ended(cores: &mut Vec<oneshot::Receiver<()>>) {
    while let Some(core) = cores.last_mut() {
        // A core that panicked has ended too.
        let _ = core.await;
        cores.pop();
    }
}

fn limits(config: &Config) -> Result<Limits, StartFault> {
    Ok(Limits {
        body_bytes_max: config.api.body_bytes_max,
        reply_bytes_max: config.api.reply_bytes_max,
        body_timeout: Duration::from_millis(config.api.body_timeout_ms),
        body_grace: Duration::from_millis(config.api.body_grace_ms),
        body_bytes_per_s_min: config.api.body_bytes_per_s_min,
        attempts_max: config.api.attempts_max,
        free_per_minute: config.api.free_requests_per_minute,
        max_stale_ms: config.max_stale_ms()?,
    })
}

fn server_settings(config: &Config, threads: usize, crowd: Crowd) -> server::Settings {
    let ms = Duration::from_millis;
    server::Settings {
        deadlines: Deadlines {
            first_byte: ms(config.api.first_byte_timeout_ms),
            head: ms(config.api.head_timeout_ms),
            idle: ms(config.api.idle_timeout_ms),
            write: ms(config.api.write_timeout_ms),
        },
        connections_max: config.api.connections_max.div_ceil(threads.max(1)),
        crowd,
        head_bytes_max: config.api.head_bytes_max,
    }
}

/// What a core is made of, on its way to its thread.
struct Core {
    names: Names,
    limits: Limits,
    live: Live,
    desk: Desk,
    reading: Reading,
    writer: usage::Writer,
    pool: upstream::Settings,
    tls: Arc<rustls::ClientConfig>,
    phase: Arc<Phase>,
    free: Arc<FreeMinute>,
    server: server::Settings,
    stage: watch::Receiver<Stage>,
}

impl Core {
    /// Starts the thread. The receiver hears of its end.
    fn start(self, number: usize, listener: std::net::TcpListener) -> io::Result<oneshot::Receiver<()>> {
        let (done, heard) = oneshot::channel();
        let runtime = || {
            Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
        };
        std::thread::Builder::new()
            .name(format!("core-{number}"))
            .spawn(move || {
                let served = runtime().and_then(|runtime| runtime.block_on(self.serve(listener)));
                if let Err(fault) = served {
                    tracing::error!(%fault, "a core ended");
                }
                drop(done);
            })?;
        Ok(heard)
    }

    async fn serve(self, listener: std::net::TcpListener) -> io::Result<()> {
        let plane = Rc::new(Plane {
            names: self.names,
            limits: self.limits,
            live: self.live,
            desk: self.desk,
            reading: self.reading,
            writer: self.writer,
            upstream: Upstream::new(self.pool, self.tls),
            health: std::cell::RefCell::default(),
            lengths: std::cell::RefCell::default(),
            ratios: std::cell::RefCell::default(),
            dice: Dice::seeded(),
            credentials: std::cell::RefCell::default(),
            meters: crate::metrics::Meters::default(),
            phase: self.phase,
            free: self.free,
            streams: Streams::default(),
        });
        server::serve(plane, listener, self.server, self.stage).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_cannot_run_on_is_refused_by_the_name_of_the_setting() {
        let problem = |text: &str| {
            let config = Config::parse(text, Path::new("data.toml")).unwrap();
            check(&config).err().map(|fault| fault.to_string())
        };
        for (text, named) in [
            ("", Some("usage.dir")),
            ("[usage]\nsink = \"kafka\"\n", Some("usage.brokers")),
            (
                "[usage]\ndir = \"u\"\n[upstream]\nca_file = \"/nowhere/ca.pem\"\n",
                Some("upstream.ca_file"),
            ),
            ("[usage]\ndir = \"u\"\n", None),
        ] {
            let problem = problem(text);
            match named {
                Some(named) => assert!(problem.unwrap().contains(&format!("`{named}`")), "{text}"),
                None => assert_eq!(problem, None, "{text}"),
            }
        }
    }
}
