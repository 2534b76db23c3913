//! What the peer port serves to other replicas besides consensus: who is connected here, and certificates.

use std::time::Duration;

use bytes::Bytes;
use tollway_proto::peer::v1::peer_client::PeerClient;
use tollway_proto::peer::v1::{Empty, RenewReply, RenewRequest};
use tollway_shared::ids::ReplicaId;
use tonic::transport::Channel;
use tonic::{Extensions, Request, Status};

use super::Publisher;
use super::fleet::{self, FleetNode};
use crate::identity::authority::host_of;
use crate::identity::{Authority, IdentityFault, PeerIdentity};
use crate::raft::{Cluster, PeerExtras};

/// Another replica has this long to say who is connected to it.
const FLEET_WITHIN: Duration = Duration::from_secs(2);

/// Serves other replicas; nodes are refused.
pub struct Extras {
    /// This replica.
    pub cluster: Cluster,
    /// Who is connected to it.
    pub publisher: Publisher,
    /// How long certificates last.
    pub leaf_life: Duration,
}

#[tonic::async_trait]
impl PeerExtras for Extras {
    fn authorize(&self, extensions: &Extensions) -> Result<(), Status> {
        caller(extensions).map(drop)
    }

    async fn fleet(&self) -> Result<Bytes, Status> {
        Ok(fleet::encode(self.publisher.nodes()).into())
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<RenewReply, Status> {
        let id = caller(request.extensions())?;
        issue(
            &self.cluster,
            &self.publisher,
            id,
            &request.get_ref().request_pem,
            self.leaf_life,
        )
        .map_err(|fault| Status::invalid_argument(fault.to_string()))
    }
}

/// A certificate for a member, under the addresses that the membership has for it. Every replica holds the sealing key, so a
/// replica renews its own without asking another.
pub fn issue(
    cluster: &Cluster,
    publisher: &Publisher,
    id: ReplicaId,
    request_pem: &str,
    leaf_life: Duration,
) -> Result<RenewReply, IdentityFault> {
    let status = cluster.status();
    let member = status.members.iter().find(|member| member.id == id);
    let member =
        member.ok_or_else(|| IdentityFault::Bad(format!("replica {id} is not a member of this cluster")))?;
    let hosts: Vec<String> = [&member.peer_address, &member.admin_url]
        .into_iter()
        .map(|address| host_of(address))
        .filter(|host| !host.is_empty())
        .collect();
    let inner = &publisher.0;
    let authority = Authority::of_state(&cluster.state(), &inner.sealing_key)?;
    let identity = PeerIdentity::Replica(id);
    Ok(RenewReply {
        certificate_pem: authority.issue(request_pem, &identity, &hosts, (inner.now)(), leaf_life)?,
        authority_pem: authority.certificate_pem().to_owned(),
    })
}

/// Who is connected to another replica.
pub async fn fleet_of(channel: Channel) -> Result<Vec<FleetNode>, Status> {
    let asking = async move { PeerClient::new(channel).fleet(Empty {}).await };
    let blob = tokio::time::timeout(FLEET_WITHIN, asking)
        .await
        .map_err(|_| Status::deadline_exceeded("the replica did not say in time"))??;
    fleet::decode(&blob.get_ref().data).map_err(|fault| Status::internal(fault.to_string()))
}

fn caller(extensions: &Extensions) -> Result<ReplicaId, Status> {
    match extensions.get::<PeerIdentity>() {
        Some(PeerIdentity::Replica(id)) => Ok(*id),
        Some(PeerIdentity::Node { .. }) => Err(Status::permission_denied("only replicas may call this")),
        None => Err(Status::unauthenticated("the connection has no identity")),
    }
}
