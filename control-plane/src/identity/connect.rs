//! Channels to other replicas: mutual TLS, connected when first used and again whenever they are cut.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tollway_shared::ids::ReplicaId;
use tonic::transport::{Channel, Endpoint};

use super::replica_name;
use crate::raft::PeerConnector;

/// A connection that cannot be made in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent connection is probed this often.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A probe without an answer for this long ends the connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens channels whose other end must prove to be the named replica.
#[derive(Clone)]
pub struct MutualTls(Arc<ClientConfig>);

impl MutualTls {
    /// Uses a configuration of [`super::tls::peer_client`].
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self(tls)
    }
}

impl PeerConnector for MutualTls {
    fn channel(&self, id: ReplicaId, address: &str) -> Channel {
        let tls = TlsConnector::from(self.0.clone());
        let name =
            ServerName::try_from(replica_name(id)).expect("a number between fixed letters is a host name");
        let address: Arc<str> = address.into();
        let connector = tower::service_fn(move |_uri: http::Uri| {
            let (tls, name, address) = (tls.clone(), name.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        Endpoint::from_static("http://replica.tollway.internal") // TLS is the connector's; the name only fills `:authority`
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }
}
