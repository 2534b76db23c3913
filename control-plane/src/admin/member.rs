//! The members of the cluster: nodes and replicas.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use serde::Serialize;
use tollway_proto::admin::Removed;
use tollway_proto::admin::cluster::{Cluster, LeaderTransfer, Node, NodeConnection, Nodes, Replica};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::command::{self, Command, Member};
use tollway_shared::ids::{NodeId, ReplicaId, Revision};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exchange::{Answer, Read, Write, path_id};
use super::fault::Fault;
use super::{Api, Nothing, noun};
use crate::raft::{ClusterStatus, MemberStatus, MembersFault};

/// How long a handler waits for a change of members. It goes on in the background.
const CHANGE_ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How long a handler waits for another replica to lead.
const TRANSFER_WITHIN: Duration = Duration::from_secs(4);

/// Lists registered nodes, with what the replicas that serve them know.
#[utoipa::path(get, path = "/nodes", tag = "nodes",
    responses((status = 200, body = Nodes)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_nodes(Shared(api): Shared<Arc<Api>>, mut read: Read) -> Result<Answer<Nodes>, Fault> {
    let window = read.params.take_window()?;
    let seen = read.seen(&api).await?;
    let view = api.fleet.view().await;
    let (data, next) = noun::page(
        &seen.state.nodes,
        &window,
        |_| true,
        |_, record| node(record, &view.connections),
    )?;
    let body = Nodes {
        data,
        next,
        unanswered: view.unanswered,
        revision: seen.state.revision.0,
    };
    Ok(seen.answer(body))
}

/// Reads one node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = Node)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_node(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<Node>, Fault> {
    let id: NodeId = path_id("id", &id)?;
    let seen = read.seen(&api).await?;
    let record = seen
        .state
        .nodes
        .get(&id)
        .ok_or_else(|| Fault::not_found("node", &id))?;
    let view = api.fleet.view().await;
    Ok(seen.answer(node(record, &view.connections)))
}

fn node(record: &command::NodeRecord, connections: &[NodeConnection]) -> Node {
    // A node that moved may still look connected to the replica it left: the newest connection counts.
    let connection = connections
        .iter()
        .filter(|one| one.node == record.id.as_str())
        .max_by_key(|one| one.connected_at.0)
        .cloned();
    Node {
        id: Text(record.id.clone()),
        region: Text(record.region.clone()),
        joined_at: Text(record.joined_at),
        revision: connection.as_ref().map(|one| one.revision),
        connection,
    }
}

/// Forgets a node: its certificate is refused from then on.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = Removed)), security(("admin_key" = ["owner", "operator"])))]
async fn delete_node(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Removed>, Fault> {
    let id: NodeId = path_id("id", &id)?;
    noun::removed(&api, write.head, id.to_string(), Command::RemoveNode(id)).await
}

/// The cluster as this replica sees it. Answers without a majority when asked with `consistency=stale`.
#[utoipa::path(get, path = "/cluster", tag = "cluster",
    responses((status = 200, body = Cluster)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_cluster(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Cluster>, Fault> {
    let seen = read.seen(&api).await?;
    let ClusterStatus {
        cluster,
        replica,
        leader,
        term,
        last_log,
        applied: _,
        members,
    } = api.cluster.status();
    let body = Cluster {
        cluster: Text(cluster),
        replica: replica.0,
        leader: leader.map(|id| id.0),
        term,
        last_log,
        applied: seen.state.applied,
        revision: seen.state.revision.0,
        version: seen.state.version,
        binary: env!("CARGO_PKG_VERSION").to_owned(),
        members: replicas(members),
    };
    Ok(seen.answer(body))
}

/// Members as they are shown.
pub(crate) fn replicas(members: Vec<MemberStatus>) -> Vec<Replica> {
    let shown = |member: MemberStatus| Replica {
        id: member.id.0,
        peer_address: member.peer_address,
        admin_url: member.admin_url,
        voter: member.voter,
        matched: member.matched,
    };
    members.into_iter().map(shown).collect()
}

/// Gives a member that has caught up a vote. Replicas do this for themselves when they start; this is for one that could not.
#[utoipa::path(post, path = "/cluster/replicas/{id}/promote", tag = "cluster", params(("id" = u64, Path)),
    request_body = Nothing, responses((status = 200, body = Changed)), security(("admin_key" = ["owner", "operator"])))]
async fn promote_replica(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Changed>, Fault> {
    let id = replica_id(&id)?;
    let members = api.cluster.status().members;
    let member = members
        .into_iter()
        .find(|member| member.id == id)
        .ok_or_else(|| Fault::not_found("replica", id))?;
    let member = Member {
        peer_address: member.peer_address,
        admin_url: member.admin_url,
    };
    api.write(write.head, Command::PromoteReplica(id)).await?;
    let cluster = api.cluster.clone();
    changed(&api, id, async move { cluster.add_replica(id, member).await }).await
}

/// Removes a replica for good. Its id is not used again.
#[utoipa::path(delete, path = "/cluster/replicas/{id}", tag = "cluster", params(("id" = u64, Path)),
    responses((status = 200, body = Changed)), security(("admin_key" = ["owner", "operator"])))]
