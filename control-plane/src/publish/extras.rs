//! What the peer port serves to other replicas besides consensus: who is connected here, and certificates.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tollway_proto::admin::cluster::NodeConnection;
use tollway_proto::admin::text::Text;
use tollway_proto::peer::v1::peer_client::PeerClient;
use tollway_proto::peer::v1::{Empty, RenewReply, RenewRequest};
use tollway_shared::ids::ReplicaId;
use tonic::transport::Channel;
use tonic::{Extensions, Request, Status};

use super::Publisher;
use super::fleet::{self, FleetNode};
use crate::admin::{Fleet, FleetView};
use crate::identity::authority::host_of;
use crate::identity::{Authority, IdentityFault, PeerIdentity};
use crate::raft::{Cluster, PeerConnector, PeerExtras};

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

/// Who is connected to any replica, for the admin API.
pub struct ClusterFleet {
    /// This replica.
    pub cluster: Cluster,
    /// Who is connected to it.
    pub publisher: Publisher,
    /// Reaches the others.
    pub connector: Arc<dyn PeerConnector>,
}

impl Fleet for ClusterFleet {
    fn view(&self) -> BoxFuture<'_, FleetView> {
        Box::pin(async {
            let own = self.cluster.id();
            let members = self.cluster.status().members;
            let others = members.iter().filter(|member| member.id != own).map(|member| {
                let channel = self.connector.channel(member.id, &member.peer_address);
                async move { (member.id, fleet_of(channel).await) }
            });
            let mut view = FleetView::default();
            let mut add = |replica: ReplicaId, nodes: Vec<FleetNode>| {
                let connections = nodes.into_iter().map(|node| connection(replica, node));
                view.connections.extend(connections);
            };
            add(own, self.publisher.nodes());
            let mut unanswered = Vec::new();
            for (replica, answer) in futures::future::join_all(others).await {
                match answer {
                    Ok(nodes) => add(replica, nodes),
                    Err(_) => unanswered.push(replica.0),
                }
            }
            view.unanswered = unanswered;
            view
        })
    }
}

fn connection(replica: ReplicaId, node: FleetNode) -> NodeConnection {
    NodeConnection {
        node: node.node.to_string(),
        region: node.region.to_string(),
        replica: replica.0,
        version: node.version,
        revision: node.revision.0,
        lag: node.lag,
        connected_at: Text(node.connected_at),
        last_ack_at: node.last_ack_at.map(Text),
        last_refusal: node.last_refusal,
    }
}

/// Who is connected to another replica.
async fn fleet_of(channel: Channel) -> Result<Vec<FleetNode>, Status> {
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
