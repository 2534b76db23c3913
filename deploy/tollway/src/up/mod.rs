//! `tollway up`: both planes in one process on loopback, ready to be asked.
//!
//! It does by itself what an operator of a cluster does by hand, through the same doors: `init`, a join token, the admin
//! API, the public API. In order: the planes start, a first tenant and the providers that were found go into the
//! catalog, one request is sent and followed into the ledger, `quickstart.json` is written, and then it serves until a
//! signal. Nothing here is on the path of a request.

mod discover;
mod first_request;
mod list_prices;
mod options;
mod planes;
pub(crate) mod quickstart;
mod report;
mod seed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(crate) use options::Options;

use crate::client::{Client, Target};
use crate::demo::{self, Demo};
use crate::exit::Failure;
use crate::output::say;
use discover::Found;
use planes::Planes;
use quickstart::{Keys, Quickstart};

/// Longest wait until a node serves what was written: the push stream answers within milliseconds.
const CATALOG_MAX: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// How long the demo provider may take to end its answers.
const DEMO_STOP_MAX: Duration = Duration::from_secs(2);

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(options: Options) -> Result<(), Failure> {
    // Before anything starts, so that no moment is left in which a signal would cut the work in half.
    let mut stop = Stop::listen()?;
    planes::log()?;
    let data_dir = report::absolute(
        &options
            .data_dir
            .clone()
            .unwrap_or_else(quickstart::default_data_dir),
    );
    let _lock = claim(&data_dir)?;
    let listen = options.listen()?;
    let mut found = discover::all(&options).await?;
    let mut keys = quickstart::read_keys(&data_dir)?;
    let planes = Planes::start(&data_dir, listen, &mut keys).await?;
    let started = stop
        .or(serve(&options, &planes, &mut found, &data_dir, &mut keys))
        .await;
    let (ended, demo) = match started {
        Some(Ok(demo)) => {
            stop.wait().await;
            (Ok(()), demo)
        }
        Some(Err(failure)) => (Err(failure), None),
        None => (Ok(()), None),
    };
    eprintln!("tollway: stopping; a second Ctrl-C does not wait for running answers");
    let hurry = CancellationToken::new();
    let stopped = async {
        planes.stop(hurry.cancelled()).await;
        if let Some(demo) = demo {
            demo.stop(DEMO_STOP_MAX).await;
        }
    };
    let mut stopped = std::pin::pin!(stopped);
    if stop.or(&mut stopped).await.is_none() {
        eprintln!(
            "tollway: running answers are ended with an error event; a third Ctrl-C does not wait for that"
        );
        hurry.cancel();
        stop.or(stopped).await;
    }
    ended
}

/// Makes the running planes useful: tenant, providers, first request, quickstart file.
async fn serve(
    options: &Options,
    planes: &Planes,
    found: &mut Vec<Found>,
    data_dir: &Path,
    keys: &mut Keys,
) -> Result<Option<Demo>, Failure> {
    let client = Client::new(Target {
        urls: vec![planes.admin_url.clone()],
        key: planes.admin_key.clone(),
        ca: None,
    })?;
    let api_key = seed::tenant(&client, data_dir, keys).await?;
    let existing = seed::enabled_providers(&client).await?;
    let demo = if options.demo || found.is_empty() && existing.is_empty() {
        Some(Demo::start().await?)
    } else {
        seed::retire_demo(&client).await?;
        None
    };
    found.extend(demo.as_ref().map(discover::built_in));
    say!("providers");
    for provider in found.iter() {
        let reprice = options.upstream_price.is_some() && provider.id != demo::PROVIDER;
        seed::provider(&client, provider, reprice, data_dir, keys).await?;
        say!("  {}", provider.about);
    }
    for id in existing
        .iter()
        .filter(|id| found.iter().all(|provider| provider.id != **id))
    {
        say!("  {id}: from an earlier start or by hand");
    }
    let asked_for_demo = options.demo.then(|| demo::MODEL.to_owned());
    let model = match asked_for_demo.or_else(|| found.iter().find_map(|provider| provider.model.clone())) {
        Some(model) => model,
        None => seed::any_model(&client, &existing)
            .await?
            .context("no provider has a model: name a server by `--upstream NAME=URL`, or use `--demo`")?,
    };
    let quickstart = Quickstart {
        api_url: planes.api_url.clone(),
        admin_url: planes.admin_url.clone(),
        api_key,
        admin_key: planes.admin_key.clone(),
        model,
        data_dir: data_dir.to_owned(),
    };
    arrived(&client).await?;
    listed(&quickstart).await?;
    if !options.no_request {
        first_request(&client, &quickstart, &planes.usage_log).await;
    }
    quickstart::write(&quickstart)?;
    report::ready(&quickstart, &planes.ops_url);
    Ok(demo)
}

