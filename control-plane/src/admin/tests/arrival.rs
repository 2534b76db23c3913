//! The answer with a new key and the nodes that are to take it.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tollway_proto::admin::cluster::NodeConnection;
use tollway_proto::admin::text::Text;
use tollway_shared::time::UnixMillis;

use super::super::FleetView;
use super::*;

/// One node: the revision it is at, and how much further it is at every look.
struct Climbing {
    at: AtomicU64,
    step: AtomicU64,
}

impl Fleet for Climbing {
    fn view(&self) -> BoxFuture<'_, FleetView> {
        let connection = NodeConnection {
            node: "n".into(),
            region: "eu".into(),
            replica: 1,
            version: "1".into(),
            revision: self
                .at
                .fetch_add(self.step.load(Ordering::SeqCst), Ordering::SeqCst),
            lag: 0,
            connected_at: Text(UnixMillis(0)),
            last_ack_at: None,
            last_refusal: None,
        };
        let view = FleetView {
            connections: vec![connection],
            ..FleetView::default()
        };
        async { view }.boxed()
    }
}

#[tokio::test]
async fn a_new_key_is_answered_once_the_nodes_know_it_or_says_that_they_do_not() {
    let looks = Arc::new(Climbing {
        at: AtomicU64::new(0),
        step: AtomicU64::new(1),
    });
    let world = World::with(looks.clone()).await;
    for (path, body) in nouns() {
        world.put(path, body).await;
    }
    let create = || world.call("POST", "keys", Some(json!({"project": "j"})));
    let made = create().await;
    assert_eq!(
        (made.status, &made.headers["x-tollway-nodes"]),
        (201, &"current".parse().unwrap())
    );
    let revision: u64 = made.headers["x-tollway-revision"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        looks.at.load(Ordering::SeqCst),
        revision + 1,
        "as long as the node was behind and no longer"
    );

    looks.at.store(0, Ordering::SeqCst);
    looks.step.store(0, Ordering::SeqCst);
    let made = create().await;
    assert_eq!(
        (made.status, &made.headers["x-tollway-nodes"]),
        (201, &"behind".parse().unwrap())
    );
}
