//! The processes of a run: the provider, the floor, the gateway. All on loopback, all ended with the run.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http::Uri;
use serde::Deserialize;

/// Longest start of a spawned gateway, first boot included.
const START_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at whether it has started.
const PAUSE: Duration = Duration::from_millis(20);

/// A process of this run; dropping it kills it.
pub(crate) struct Part {
    child: Child,
}

impl Part {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts a program whose output goes where `command` says.
    pub(crate) fn run(mut command: Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Self { child })
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Starts one of our own helpers and returns the address it says it listens on.
    pub(crate) fn start(program: &str, args: &[String]) -> Result<(Self, SocketAddr)> {
        let own = std::env::current_exe()?;
        let path = own.with_file_name(program);
        let child = Command::new(&path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start `{}`; build it with the same profile",
                    path.display()
                )
            })?;
        let mut part = Self { child };
        let stdout = part.child.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line
            .trim()
            .strip_prefix("listening http://")
            .with_context(|| format!("`{program}` did not start"))?;
        Ok((part, address.parse()?))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How to reach the gateway that is measured.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    pub(crate) api_key: String,
    pub(crate) model: Option<String>,
    pub(crate) pid: u32,
    /// Kept so that they live as long as the run; they end in this order.
    pub(crate) parts: Vec<Part>,
}

/// What `tollway up` writes for scripts once it serves.
#[derive(Deserialize)]
struct Quickstart {
    api_url: String,
    api_key: String,
    model: String,
}

impl Gateway {
    /// Starts `tollway up` on a fresh data folder with the provider as its upstream and waits for its `quickstart.json`.
    pub(crate) fn spawn(
        program: &Path,
        folder: &Path,
        provider: SocketAddr,
        more: &[String],
    ) -> Result<Self> {
        let data = folder.join("data");
        let log = folder.join("gateway.log");
        let file = File::create(&log)?;
        let child = Command::new(program)
            .arg("up")
            .arg("--data-dir")
            .arg(&data)
            .args([
                "--upstream",
                &format!("bench=http://{provider}/v1"),
                "--port",
                "0",
            ])
            .args(more)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let mut part = Part { child };
        let quickstart = wait_for_quickstart(&mut part, &data.join("quickstart.json"))
            .with_context(|| format!("the gateway did not start; it said:\n{}", last_lines(&log)))?;
        let (address, path) = endpoint(&quickstart.api_url)?;
        let pid = part.pid();
        let (api_key, model) = (quickstart.api_key, Some(quickstart.model));
        Ok(Self {
            address,
            path,
            api_key,
            model,
            pid,
            parts: vec![part],
        })
    }
}

fn wait_for_quickstart(part: &mut Part, path: &PathBuf) -> Result<Quickstart> {
    let start = Instant::now();
    loop {
        // Half a file does not parse, so a read in the middle of the writing is just one more turn.
        if let Some(found) = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(found);
        }
        if let Some(status) = part.child.try_wait()? {
            bail!("it ended with {status}");
        }
        ensure!(
            start.elapsed() < START_MAX,
            "no `quickstart.json` after {START_MAX:?}"
        );
        std::thread::sleep(PAUSE);
    }
}

pub(crate) fn last_lines(path: &Path) -> String {
    const LINES: usize = 20;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Address and chat path of a base URL, with or without its `/v1`. Loopback only: figures over a network mean nothing here.
pub(crate) fn endpoint(url: &str) -> Result<(SocketAddr, String)> {
    let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
    ensure!(uri.scheme_str() == Some("http"), "`{url}`: only http is measured");
    let host = uri.host().context("a URL has a host")?;
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let address = SocketAddr::new(
        host.trim_matches(['[', ']']).parse()?,
        uri.port_u16().unwrap_or(80),
    );
    ensure!(address.ip().is_loopback(), "`{url}`: only loopback is measured");
    let base = uri.path().trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    Ok((address, format!("{base}/v1/chat/completions")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_gives_its_chat_path_with_or_without_v1() {
        for (url, path) in [
            ("http://127.0.0.1:8080", "/v1/chat/completions"),
            ("http://127.0.0.1:8080/v1/", "/v1/chat/completions"),
            ("http://localhost:8080/api/v1", "/api/v1/chat/completions"),
        ] {
            assert_eq!(
                endpoint(url).unwrap(),
                ("127.0.0.1:8080".parse().unwrap(), path.to_owned())
            );
        }
        assert!(endpoint("http://192.0.2.1:80").is_err());
        assert!(endpoint("https://127.0.0.1:80").is_err());
    }
}
