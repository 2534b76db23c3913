//! A network of its own for one test: every process in a network namespace, and ways that can be cut while both ends run.
//!
//! The test runs itself again in namespaces of its own ([`crate::own`]). In there the test, its providers and Kafka are at the [`HUB`]; every member has a
//! namespace with one link to it, and the hub forwards what members send each other. A cut is a rule by which the hub drops
//! that without a word, as a broken cable does: connections stay open and nothing comes.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};

use crate::own;
use crate::process::Launch;

/// Where members find the providers and Kafka.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Members that one network takes.
const MEMBERS_MAX: u8 = 200;

/// Where a process runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address that it listens on.
    pub ip: Ipv4Addr,
    /// Its network namespace, if it has one of its own.
    namespace: Option<String>,
}

impl Place {
    /// Where everything else is.
    pub fn loopback() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST,
            namespace: None,
        }
    }

    /// Prepares a program that runs here, under its own pid.
    pub(crate) fn launch(&self, name: &str, program: &Path, logs: &Path) -> Launch {
        match &self.namespace {
            None => Launch::new(name, program, logs),
            Some(namespace) => Launch::new(name, Path::new("ip"), logs)
                .args(["netns", "exec", namespace])
                .args([program]),
        }
    }
}

/// The hub, from inside.
#[derive(Debug)]
pub struct Network {
    members: AtomicU8,
}

impl Network {
    /// Runs the test of this name again in namespaces of its own ([`own::enter`]); `None` once it has passed there. In that run itself:
    /// the network.
    pub fn enter(test: &str) -> Result<Option<Self>> {
        if !own::enter(test, &["--net"])? {
            return Ok(None);
        }
        Self::build()
            .map(Some)
            .context("no network of its own for this test: it needs iproute2")
    }

    fn build() -> Result<Self> {
        // Names of namespaces are files below /run: ours are seen by nobody else.
        own::run("mount", &["-t", "tmpfs", "none", "/run"])?;
        ip("link set lo up")?;
        ip(&format!("addr add {HUB}/32 dev lo"))?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        Ok(Self {
            members: AtomicU8::new(0),
        })
    }

    /// A namespace for one more member.
    pub fn place(&self) -> Result<Place> {
        let number = self.members.fetch_add(1, Relaxed) + 1;
        ensure!(number <= MEMBERS_MAX, "more than {MEMBERS_MAX} members");
        let (name, link) = (format!("member-{number}"), format!("link-{number}"));
        let [gate, own] = [1, 2].map(|end| Ipv4Addr::new(10, 77, number, end));
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name hub netns {name}"),
            format!("addr add {gate}/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add {own}/24 dev hub"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set hub up"),
            format!("-n {name} route add default via {gate}"),
        ] {
            ip(&line)?;
        }
        Ok(Place {
            ip: own,
            namespace: Some(name),
        })
    }

    /// Cuts the way between two members, in both directions, until it is mended.
    pub fn cut(&self, one: &Place, other: &Place) -> Result<()> {
        rules("add", one, other)
    }

    /// Mends what [`Self::cut`] has cut.
    pub fn mend(&self, one: &Place, other: &Place) -> Result<()> {
        rules("del", one, other)
    }
}

fn rules(verb: &str, one: &Place, other: &Place) -> Result<()> {
    for (from, to) in [(one.ip, other.ip), (other.ip, one.ip)] {
        ip(&format!("rule {verb} from {from} to {to} blackhole"))?;
    }
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    let arguments: Vec<&str> = line.split(' ').collect();
    own::run("ip", &arguments)
}
