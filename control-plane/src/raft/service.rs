//! The gRPC service `tollway.peer.v1.Peer`: checks whom a message is meant for and who sent it, then hands it on.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tollway_proto::codec::PAYLOAD_BYTES_MAX;
use tollway_proto::peer::MESSAGE_BYTES_MAX;
use tollway_proto::peer::v1::peer_server::{Peer, PeerServer};
use tollway_proto::peer::v1::{Blob, Empty, RenewReply, RenewRequest};
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::Cluster;
use super::message::{Ask, Call};

/// What the peer port serves besides consensus, and who may call it.
#[tonic::async_trait]
pub trait PeerExtras: Send + Sync + 'static {
    /// Refuses callers that are not replicas of this cluster. `extensions` hold the connection's certificates.
    fn authorize(&self, extensions: &Extensions) -> Result<(), Status>;

    /// The nodes that are connected to this replica, in the stored form that its asker decodes.
    async fn fleet(&self) -> Result<Bytes, Status>;

    /// Signs a certificate request for the identity of the caller's current certificate.
    async fn renew(&self, request: Request<RenewRequest>) -> Result<RenewReply, Status>;
}

/// No extras, and every caller is let in: only for tests on loopback.
#[derive(Debug, Clone, Copy)]
pub struct NoExtras;

#[tonic::async_trait]
impl PeerExtras for NoExtras {
    fn authorize(&self, _extensions: &Extensions) -> Result<(), Status> {
        Ok(())
    }

    async fn fleet(&self) -> Result<Bytes, Status> {
        Err(Status::unimplemented("this replica serves no nodes"))
    }

    async fn renew(&self, _request: Request<RenewRequest>) -> Result<RenewReply, Status> {
        Err(Status::unimplemented("this replica signs no certificates"))
    }
}

/// The service of one replica.
#[derive(Clone)]
pub struct PeerService {
    cluster: Cluster,
    extras: Arc<dyn PeerExtras>,
}

impl Cluster {
    /// The service to serve on the peer port. Set TCP_NODELAY on accepted connections: without it every small answer waits for
    /// the caller's delayed ACK, 40 ms per write.
    pub fn service(&self, extras: Arc<dyn PeerExtras>) -> PeerServer<PeerService> {
        let service = PeerService {
            cluster: self.clone(),
            extras,
        };
        PeerServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl PeerService {
    /// Refuses a message that was meant for another cluster or replica: an address may have changed hands.
    fn check(&self, blob: &Blob) -> Result<(), Status> {
        let (cluster, id) = (self.cluster.cluster_id().as_str(), self.cluster.id());
        if blob.cluster != cluster {
            let text = format!("this is cluster `{cluster}`, not `{}`", blob.cluster);
            Err(Status::failed_precondition(text))
        } else if blob.target != id.0 {
            let text = format!("this is replica {id}, not {}", blob.target);
            Err(Status::failed_precondition(text))
        } else {
            Ok(())
        }
    }

    fn call(&self, blob: &Blob) -> Result<Call, Status> {
        self.check(blob)?;
        Call::decode(&blob.data).map_err(|e| Status::invalid_argument(e.to_string()))
    }

    async fn answer(
        &self,
        request: Request<Blob>,
        expected: fn(&Ask) -> bool,
    ) -> Result<Response<Blob>, Status> {
        self.extras.authorize(request.extensions())?;
        let call = self.call(request.get_ref())?;
        if !expected(&call.0) {
            return Err(Status::invalid_argument(format!(
                "a `{call}` message in another call"
            )));
        }
        let reply = self.cluster.serve(call).await;
        Ok(self.blob(reply.encode()))
    }

    fn blob(&self, data: Bytes) -> Response<Blob> {
        Response::new(Blob {
            cluster: self.cluster.cluster_id().to_string(),
            target: self.cluster.id().0,
            data,
        })
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn append_entries(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::Append { .. }))
            .await
    }

    async fn vote(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::Vote(_))).await
    }

    async fn pre_vote(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::PreVote(_))).await
    }

    async fn transfer_leader(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::Transfer { .. }))
            .await
    }

    async fn install_checkpoint(&self, request: Request<Streaming<Blob>>) -> Result<Response<Blob>, Status> {
        self.extras.authorize(request.extensions())?;
        let mut stream = request.into_inner();
        let head = stream.message().await?;
        let head = head.ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        let call = self.call(&head)?;
        let Ask::Install { bytes, .. } = &call.0 else {
            return Err(Status::invalid_argument(
                "a stream that does not start with an install call",
            ));
        };
        let expected = usize::try_from(*bytes).unwrap_or(usize::MAX);
        if expected > PAYLOAD_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "a checkpoint of {bytes} bytes"
            )));
        }
        let mut checkpoint = BytesMut::new();
        while let Some(chunk) = stream.message().await? {
            self.check(&chunk)?;
            if checkpoint.len() + chunk.data.len() > expected {
                return Err(Status::invalid_argument("the checkpoint is longer than was said"));
            }
            checkpoint.extend_from_slice(&chunk.data);
        }
        let reply = self.cluster.serve_install(call, checkpoint.freeze()).await;
        Ok(self.blob(reply.encode()))
    }

    async fn propose(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::Propose { .. }))
            .await
    }

    async fn read_index(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::ReadIndex)).await
    }

    async fn fleet(&self, request: Request<Empty>) -> Result<Response<Blob>, Status> {
        self.extras.authorize(request.extensions())?;
        Ok(self.blob(self.extras.fleet().await?))
    }

    async fn members(&self, request: Request<Blob>) -> Result<Response<Blob>, Status> {
        self.answer(request, |ask| matches!(ask, Ask::Members(_))).await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        self.extras.authorize(request.extensions())?;
        Ok(Response::new(self.extras.renew(request).await?))
    }
}
