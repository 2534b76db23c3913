//! The configuration files of a cluster's processes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cluster::{PARTITIONS, TOPIC};

/// Writes the file of a replica: its folder, its address, the ports of its admin API and of its peers, its Kafka if it has one.
pub(crate) fn control_config(
    home: &Path,
    ip: Ipv4Addr,
    ports: (u16, u16),
    bootstrap: Option<&str>,
) -> Result<PathBuf> {
    std::fs::create_dir_all(home)?;
    let usage = match bootstrap {
        Some(brokers) => format!(
            "source = \"kafka\"\ntopic = \"{TOPIC}\"\nbrokers = \"{brokers}\"\nreplication = {}\n",
            brokers.split(',').count()
        ),
        None => "source = \"none\"\n".to_owned(),
    };
    let config = format!(
        "data_dir = \"{}\"\n[admin]\nlisten = \"{ip}:{}\"\n[peer]\nlisten = \"{ip}:{}\"\n[usage]\n{usage}",
        home.display(),
        ports.0,
        ports.1,
    );
    let path = home.join("control.toml");
    std::fs::write(&path, config)?;
    Ok(path)
}

/// Writes the file of a node: its folder, its address, the ports of its API and of its operator, the replicas, its Kafka if it has one.
pub(crate) fn data_config(
    home: &Path,
    ip: Ipv4Addr,
    ports: (u16, u16),
    peers: &[String],
    bootstrap: Option<&str>,
) -> Result<PathBuf> {
    std::fs::create_dir_all(home)?;
    let usage = match bootstrap {
        Some(brokers) => {
            format!(
                "sink = \"kafka\"\ntopic = \"{TOPIC}\"\npartitions = {PARTITIONS}\nbrokers = \"{brokers}\"\n"
            )
        }
        None => format!(
            "sink = \"file\"\ndir = \"{}\"\n",
            home.join("usage-log").display()
        ),
    };
    let config = format!(
        "data_dir = \"{}\"\n[api]\nlisten = \"{ip}:{}\"\n[ops]\nlisten = \"{ip}:{}\"\n[control]\npeers = {peers:?}\n\
         [usage]\n{usage}",
        home.display(),
        ports.0,
        ports.1,
    );
    let path = home.join("data.toml");
    std::fs::write(&path, config)?;
    Ok(path)
}
