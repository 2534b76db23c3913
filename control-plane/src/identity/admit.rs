//! Which identity may call which service: replicas the Peer service, nodes the Push service.

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

/// Lets nodes through. Whether one is registered is asked by the service, which can wait for an answer that holds.
#[derive(Debug, Clone, Copy)]
pub struct OnlyNodes;

impl Interceptor for OnlyNodes {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match peer(&request)? {
            PeerIdentity::Node { .. } => Ok(request),
            PeerIdentity::Replica(_) => Err(Status::permission_denied("only nodes may call this")),
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
