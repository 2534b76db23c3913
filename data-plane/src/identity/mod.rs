//! Who this node is: its certificate, its secrets, and where the control plane is.
//!
//! Everything is in `<data_dir>/identity`, readable by the owner only: `leaf.pem` (certificate and key), `member.json`,
//! `secrets.json`. The key never leaves the machine; a join or renewal sends a request for it to be signed.
//!
//! | file | what |
//! |---|---|
//! | [`mod@join`] | a join token → an identity |
//! | [`renew`] | a new certificate at two thirds of the old one's life |
//! | [`tls`] | mutual TLS to the control plane; the authority that a join token pins |

pub mod join;
pub mod renew;
pub mod tls;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use tollway_proto::identity::folder;
use tollway_proto::private_file::{self, FileFault};
use tollway_shared::ids::{ClusterId, NodeId, Region};
use tollway_shared::seal::Key;
use tollway_shared::secret::Secret;

use crate::catalog::{Dial, NodeSecrets};

pub use join::join;
pub use tls::LiveCertificate;
pub use tollway_proto::identity::Material;

/// What went wrong with this node's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFault {
    /// This node has not joined.
    #[error("`{0}` holds no identity; run `tollway-data join --control URL --token TOKEN` first")]
    NotJoined(String),
    /// A file.
    #[error(transparent)]
    File(#[from] FileFault),
    /// Something in it cannot be used.
    #[error("{0}")]
    Bad(String),
    /// A certificate or key could not be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS configuration.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// The control plane could not be asked.
    #[error("the control plane at `{url}` cannot be reached: {detail}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        detail: String,
    },
    /// The control plane said no.
    #[error("the control plane refused: {0}")]
    Refused(String),
}

/// Where this node belongs. Not secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// Control peers, `host:port`.
    pub peers: Vec<String>,
}

/// What is in `secrets.json`, base64.
#[derive(Serialize, Deserialize)]
struct StoredSecrets {
    region_key: String,
    peppers: BTreeMap<u32, String>,
}

/// This node, joined.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Where it belongs.
    pub membership: Membership,
    /// What it reads snapshots and keys with.
    pub secrets: NodeSecrets,
    /// Its certificate.
    pub material: Material,
    /// Its certificate in use.
    pub live: Arc<LiveCertificate>,
}

impl Identity {
    /// Whether a data folder holds an identity.
    pub fn exists(data_dir: &Path) -> bool {
        folder(data_dir).join("member.json").exists()
    }

    /// Reads what [`join()`] wrote.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityFault> {
        if !Self::exists(data_dir) {
            return Err(IdentityFault::NotJoined(data_dir.display().to_string()));
        }
        let read = |name: &str| {
            let path = folder(data_dir).join(name);
            std::fs::read_to_string(&path).map_err(|source| FileFault::new(&path, source))
        };
        let material = Material::load(data_dir)?;
        let membership = parse("member.json", &read("member.json")?)?;
        let stored: StoredSecrets = parse("secrets.json", &read("secrets.json")?)?;
        let secrets = node_secrets(&stored.region_key, stored.peppers)?;
        Self::new(membership, secrets, material)
    }

    fn new(membership: Membership, secrets: NodeSecrets, material: Material) -> Result<Self, IdentityFault> {
        let live = LiveCertificate::new(&material)?;
        Ok(Self {
            membership,
            secrets,
            material,
            live,
        })
    }

    /// Connects to control peers, which must show a replica's certificate of this cluster.
    pub fn dial(&self) -> Result<Dial, IdentityFault> {
        tls::dial(self.live.clone(), &self.material.authority_pem)
    }

    fn store(&self, data_dir: &Path) -> Result<(), IdentityFault> {
        let folder = folder(data_dir);
        private_file::make_folder(&folder)?;
        let encoded = |key: &Key| BASE64.encode(key.expose());
        let secrets = StoredSecrets {
            region_key: self.secrets.region_key.as_ref().map(encoded).unwrap_or_default(),
            peppers: self
                .secrets
                .peppers
                .iter()
                .map(|(version, key)| (*version, encoded(key)))
                .collect(),
        };
        let text =
            |value: serde_json::Result<String>| value.map_err(|fault| IdentityFault::Bad(fault.to_string()));
        private_file::write(
            &folder.join("secrets.json"),
            text(serde_json::to_string(&secrets))?.as_bytes(),
        )?;
        self.material.store(data_dir)?;
        // The membership goes last: its presence says that the rest is there.
        let membership = text(serde_json::to_string_pretty(&self.membership))?;
        Ok(private_file::write(
            &folder.join("member.json"),
            membership.as_bytes(),
        )?)
    }
}

/// A new key and a request for a certificate on it (PEM).
fn request() -> Result<(Secret<String>, String), IdentityFault> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?.pem()?;
    Ok((Secret::new(key.serialize_pem()), request))
}

fn node_secrets(region_key: &str, peppers: BTreeMap<u32, String>) -> Result<NodeSecrets, IdentityFault> {
    let peppers = peppers
        .into_iter()
        .map(|(version, text)| Ok((version, key(&text)?)))
        .collect::<Result<_, IdentityFault>>()?;
    Ok(NodeSecrets {
        region_key: Some(key(region_key)?),
        peppers,
    })
}

fn key(text: &str) -> Result<Key, IdentityFault> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(Key::new)
        .ok_or_else(|| IdentityFault::Bad("a secret is not 32 bytes in base64".into()))
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, IdentityFault> {
    serde_json::from_str(text).map_err(|fault| {
        // The message may not quote a secret; the place is enough.
        IdentityFault::Bad(format!("{name}: not as written, near line {}", fault.line()))
    })
}

#[cfg(test)]
mod tests;