/// Sends the first request and follows it. A provider that fails is no reason not to serve, so this only says so.
async fn first_request(client: &Client, quickstart: &Quickstart, usage_log: &Path) {
    say!("\n{} is asked: {}\n", quickstart.model, first_request::QUESTION);
    let followed = async {
        let mark = first_request::Mark::of(usage_log)?;
        let id = first_request::ask(quickstart).await?;
        let recorded = first_request::recorded(usage_log, &mark, &id).await?;
        report::cost(&recorded);
        first_request::counted(client, &recorded).await
    };
    if let Err(error) = followed.await {
        say!("tollway: the first request did not go through: {error:#}");
    }
}

/// Waits until the node runs on everything that was written so far: on a second start it serves its disk copy first, in
/// which the demo provider may have another address.
async fn arrived(client: &Client) -> Result<(), Failure> {
    let wanted = client.get("cluster").await?["revision"].as_u64();
    let deadline = tokio::time::Instant::now() + CATALOG_MAX;
    loop {
        let nodes = client.pages("nodes").await?;
        let revision = |row: &&serde_json::Value| row["connection"]["revision"].as_u64();
        if crate::output::rows(&nodes)
            .iter()
            .any(|row| revision(row) >= wanted)
        {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let waited = CATALOG_MAX.as_secs();
            return Err(anyhow::anyhow!("the node has not taken in the catalog after {waited} s").into());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Waits until the public API offers the model to the key: the catalog has arrived at the node.
async fn listed(quickstart: &Quickstart) -> Result<(), Failure> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .timeout(CATALOG_MAX)
        .build()
        .context("cannot make an HTTP client")?;
    let url = format!("{}/models", quickstart.api_url);
    let deadline = tokio::time::Instant::now() + CATALOG_MAX;
    loop {
        let answer = http.get(&url).bearer_auth(&quickstart.api_key).send().await;
        let last = match answer {
            Ok(answer) if answer.status().is_success() => {
                let list: serde_json::Value = answer.json().await.unwrap_or_default();
                let models = list["data"].as_array().into_iter().flatten();
                if models
                    .into_iter()
                    .any(|row| row["id"] == quickstart.model.as_str())
                {
                    return Ok(());
                }
                format!("`{}` is not in its list of models", quickstart.model)
            }
            Ok(answer) => format!("it answers with status {}", answer.status()),
            Err(error) => error.without_url().to_string(),
        };
        if tokio::time::Instant::now() > deadline {
            let waited = CATALOG_MAX.as_secs();
            return Err(anyhow::anyhow!("the public API is not ready after {waited} s: {last}").into());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Makes the data folder and claims it: two processes on one folder would ruin it.
fn claim(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    use std::os::unix::fs::DirBuilderExt as _;
    let text = |what: &str| format!("cannot {what} the data folder {}", data_dir.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| text("make"))?;
    let lock: PathBuf = data_dir.join("lock");
    let file = std::fs::File::create(&lock).with_context(|| text("write to"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another `tollway up` runs on {}; stop it, or choose another folder by `--data-dir DIR`",
            data_dir.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| text("lock")),
    }
}

/// The signals that end a service.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let to = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: to(SignalKind::interrupt())?,
            terminate: to(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// The work's result, or nothing when a signal came first.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.wait() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_claimed_by_one_process_only() {
        let dir = std::env::temp_dir().join(format!("tollway-claim-{}", std::process::id()));
        let held = claim(&dir).unwrap();
        let refused = claim(&dir).unwrap_err().to_string();
        assert!(refused.contains("another `tollway up`"), "{refused}");
        drop(held);
        claim(&dir).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
