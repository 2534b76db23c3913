//! One process of a cluster: started, killed, started again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::network::Place;
use crate::process::Process;
use crate::wait;

/// How long a process may take to be ready on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// One process and what it needs to be started again.
pub struct Member {
    /// The name in logs, and the folder of its data.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) process: Option<Process>,
    /// Where its readiness is asked.
    pub(crate) ops_url: String,
}

impl Member {
    /// Starts it, again or for the first time.
    pub fn start(&mut self) -> Result<()> {
        let launch = self.place.launch(&self.name, &self.program, &self.logs);
        let process = launch.args(["run", "--config"]).args([&self.config]).start()?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it under another program, which must leave it our own child.
    pub fn start_under(&mut self, wrapper: &[String]) -> Result<()> {
        let (program, arguments) = wrapper.split_first().context("a program")?;
        let launch = self.place.launch(&self.name, Path::new(program), &self.logs);
        let launch = launch.args(arguments).args([&self.program]);
        let process = launch.args(["run", "--config"]).args([&self.config]).start()?;
        self.process = Some(process);
        Ok(())
    }

    /// Its process id, if it was started.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `kill -9`. Nothing of it runs when this returns.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self, within: Duration) -> Result<std::process::ExitStatus> {
        let mut process = self.process.take().context("it is not running")?;
        process.terminate()?;
        process.wait(within)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self, http: &reqwest::Client) {
        let url = format!("{}/readyz", self.ops_url);
        wait::until_ok(READY, &format!("`{}` is ready", self.name), || async {
            let response = http.get(&url).send().await?;
            let status = response.status();
            ensure!(
                status.is_success(),
                "{status}: {}",
                response.text().await.unwrap_or_default()
            );
            Ok::<_, anyhow::Error>(())
        })
        .await;
    }

    /// What its operator is answered: status and text.
    pub async fn check(&self, http: &reqwest::Client, path: &str) -> Result<(u16, String)> {
        let response = http.get(format!("{}{path}", self.ops_url)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let read =
            |end| std::fs::read_to_string(self.logs.join(format!("{}.{end}", self.name))).unwrap_or_default();
        read("out") + &read("err")
    }

    /// One metric's value, summed over its labels.
    pub async fn metric(&self, http: &reqwest::Client, name: &str) -> Result<f64> {
        let (_, text) = self.check(http, "/metrics").await?;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        });
        Ok(lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }
}
