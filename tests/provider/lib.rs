//! A scripted LLM provider: a real HTTP/1.1 server on loopback that answers as a test tells it to.
//!
//! It speaks the OpenAI dialect (`POST /v1/chat/completions`), the Anthropic one (`POST /v1/messages`) and `GET
//! /v1/models`, plain and streamed, and it is the *billing oracle*: what it says it served is what a gateway must have billed.
//! It runs on threads of its own, so it lives in any test process, under any runtime or none; `tollway-provider` is the
//! same thing as a process. What happens to a request is decided by the test's `Script` and by directives in the
//! prompt (`behaviour.rs` lists them).
//!
//! It does not generate text, does not check that a model exists, and its answers depend on the conversation alone.

pub use answer::{Answer, Ask, ToolCall};
pub use behaviour::Behaviour;
pub use seen::{Counts, End, Route, Seen, Used, fingerprint, read_record};
pub use server::Script;

mod answer;
mod anthropic;
mod behaviour;
#[cfg(test)]
mod exchange_test;
mod openai;
mod relay;
mod script;
mod seen;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::watch;

/// Most threads one provider may use.
const THREADS_MAX: usize = 64;

/// How to start a provider.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, for directives that concern one provider.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Threads, each with its own socket on the same port.
    pub threads: usize,
    /// Whether `Provider::seen` keeps entries. Without it and `record` only counts are kept.
    pub in_memory: bool,
    /// File to which one JSON line is appended at the end of each request.
    pub record: Option<PathBuf>,
    /// The only credential accepted; none accepts all.
    pub key: Option<String>,
    /// What `GET /v1/models` lists.
    pub models: Vec<String>,
}

impl Options {
    /// The defaults of a test: a free loopback port, one thread, entries in memory, any credential.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            threads: 1,
            in_memory: true,
            record: None,
            key: None,
            models: vec!["tw-small".to_owned(), "tw-large".to_owned()],
        }
    }
}

/// A running provider; dropping it breaks its connections and frees its port.
pub struct Provider {
    address: SocketAddr,
    shared: Arc<server::Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Provider {
    /// Starts a provider with the defaults of `Options::named`.
    ///
    /// Panics when loopback has no free port: no test can go on then.
    pub fn start(name: &str) -> Self {
        Self::start_with(Options::named(name)).expect("loopback has a free port")
    }

    /// Starts a provider. It accepts connections when this returns.
    ///
    /// Errors: the address is taken, or the record file cannot be opened for appending.
    pub fn start_with(options: Options) -> std::io::Result<Self> {
        let file = match &options.record {
            Some(path) => Some(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
            None => None,
        };
        let shared = Arc::new(server::Shared {
            name: options.name,
            key: options.key,
            models: options.models,
            script: RwLock::new(None),
            books: Arc::new(seen::Books::new(options.in_memory, file)),
        });
        let sockets = server::bind(options.listen, options.threads.clamp(1, THREADS_MAX))?;
        let address = sockets[0].local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let (ready, all_ready) = std::sync::mpsc::channel();
        let threads = sockets
            .into_iter()
            .map(|socket| {
                let (shared, stopped, ready) = (Arc::clone(&shared), stopped.clone(), ready.clone());
                std::thread::Builder::new()
                    .name("provider".to_owned())
                    .spawn(move || server::run(socket, shared, stopped, ready))
            })
            .collect::<Result<_, _>>()?;
        drop(ready);
        all_ready.iter().for_each(drop);
        Ok(Self {
            address,
            shared,
            stop,
            threads,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, without `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets what happens to requests from now on; directives in a prompt come on top.
    pub fn set_script(&self, script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static) {
        *self.shared.script.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(script));
    }

    /// All requests so far in order of arrival, the open ones as far as they are.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.books.seen()
    }

    /// Sums over all requests so far.
    pub fn counts(&self) -> Counts {
        self.shared.books.counts()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic there has been printed already
        }
    }
}
