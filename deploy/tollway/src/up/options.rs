//! The flags of `tollway up`, and the ports they lead to.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use clap::Args;
use tollway_shared::money::Price;

use crate::exit::Failure;

/// Port of the public API.
const PORT: u16 = 8080;
/// Port of the admin API.
const ADMIN_PORT: u16 = 7600;
/// Port of metrics and health.
const OPS_PORT: u16 = 9600;

/// What `tollway up` is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Where everything is kept [default: ~/.local/share/tollway, or ./tollway-data without a home]
    #[arg(long, env = "TOLLWAY_UP_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Use the built-in demo provider, and look for no others
    #[arg(long)]
    pub(crate) demo: bool,
    /// An OpenAI-compatible server, such as gpu=http://10.0.0.5:8000/v1; its models are read from /models; a key
    /// for it is taken from `TOLLWAY_UPSTREAM_KEY_<NAME>`; may be repeated
    #[arg(long = "upstream", value_name = "NAME=URL", value_parser = upstream)]
    pub(crate) upstreams: Vec<Upstream>,
    /// What models of local servers and --upstream cost, US dollars per million prompt and completion tokens
    /// [default: 0.10,0.20 for models that have no price yet]
    #[arg(long, value_name = "IN,OUT", value_parser = price_pair)]
    pub(crate) upstream_price: Option<PricePair>,
    /// Port of the public API [default: 8080]; 0 = any free port, then also for the other two unless they are given
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Port of the admin API [default: 7600]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
    /// Port of metrics and health [default: 9600]
    #[arg(long, value_name = "PORT")]
    pub(crate) ops_port: Option<u16>,
    /// Send no request of its own
    #[arg(long)]
    pub(crate) no_request: bool,
}

/// A server named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Its id in the catalog.
    pub(crate) name: String,
    /// Its base URL, without a slash at the end.
    pub(crate) base_url: String,
}

/// Prices per million tokens, as decimal text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PricePair {
    /// Prompt.
    pub(crate) input: String,
    /// Completion.
    pub(crate) output: String,
}

impl Default for PricePair {
    fn default() -> Self {
        Self {
            input: "0.10".into(),
            output: "0.20".into(),
        }
    }
}

fn upstream(text: &str) -> Result<Upstream, String> {
    let (name, url) = text
        .split_once('=')
        .ok_or("wanted is NAME=URL, such as gpu=http://10.0.0.5:8000/v1")?;
    tollway_shared::ids::ProviderId::parse(name).map_err(|fault| format!("NAME {fault}"))?;
    if name == crate::demo::PROVIDER {
        return Err(format!(
            "`{name}` is the name of the built-in provider; choose another"
        ));
    }
    let parsed = reqwest::Url::parse(url).map_err(|error| format!("URL {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err("URL must start with http:// or https:// and name a host".into());
    }
    Ok(Upstream {
        name: name.to_owned(),
        base_url: url.trim_end_matches('/').to_owned(),
    })
}

fn price_pair(text: &str) -> Result<PricePair, String> {
    let (input, output) = text
        .split_once(',')
        .ok_or("wanted is IN,OUT, such as 0.10,0.20")?;
    for part in [input, output] {
        let price = Price::parse(part).map_err(|fault| format!("`{part}` {fault}"))?;
        price.check().map_err(|fault| format!("`{part}` {fault}"))?;
    }
    Ok(PricePair {
        input: input.to_owned(),
        output: output.to_owned(),
    })
}

/// The addresses to listen on. Port 0 is left to whoever binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Public API.
    pub(crate) api: SocketAddr,
    /// Admin API.
    pub(crate) admin: SocketAddr,
    /// Metrics and health.
    pub(crate) ops: SocketAddr,
}

impl Options {
    /// The public API's port, before it is bound.
    pub(crate) fn api_port(&self) -> u16 {
        self.port.unwrap_or(PORT)
    }

    /// The addresses, after a look whether the named ports are free: a clear message beats a later error.
    pub(crate) fn listen(&self) -> Result<Listen, Failure> {
        let any = self.port == Some(0);
        let or = |port: Option<u16>, usual| port.unwrap_or(if any { 0 } else { usual });
        let ports = [
            (or(self.port, PORT), "public API", "--port"),
            (or(self.admin_port, ADMIN_PORT), "admin API", "--admin-port"),
            (or(self.ops_port, OPS_PORT), "metrics and health", "--ops-port"),
        ];
        for (port, what, flag) in ports {
            if port != 0 {
                free(port, what, flag)?;
            }
        }
        let [api, admin, ops] = ports.map(|(port, ..)| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Ok(Listen { api, admin, ops })
    }
}

fn free(port: u16, what: &str, flag: &str) -> Result<(), Failure> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::Local(anyhow::anyhow!(
            "port {port}, wanted for the {what}, is taken by another program; choose another port by `{flag} PORT`, or free ports for everything by `--port 0`"
        ))),
        Err(error) => Err(Failure::Local(anyhow::anyhow!(
            "port {port}, wanted for the {what}, cannot be used: {error}; choose another port by `{flag} PORT`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        let all = ["tollway", "up"].iter().chain(arguments);
        match crate::cli::Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(crate::cli::Command::Up(options)) => Ok(options),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn an_upstream_is_a_name_and_a_url() {
        let good = options(&["--upstream", "gpu=http://10.0.0.5:8000/v1/"]).unwrap();
        assert_eq!(good.upstreams[0].base_url, "http://10.0.0.5:8000/v1");
        for bad in [
            "gpu",
            "g u=http://x/v1",
            "gpu=ftp://x",
            "gpu=x",
            "demo=http://x/v1",
        ] {
            assert!(options(&["--upstream", bad]).is_err(), "{bad}");
        }
        assert!(options(&["--upstream-price", "0.1,-1"]).is_err());
        assert!(options(&["--upstream-price", "0.1,0.2"]).is_ok());
    }

    #[test]
    fn port_0_is_meant_for_every_port_that_is_not_named() {
        let listen = options(&["--port", "0"]).unwrap().listen().unwrap();
        assert_eq!(
            [listen.api, listen.admin, listen.ops].map(|at| at.port()),
            [0, 0, 0]
        );
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let failure = options(&["--port", "0", "--admin-port", &port])
            .unwrap()
            .listen()
            .unwrap_err();
        let text = failure.to_string();
        assert!(text.contains(&port) && text.contains("--admin-port"), "{text}");
    }
}