async fn delete_replica(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Changed>, Fault> {
    let id = replica_id(&id)?;
    let (status, state) = (api.cluster.status(), api.cluster.state());
    let mut voters = status.members.iter().filter(|member| member.voter);
    if voters.next().is_some_and(|one| one.id == id) && voters.next().is_none() {
        return Err(MembersFault::LastVoter(id.0).into());
    }
    let is_member = status.members.iter().any(|member| member.id == id);
    if !is_member && state.removed_replicas.contains(&id) {
        return Err(Fault::not_found("replica", id));
    }
    // First the mark, then the members: whoever dies in between is asked again and finds a member.
    let receipt = api.write(write.head, Command::RemoveReplica(id)).await?;
    if !is_member {
        return Ok(Answer::of(receipt.revision, Changed::at(id, receipt.revision)));
    }
    let cluster = api.cluster.clone();
    changed(&api, id, async move { cluster.remove_replica(id).await }).await
}

/// The answer to a change of members.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Changed {
    /// The replica.
    id: u64,
    /// The newest revision.
    revision: u64,
}

impl Changed {
    fn at(id: ReplicaId, revision: Revision) -> Self {
        Self {
            id: id.0,
            revision: revision.0,
        }
    }
}

fn replica_id(text: &str) -> Result<ReplicaId, Fault> {
    let wrong = |_| {
        Fault::at(
            ProblemCode::Invalid,
            "id",
            format!("the id in the path: `{text}` is not a replica's number"),
        )
    };
    text.parse().map(ReplicaId).map_err(wrong)
}

/// Waits for a change of members for a while; it is not taken back when the caller has to be answered before.
async fn changed(
    api: &Api,
    id: ReplicaId,
    change: impl Future<Output = Result<(), MembersFault>> + Send + 'static,
) -> Result<Answer<Changed>, Fault> {
    let change = tokio::spawn(change);
    match tokio::time::timeout(CHANGE_ANSWERED_WITHIN, change).await {
        Ok(Ok(done)) => done?,
        Ok(Err(_)) => {
            return Err(Fault::new(
                ProblemCode::Internal,
                "the change of members ended early",
            ));
        }
        Err(_) => {
            let detail = "the change is still under way; look at `GET /admin/v1/cluster`";
            return Err(Fault::new(ProblemCode::Timeout, detail));
        }
    }
    let revision = api.cluster.state().revision;
    Ok(Answer::of(revision, Changed::at(id, revision)))
}

/// Hands leadership to another replica; the answer names it. Any replica may be asked.
#[utoipa::path(post, path = "/cluster/transfer", tag = "cluster", request_body = LeaderTransfer,
    responses((status = 200, body = Changed)), security(("admin_key" = ["owner", "operator"])))]
async fn transfer(
    Shared(api): Shared<Arc<Api>>,
    write: Write<LeaderTransfer>,
) -> Result<Answer<Changed>, Fault> {
    let LeaderTransfer {} = write.body;
    let (from, _) = api.cluster.known_leader().ok_or(MembersFault::NoLeader)?;
    let receipt = api.write(write.head, Command::TransferLeader(from)).await?;
    let leader = if receipt.replayed.is_some() {
        // Handed over when it was asked for the first time; once more would move it on.
        api.cluster.known_leader().ok_or(MembersFault::NoLeader)?.0
    } else {
        let handed = tokio::time::timeout(TRANSFER_WITHIN, api.cluster.hand_over()).await;
        handed.map_err(|_| {
            Fault::new(
                ProblemCode::Timeout,
                "no other replica took over in time; look at the cluster's status",
            )
        })??
    };
    let revision = api.cluster.state().revision;
    Ok(Answer::of(revision, Changed::at(leader, revision)))
}

/// The routes of members.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(get_node, delete_node))
        .routes(routes!(get_cluster))
        .routes(routes!(promote_replica))
        .routes(routes!(delete_replica))
        .routes(routes!(transfer))
}
