//! What a replica keeps in its data folder besides log and identity: who it is, and the sealing key.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tollway_proto::admin::cluster::hex;
use tollway_proto::private_file;
use tollway_shared::ids::{ClusterId, ReplicaId};
use tollway_shared::seal::{self, Key};

use super::StartFault;
use crate::config::Config;

/// The file that says who this replica is. It is written last: a folder without it is not a replica.
const FILE: &str = "replica.json";

/// Who a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Home {
    /// Its cluster.
    pub(super) cluster: ClusterId,
    /// Its id.
    pub(super) replica: ReplicaId,
    /// SHA-256 of a key derived from the sealing key: tells a wrong key before anything is opened with it.
    pub(super) seal_check: String,
    /// Whether it has been a voter. Its log must never be empty from then on: what it promised is in there.
    pub(super) voted: bool,
    /// The members when it joined, for its first contact.
    pub(super) seeds: Vec<Seed>,
}

/// A member when this replica joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seed {
    pub(super) id: ReplicaId,
    pub(super) peer_address: String,
}

impl Home {
    pub(super) fn exists(data_dir: &Path) -> bool {
        data_dir.join(FILE).exists()
    }

    pub(super) fn load(data_dir: &Path) -> Result<Self, StartFault> {
        let path = data_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StartFault::NoReplica(data_dir.display().to_string()));
            }
            Err(error) => return Err(StartFault::file(&path, error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| StartFault::file(&path, io::Error::other(error)))
    }

    pub(super) fn store(&self, data_dir: &Path) -> Result<(), StartFault> {
        let bytes = serde_json::to_vec_pretty(self).expect("ids and addresses are text");
        Ok(private_file::write(&data_dir.join(FILE), &bytes)?)
    }

    /// Refuses another key than the one this replica was made with.
    pub(super) fn check_key(&self, key: &Key, from: &str) -> Result<(), StartFault> {
        if seal_check(key) == self.seal_check {
            Ok(())
        } else {
            Err(StartFault::WrongKey(from.to_owned()))
        }
    }
}

pub(super) fn seal_check(key: &Key) -> String {
    hex(&seal::sha256(seal::derive(key, "seal-check").expose()))
}

/// Makes the data folder, readable by its owner only.
pub(super) fn make_folder(data_dir: &Path) -> Result<(), StartFault> {
    Ok(private_file::make_folder(data_dir)?)
}

/// Where the sealing key comes from, for messages.
pub(super) fn key_place(config: &Config) -> String {
    match &config.seal.key_env {
        Some(name) => format!("environment variable {name}"),
        None => config.seal_file().display().to_string(),
    }
}

/// Reads the sealing key.
pub(super) fn read_key(config: &Config) -> Result<Key, StartFault> {
    let text = match &config.seal.key_env {
        Some(name) => std::env::var(name)
            .map_err(|_| StartFault::NoKey(format!("environment variable {name} is not set")))?,
        None => {
            let path = config.seal_file();
            check_mode(&path)?;
            std::fs::read_to_string(&path)
                .map_err(|error| StartFault::NoKey(format!("{}: {error}", path.display())))?
        }
    };
    let bytes = hex::decode(text.trim())
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes
        .map(Key::new)
        .ok_or_else(|| StartFault::NoKey(format!("{} does not hold 64 hex digits", key_place(config))))
}

/// Refuses a key file that others can read.
fn check_mode(path: &PathBuf) -> Result<(), StartFault> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Err(StartFault::NoKey(format!(
            "{} can be read by others; `chmod 600` it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Writes the sealing key, unless it comes from the environment.
pub(super) fn write_key(config: &Config, key: &Key) -> Result<(), StartFault> {
    if config.seal.key_env.is_some() {
        return Ok(());
    }
    let path = config.seal_file();
    if let Some(parent) = path.parent() {
        make_folder(parent)?;
    }
    let text = zeroize::Zeroizing::new(hex::encode(key.expose()) + "\n");
    Ok(private_file::write(&path, text.as_bytes())?)
}

/// The sealing key of a new cluster: the one that is there already, or a new one.
pub(super) fn make_key(config: &Config) -> Result<Key, StartFault> {
    if config.seal.key_env.is_some() || config.seal_file().exists() {
        return read_key(config);
    }
    let key = Key::new(crate::admin::entropy());
    write_key(config, &key)?;
    Ok(key)
}
