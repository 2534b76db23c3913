//! Who runs what: the nodes that are connected to this replica.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, CodecFault, Kind};
use tollway_shared::ids::{NodeId, Region, Revision};
use tollway_shared::time::UnixMillis;

/// Longest refusal that is kept, in bytes.
const REFUSAL_BYTES_MAX: usize = 500;

/// A connected node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetNode {
    /// The node.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// The version of its binary.
    pub version: String,
    /// The revision it runs on.
    pub revision: Revision,
    /// How many revisions it is behind this replica.
    pub lag: u64,
    /// Since when it is connected.
    pub connected_at: UnixMillis,
    /// When it last acknowledged a revision.
    pub last_ack_at: Option<UnixMillis>,
    /// Why it last refused one.
    pub last_refusal: Option<String>,
}

/// The fleet in the stored form, for other replicas.
#[derive(Serialize, Deserialize)]
enum StoredFleet {
    V1(Vec<FleetNode>),
}

/// The nodes of this replica. One connection counts per node: the newest.
#[derive(Debug, Default)]
pub struct Fleet {
    nodes: Mutex<BTreeMap<NodeId, (u64, FleetNode)>>,
}

impl Fleet {
    /// A node connected; `session` tells its connections apart.
    pub fn connected(&self, session: u64, node: FleetNode) {
        self.lock().insert(node.node.clone(), (session, node));
    }

    /// Something about a connected node changed.
    pub fn update(&self, session: u64, node: &NodeId, edit: impl FnOnce(&mut FleetNode)) {
        if let Some((current, entry)) = self.lock().get_mut(node)
            && *current == session
        {
            edit(entry);
        }
    }

    /// A connection ended.
    pub fn disconnected(&self, session: u64, node: &NodeId) {
        let mut nodes = self.lock();
        if nodes.get(node).is_some_and(|(current, _)| *current == session) {
            nodes.remove(node);
        }
    }

    /// Every connected node, by id; `newest` is this replica's revision.
    pub fn nodes(&self, newest: Revision) -> Vec<FleetNode> {
        self.lock()
            .values()
            .map(|(_, node)| FleetNode {
                lag: newest.0.saturating_sub(node.revision.0),
                ..node.clone()
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, (u64, FleetNode)>> {
        self.nodes
            .lock()
            .expect("no code panics while it holds the fleet")
    }
}

/// A refusal, short enough to keep.
pub(super) fn refusal(nack: &tollway_proto::push::v1::Nack) -> String {
    let mut text = format!("revision {}: ", nack.rejected_revision);
    for (place, reason) in nack.reasons.iter().enumerate() {
        let separator = if place == 0 { "" } else { "; " };
        text.push_str(separator);
        if !reason.kind.is_empty() {
            text.push_str(&format!("{} `{}`: ", reason.kind, reason.id));
        }
        text.push_str(&reason.text);
        if text.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    let end = (0..=REFUSAL_BYTES_MAX.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

/// The fleet for another replica.
pub fn encode(nodes: Vec<FleetNode>) -> Vec<u8> {
    codec::encode(Kind::Peer, &StoredFleet::V1(nodes))
}

/// Reads another replica's fleet.
pub fn decode(bytes: &[u8]) -> Result<Vec<FleetNode>, CodecFault> {
    let StoredFleet::V1(nodes) = codec::decode(Kind::Peer, bytes)?;
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(revision: u64) -> FleetNode {
        FleetNode {
            node: NodeId::trusted("n1"),
            region: Region::trusted("eu"),
            version: "1".into(),
            revision: Revision(revision),
            lag: 0,
            connected_at: UnixMillis(1),
            last_ack_at: None,
            last_refusal: None,
        }
    }

    #[test]
    fn the_newest_connection_of_a_node_counts() {
        let fleet = Fleet::default();
        let id = NodeId::trusted("n1");
        fleet.connected(1, node(5));
        fleet.connected(2, node(6));
        fleet.update(1, &id, |node| node.revision = Revision(1));
        fleet.disconnected(1, &id);
        let seen = fleet.nodes(Revision(8));
        assert_eq!((seen[0].revision, seen[0].lag), (Revision(6), 2));
        assert_eq!(decode(&encode(seen.clone())).unwrap(), seen);
        fleet.disconnected(2, &id);
        assert!(fleet.nodes(Revision(8)).is_empty());
    }

    #[test]
    fn a_long_refusal_is_cut_between_characters() {
        use tollway_proto::push::v1::{Nack, Reason};
        let reason = |text: &str| Reason {
            kind: "price".into(),
            id: "p1".into(),
            text: text.into(),
        };
        let nack = |text: &str| Nack {
            rejected_revision: 7,
            reasons: vec![reason(text), reason("b")],
            ..Nack::default()
        };
        assert_eq!(refusal(&nack("a")), "revision 7: price `p1`: a; price `p1`: b");
        let cut = refusal(&nack(&"é".repeat(1000)));
        assert!(cut.len() <= REFUSAL_BYTES_MAX && cut.len() > REFUSAL_BYTES_MAX - 4);
    }
}
