//! Who is who: the cluster's certificate authority, and mutual TLS on the peer port.
//!
//! Every replica and node holds a short-lived certificate of the cluster's own authority. Its URI name says who it is; what it may
//! do follows from that alone: a replica may call the Peer service, a node the Push service. Names inside a certificate
//! request are never believed: the issuer states who the certificate is for.
//!
//! | file | what |
//! |---|---|
//! | [`authority`] | makes, seals and opens the authority; issues certificates |
//! | [`material`] | certificate and key: requested, and in use, swapped without a restart |
//! | [`tls`] | rustls configurations that read the certificate in use |
//! | [`accept`] | the peer port: handshakes off the accept loop, identity attached to each connection |
//! | [`admit`] | which identity may call which service |
//! | [`connect`] | channels to other replicas |
//! | [`renew`] | a new certificate at two thirds of the old one's life |

pub mod accept;
pub mod admit;
pub mod authority;
pub mod connect;
pub mod material;
pub mod renew;
pub mod tls;

#[cfg(test)]
pub(crate) mod tests;

use tollway_proto::private_file::FileFault;
use tollway_shared::ids::{ClusterId, NodeId, Region, ReplicaId};

pub use authority::Authority;
pub use material::{LiveCertificate, Material};

/// The name under which nodes reach any replica; every replica's certificate has it.
pub const CONTROL_NAME: &str = "control.tollway.internal";

/// Who a certificate was issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A control-plane member.
    Replica(ReplicaId),
    /// A data-plane member.
    Node {
        /// Where it runs.
        region: Region,
        /// Its id.
        id: NodeId,
    },
}

impl PeerIdentity {
    /// The URI name of a certificate.
    pub fn uri(&self, cluster: &ClusterId) -> String {
        match self {
            Self::Replica(id) => format!("spiffe://{cluster}/replica/{id}"),
            Self::Node { region, id } => format!("spiffe://{cluster}/node/{region}/{id}"),
        }
    }

    /// Reads the URI name of a certificate of `cluster`.
    pub fn parse(uri: &str, cluster: &ClusterId) -> Option<Self> {
        let path = uri
            .strip_prefix("spiffe://")?
            .strip_prefix(cluster.as_str())?
            .strip_prefix('/')?;
        let mut parts = path.split('/');
        let identity = match (parts.next()?, parts.next()?, parts.next()) {
            ("replica", id, None) => Self::Replica(ReplicaId(id.parse().ok()?)),
            ("node", region, Some(id)) => Self::Node {
                region: Region::parse(region).ok()?,
                id: NodeId::parse(id).ok()?,
            },
            _ => return None,
        };
        parts.next().is_none().then_some(identity)
    }

    /// The identity in a certificate whose chain has been verified.
    pub fn of_certificate(der: &[u8], cluster: &ClusterId) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Self::parse(uri, cluster),
            _ => None,
        })
    }
}

/// The name under which one replica is reached by the others.
pub fn replica_name(id: ReplicaId) -> String {
    format!("replica-{id}.tollway.internal")
}

/// What went wrong with an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFault {
    /// A certificate, key or request could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Another kind of bad certificate or key.
    #[error("{0}")]
    Bad(String),
    /// The authority's key does not open with the sealing key.
    #[error("the certificate authority's key does not open with this sealing key")]
    Seal(#[from] tollway_shared::seal::SealFault),
    /// TLS configuration.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] FileFault),
    /// This replica was removed.
    #[error("this replica was removed from the cluster")]
    Removed,
    /// The cluster does not exist yet.
    #[error("the cluster has not been made yet")]
    NoCluster,
}
