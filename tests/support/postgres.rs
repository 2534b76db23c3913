//! A real PostgreSQL for one test, on loopback, as Debian ships it. Ends with the value.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Launch, Process, free_port};

/// How long the server may take to answer on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// A running server with one database, `postgres`.
pub struct Postgres {
    port: u16,
    process: Process,
    _dir: tempfile::TempDir,
}

impl Postgres {
    /// Starts a server in a new folder. Blocks for some seconds: call it from `spawn_blocking` where other tasks run.
    pub fn start() -> Result<Self> {
        let programs = programs()?;
        let dir = tempfile::Builder::new().prefix("tollway-postgres-").tempdir()?;
        let home = dir.path();
        // The server refuses to run as root: root starts it as the user of Debian's package.
        let is_root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
        let mut user = vec!["env"];
        if is_root {
            let owned = Command::new("chown")
                .arg("postgres:postgres")
                .arg(home)
                .status()?;
            ensure!(
                owned.success(),
                "there is no user `postgres`; tests/run installs postgresql"
            );
            user = vec![
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
            ];
        }
        let data = home.join("data");
        let made = Command::new(user[0])
            .args(&user[1..])
            .arg(programs.join("initdb"))
            .args([
                "--auth",
                "trust",
                "--username",
                "tollway",
                "--encoding",
                "UTF8",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&data)
            .current_dir("/")
            .output()?;
        ensure!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port()?;
        let logs = tempfile::tempdir()?.keep();
        let process = Launch::new("postgres", Path::new(user[0]), &logs)
            .args(&user[1..])
            .args([
                programs.join("postgres").as_os_str(),
                "-D".as_ref(),
                data.as_os_str(),
            ])
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-k"])
            .args([home])
            .start()?;
        let server = Self {
            port,
            process,
            _dir: dir,
        };
        let begun = std::time::Instant::now();
        while postgres::Client::connect(&server.url(), postgres::NoTls).is_err() {
            ensure!(
                begun.elapsed() < READY,
                "PostgreSQL does not answer: {}",
                server.process.last_words()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        std::fs::remove_dir_all(logs)?;
        Ok(server)
    }

    /// What clients connect to.
    pub fn url(&self) -> String {
        format!("postgresql://tollway@127.0.0.1:{}/postgres", self.port)
    }
}

/// The folder with `initdb` and `postgres`: of the newest version in Debian's place.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("tests/run installs postgresql")?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, path)| path)
        .context("no PostgreSQL in /usr/lib/postgresql; tests/run installs it")
}
