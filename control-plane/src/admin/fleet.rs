//! Which nodes are connected, to any replica. Filled by `publish`; a replica that serves no nodes knows none.

use futures::future::BoxFuture;
use tollway_proto::admin::cluster::NodeConnection;

/// The connections of nodes to all replicas that answered.
#[derive(Debug, Clone, Default)]
pub struct FleetView {
    /// The connections.
    pub connections: Vec<NodeConnection>,
    /// Replicas that did not answer in time.
    pub unanswered: Vec<u64>,
}

/// Knows the connected nodes.
pub trait Fleet: Send + Sync + 'static {
    /// The connections now. Bounded in time.
    fn view(&self) -> BoxFuture<'_, FleetView>;
}

/// No nodes.
#[derive(Debug, Clone, Copy)]
pub struct NoFleet;

impl Fleet for NoFleet {
    fn view(&self) -> BoxFuture<'_, FleetView> {
        Box::pin(async { FleetView::default() })
    }
}
