//! One node as it is deployed: a control plane of one replica and a node that joined it, each a process of its own.
//!
//! It is made the way the README tells an operator: `init`, `run`, a join token, `join`, `run`, `apply`, a key.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::money::scrape;
use crate::parts::{Gateway, Part, endpoint, last_lines};

/// Longest wait for any one step: certificates, an election, a busy machine.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Pause between two tries of a step.
const PAUSE: Duration = Duration::from_millis(200);

const MODEL: &str = "bench/tw-small";

/// The catalog and the tenant that are applied, with PROVIDER and MODEL to be replaced.
const CATALOG: &str = r#"
[[resources]]
kind = "provider"
id = "bench"
name = "The scripted provider"
dialect = "openai"
base_url = "http://PROVIDER/v1"
auth = "none"
private_network = true

[[resources]]
kind = "model"
id = "MODEL"
name = "MODEL"
context_tokens = 1000000

[[resources]]
kind = "endpoint"
id = "bench/MODEL"
model = "MODEL"
provider = "bench"
upstream_model = "tw-small"

[[resources]]
kind = "price"
endpoint = "bench/MODEL"
prices = { input = "0.10", output = "0.20" }

[[resources]]
kind = "organization"
id = "bench"
name = "Bench"

[[resources]]
kind = "project"
id = "bench"
organization = "bench"
name = "Bench"
"#;

/// The folders that the programs are in.
#[derive(Clone, Copy)]
pub(crate) struct Programs<'a> {
    /// Of `tollway-data`.
    pub(crate) node: &'a Path,
    /// Of `tollway-control` and `tollway`, whose cost is not measured.
    pub(crate) replica: &'a Path,
}

/// Starts a replica and a node.
///
/// - `brokers`: a Kafka for the usage events; without one the node keeps them in its own folder.
pub(crate) fn deploy(
    programs: Programs<'_>,
    folder: &Path,
    provider: SocketAddr,
    brokers: Option<&str>,
) -> Result<Gateway> {
    let mut made = Making::new(programs, folder);
    let (node, _) = made.deploy(provider, brokers)?;
    Ok(node)
}

/// A cluster being made.
pub(crate) struct Making<'a> {
    programs: Programs<'a>,
    folder: &'a Path,
    /// The environment of `tollway`.
    admin: Vec<(&'static str, String)>,
}

/// A replica that runs.
pub(crate) struct Replica {
    pub(crate) part: Part,
    pub(crate) admin: u16,
    peer: u16,
}

impl<'a> Making<'a> {
    pub(crate) fn new(programs: Programs<'a>, folder: &'a Path) -> Self {
        Self {
            programs,
            folder,
            admin: Vec::new(),
        }
    }

    /// A cluster of one replica.
    ///
    /// - `scheme`: `http` or `https`, how its admin API is reached. `more`: sections of its configuration.
    pub(crate) fn replica(&mut self, scheme: &str, more: &str) -> Result<Replica> {
        let [admin, peer, ..] = free_ports()?;
        let home = |name: &str| self.folder.join(name);
        let tls = if scheme == "http" { "off" } else { "cluster" };
        let config = self.write(
            "control.toml",
            &format!(
                "data_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\ntls = \"{tls}\"\n[peer]\nlisten = \"127.0.0.1:{peer}\"\n{more}",
                home("control")
            ),
        )?;
        let made = self.tool(
            "tollway-control",
            &["init", "--config", &config, "--output", "json"],
        )?;
        let made: Value = serde_json::from_str(&made).context("`init` prints JSON")?;
        let key = made["admin_key"]
            .as_str()
            .context("`init` prints the admin key")?;
        self.admin = vec![
            ("TOLLWAY_ADMIN_URL", format!("{scheme}://127.0.0.1:{admin}")),
            ("TOLLWAY_ADMIN_KEY", key.to_owned()),
            ("TOLLWAY_CA", home("control").join("ca.pem").display().to_string()),
        ];
        let part = self.start("tollway-control", &config)?;
        Ok(Replica { part, admin, peer })
    }

