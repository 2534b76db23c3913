//! The peer listener: replicas' messages and nodes' streams, over mutual TLS.

use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tollway_proto::peer::v1::{RenewReply, RenewRequest};
use tollway_shared::ids::ClusterId;
use tonic::{Extensions, Request, Status};

use crate::identity::authority::LEAF_LIFE;
use crate::identity::{PeerIdentity, accept};
use crate::publish::{Publisher, fleet};
use crate::raft::{Cluster, PeerExtras};
use crate::reading::Reading;

/// What the peer port serves besides consensus.
struct Extras {
    cluster: Cluster,
    publisher: Publisher,
}

#[tonic::async_trait]
impl PeerExtras for Extras {
    fn authorize(&self, extensions: &Extensions) -> Result<(), Status> {
        match extensions.get::<PeerIdentity>() {
            Some(PeerIdentity::Replica(id)) if self.cluster.lets_in(*id) => Ok(()),
            Some(PeerIdentity::Replica(id)) => Err(Status::permission_denied(format!(
                "replica {id} was removed from this cluster"
            ))),
            Some(PeerIdentity::Node { .. }) => Err(Status::permission_denied("only replicas may call this")),
            None => Err(Status::unauthenticated("the connection has no identity")),
        }
    }

    async fn fleet(&self) -> Result<Bytes, Status> {
        Ok(fleet::encode(self.publisher.nodes()).into())
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<RenewReply, Status> {
        Err(Status::unimplemented(
            "replicas hold the authority's key and renew for themselves",
        ))
    }
}

/// Serves until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    id: ClusterId,
    cluster: Cluster,
    publisher: Publisher,
    reading: Reading,
    stop: CancellationToken,
) {
    let incoming = accept::incoming(listener, tls, id, stop.clone());
    let extras = Extras {
        cluster: cluster.clone(),
        publisher: publisher.clone(),
    };
    let served = tonic::transport::Server::builder()
        .add_service(cluster.service(Arc::new(extras)))
        .add_service(publisher.service(LEAF_LIFE))
        .add_service(reading.service(publisher))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    if let Err(fault) = served {
        tracing::error!(%fault, "the peer port ended");
    }
}
