//! The nodes of every replica: this one's own, and what the others answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tollway_proto::admin::cluster::NodeConnection;
use tollway_proto::admin::text::Text;
use tollway_proto::peer::MESSAGE_BYTES_MAX;
use tollway_proto::peer::v1::Empty;
use tollway_proto::peer::v1::peer_client::PeerClient;
use tollway_shared::ids::ReplicaId;
use tonic::transport::Channel;

use crate::admin::{Fleet, FleetView};
use crate::publish::Publisher;
use crate::publish::fleet::{FleetNode, decode};
use crate::raft::{Cluster, PeerConnector};

/// How long another replica may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

/// Asks every replica for its nodes.
pub(super) struct AllReplicas {
    pub(super) cluster: Cluster,
    pub(super) publisher: Publisher,
    pub(super) connector: Arc<dyn PeerConnector>,
    /// Kept, so that asking costs no handshake.
    pub(super) channels: Mutex<BTreeMap<(ReplicaId, String), Channel>>,
}

impl AllReplicas {
    fn channel(&self, id: ReplicaId, address: &str) -> Channel {
        let mut channels = self
            .channels
            .lock()
            .expect("no code panics while it holds the channels");
        let entry = channels.entry((id, address.to_owned()));
        entry
            .or_insert_with(|| self.connector.channel(id, address))
            .clone()
    }

    async fn ask(&self, id: ReplicaId, address: &str) -> Option<Vec<FleetNode>> {
        let mut client =
            PeerClient::new(self.channel(id, address)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = tokio::time::timeout(ANSWER_WITHIN, client.fleet(Empty {}))
            .await
            .ok()?;
        decode(&answer.ok()?.into_inner().data).ok()
    }
}

impl Fleet for AllReplicas {
    fn view(&self) -> BoxFuture<'_, FleetView> {
        async move {
            let own = self.cluster.id();
            let others = self
                .cluster
                .status()
                .members
                .into_iter()
                .filter(|member| member.id != own);
            let asked = others
                .map(|member| async move { (member.id, self.ask(member.id, &member.peer_address).await) });
            let mut view = FleetView::default();
            let shown = |replica| move |node| connection(replica, node);
            view.connections
                .extend(self.publisher.nodes().into_iter().map(shown(own)));
            for (id, nodes) in join_all(asked).await {
                match nodes {
                    Some(nodes) => view.connections.extend(nodes.into_iter().map(shown(id))),
                    None => view.unanswered.push(id.0),
                }
            }
            view
        }
        .boxed()
    }
}

fn connection(replica: ReplicaId, node: FleetNode) -> NodeConnection {
    let FleetNode {
        node,
        region,
        version,
        revision,
        lag,
        connected_at,
        last_ack_at,
        last_refusal,
    } = node;
    NodeConnection {
        node: node.to_string(),
        region: region.to_string(),
        replica: replica.0,
        version,
        revision: revision.0,
        lag,
        connected_at: Text(connected_at),
        last_ack_at: last_ack_at.map(Text),
        last_refusal,
    }
}