    /// A replica and a node with its catalog and a key. The port is where the node's metrics are.
    pub(crate) fn deploy(&mut self, provider: SocketAddr, brokers: Option<&str>) -> Result<(Gateway, u16)> {
        let Replica {
            part: mut control,
            admin,
            peer,
        } = self.replica("https", "")?;
        let [api, ops, ..] = free_ports()?;
        let home = |name: &str| self.folder.join(name);
        let usage = match brokers {
            Some(brokers) => format!("sink = \"kafka\"\nbrokers = {brokers:?}"),
            None => format!("sink = \"file\"\ndir = {:?}", home("usage-log")),
        };
        let config = self.write(
            "node.toml",
            &format!(
                "data_dir = {:?}\n[api]\nlisten = \"127.0.0.1:{api}\"\n[ops]\nlisten = \"127.0.0.1:{ops}\"\n[control]\npeers = [\"127.0.0.1:{peer}\"]\n[usage]\n{usage}\n",
                home("node")
            ),
        )?;
        let url = format!("https://127.0.0.1:{admin}");
        let token = self.until(&mut control, &["cluster", "join-token", "--node", "bench"])?;
        let join = [
            "join",
            "--config",
            &config,
            "--control",
            &url,
            "--token",
            token.trim(),
        ];
        self.tool("tollway-data", &join)?;
        let mut node = self.start("tollway-data", &config)?;

        let catalog = CATALOG
            .replace("PROVIDER", &provider.to_string())
            .replace("MODEL", MODEL);
        self.apply(&catalog)?;
        let (_, api_key) = self.key("bench")?;
        let (address, path) = endpoint(&format!("http://127.0.0.1:{api}/v1"))?;
        self.served(&mut node, address, &api_key)?;
        let gateway = Gateway {
            address,
            path,
            api_key,
            model: Some(MODEL.to_owned()),
            pid: node.pid(),
            parts: vec![node, control],
        };
        Ok((gateway, ops))
    }

    /// Applies a document of resources.
    pub(crate) fn apply(&self, document: &str) -> Result<()> {
        let file = self.write("catalog.toml", document)?;
        self.tool("tollway", &["apply", "-f", &file]).map(drop)
    }

    /// Makes an API key in a project: its id, and the key.
    pub(crate) fn key(&self, project: &str) -> Result<(String, String)> {
        let made = self.tool(
            "tollway",
            &["key", "create", "--project", project, "--output", "json"],
        )?;
        let made: Value = serde_json::from_str(&made).context("`key create` prints JSON")?;
        let text = |name: &str| made[name].as_str().map(str::to_owned);
        text("id").zip(text("key")).context("`key create` shows the key")
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn program(&self, name: &str) -> PathBuf {
        let Programs { node, replica } = self.programs;
        let folder = if name == "tollway-data" { node } else { replica };
        folder.join(name)
    }

    fn start(&self, program: &str, config: &str) -> Result<Part> {
        let log = File::create(self.log(program))?;
        let mut command = Command::new(self.program(program));
        command.args(["run", "--config", config]);
        command.stdout(log.try_clone()?).stderr(log);
        Part::run(command).with_context(|| format!("cannot start `{program}`"))
    }

    fn log(&self, program: &str) -> PathBuf {
        self.folder.join(format!("{program}.log"))
    }

    /// Runs a program to its end and returns what it printed.
    fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.program(program))
            .args(arguments)
            .envs(self.admin.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{program}`; is it built?"))?;
        ensure!(
            output.status.success(),
            "`{program} {}` failed:\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Tries a `tollway` command until it succeeds, while `part` lives.
    fn until(&self, part: &mut Part, arguments: &[&str]) -> Result<String> {
        let start = Instant::now();
        loop {
            let tried = self.tool("tollway", arguments);
            if let Some(status) = part.ended()? {
                bail!("a part ended with {status}; see its log:\n{}", self.last_words());
            }
            if tried.is_ok() || start.elapsed() > STEP_MAX {
                return tried;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the node knows the key. It was the last thing that was written, so it has the rest too.
    pub(crate) fn served(&self, node: &mut Part, address: SocketAddr, api_key: &str) -> Result<()> {
        let start = Instant::now();
        let models = || scrape::get(address, "/v1/models", Some(api_key));
        while !models().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            if let Some(status) = node.ended()? {
                bail!("the node ended with {status}:\n{}", self.last_words());
            }
            ensure!(
                start.elapsed() < STEP_MAX,
                "the node does not serve:\n{}",
                self.last_words()
            );
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    pub(crate) fn last_words(&self) -> String {
        let of = |program| format!("--- {program}\n{}", last_lines(&self.log(program)));
        [of("tollway-control"), of("tollway-data")].join("\n")
    }
}

/// Four ports that are free now; held until all are known, so that they differ.
fn free_ports() -> Result<[u16; 4]> {
    let held = [(); 4].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; 4];
    for (port, listener) in ports.iter_mut().zip(held) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}
