//! A replica that can be cut off from the others while its nodes still reach it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tollway_control::identity::authority::LEAF_LIFE;
use tollway_control::identity::{LiveCertificate, Material, PeerIdentity, accept, material, tls};
use tollway_control::publish::{Publisher, Source};
use tollway_control::raft::{Cluster, ProposeFault};
use tollway_control::state::State;
use tollway_data::clock;
use tollway_proto::command::Outcome;
use tollway_proto::lease::LeaseCall;
use tollway_shared::ids::{ClusterId, NodeId, ReplicaId, Revision};
use tollway_shared::lease::message::Effect;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::ResourceKey;

use super::{CLUSTER, Control, ROOT};

/// What a follower applies: everything, until it is cut off.
struct Follower {
    cluster: Cluster,
    states: watch::Sender<Arc<State>>,
    cut: Arc<AtomicBool>,
}

impl Source for Follower {
    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.states.subscribe()
    }

    fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
        self.cluster.changes_since(revision)
    }

    fn confirm(&self) -> BoxFuture<'_, bool> {
        let reached = self.cluster.barrier();
        reached
            .map(|reached| reached.is_ok() && !self.cut.load(Ordering::SeqCst))
            .boxed()
    }

    fn lease(&self, node: NodeId, call: LeaseCall) -> BoxFuture<'_, Result<Outcome, ProposeFault>> {
        Source::lease(&self.cluster, node, call)
    }

    fn effects(&self) -> broadcast::Receiver<Effect> {
        self.cluster.effects()
    }
}

/// Another replica of the cluster of `control`, as nodes see it.
pub(crate) struct Other {
    pub(crate) publisher: Publisher,
    pub(crate) peer_address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Other {
    pub(crate) async fn start(control: &Control) -> Self {
        let cluster = control.cluster.clone();
        let cut = Arc::new(AtomicBool::new(false));
        let mut applied = cluster.watch();
        let states = watch::Sender::new(applied.borrow_and_update().clone());
        let follower = Follower {
            cluster,
            states: states.clone(),
            cut: cut.clone(),
        };
        let (stop, is_cut) = (control.stop.clone(), cut.clone());
        tokio::spawn(async move {
            while applied.changed().await.is_ok() && !is_cut.load(Ordering::SeqCst) {
                states.send_replace(applied.borrow_and_update().clone());
            }
        });
        let publisher = Publisher::start(Arc::new(follower), Key::new(ROOT), clock::now, stop.clone());
        let (key_pem, request) = material::request().unwrap();
        let replica = PeerIdentity::Replica(ReplicaId(2));
        let authority_pem = control.authority.certificate_pem().to_owned();
        let issued = control
            .authority
            .issue(&request, &replica, &[], clock::now(), LEAF_LIFE);
        let own = Material {
            certificate_pem: issued.unwrap(),
            key_pem,
            authority_pem,
        };
        let tls = tls::peer_server(LiveCertificate::new(&own).unwrap(), &own.authority_pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_address = listener.local_addr().unwrap();
        let incoming = accept::incoming(listener, tls, ClusterId::trusted(CLUSTER), stop.clone());
        let server = tonic::transport::Server::builder().add_service(publisher.service(LEAF_LIFE));
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }));
        Self {
            publisher,
            peer_address,
            cut,
        }
    }

    /// From here on it hears nothing of the others, and says so to nobody.
    pub(crate) fn cut_off(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}
