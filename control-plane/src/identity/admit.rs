//! Which identity may call which service: replicas the Peer service, registered nodes the Push service.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::PeerIdentity;
use crate::state::State;

/// Lets replicas through.
#[derive(Debug, Clone, Copy)]
pub struct OnlyReplicas;

impl Interceptor for OnlyReplicas {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match peer(&request)? {
            PeerIdentity::Replica(_) => Ok(request),
            PeerIdentity::Node { .. } => Err(Status::permission_denied("only replicas may call this")),
        }
    }
}

/// Lets nodes through that are registered in the newest applied state.
#[derive(Debug, Clone)]
pub struct OnlyNodes(watch::Receiver<Arc<State>>);

impl OnlyNodes {
    /// Looks nodes up in what `state` shows.
    pub fn new(state: watch::Receiver<Arc<State>>) -> Self {
        Self(state)
    }
}

impl Interceptor for OnlyNodes {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = peer(&request)?;
        if is_registered(&self.0.borrow(), peer) {
            Ok(request)
        } else {
            Err(Status::permission_denied(
                "only registered nodes may call this; join again",
            ))
        }
    }
}

/// Whether a peer is a node that is registered, in the region its certificate names.
pub fn is_registered(state: &State, peer: &PeerIdentity) -> bool {
    match peer {
        PeerIdentity::Replica(_) => false,
        PeerIdentity::Node { region, id } => state.nodes.get(id).is_some_and(|node| node.region == *region),
    }
}

/// Who is calling.
pub fn peer<T>(request: &Request<T>) -> Result<&PeerIdentity, Status> {
    request
        .extensions()
        .get::<PeerIdentity>()
        .ok_or_else(|| Status::unauthenticated("the connection has no identity"))
}
