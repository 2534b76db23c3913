//! Replicas in one process over plain gRPC on loopback: what the tests beside this file share.

mod disks;
mod members;
mod partition;
mod writes;

use std::net::SocketAddr;
use std::path::Path;

use futures::TryStreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tollway_proto::command::{Command, Member, Outcome};
use tollway_shared::ids::OrganizationId;
use tollway_shared::tenant::Organization;
use tonic::transport::{Channel, Endpoint};

use super::*;

struct PlainTcp;

impl PeerConnector for PlainTcp {
    fn channel(&self, _id: ReplicaId, address: &str) -> Channel {
        Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_timeout(Duration::from_millis(500))
            .connect_lazy()
    }
}

/// One replica and its peer port.
struct Replica {
    cluster: Cluster,
    address: SocketAddr,
    served: CancellationToken,
}

fn timings() -> Timings {
    Timings {
        heartbeat_ms: 50,
        election_timeout_ms: 300,
        ..Timings::default()
    }
}

impl Replica {
    async fn start(id: u64, folder: &Path, timings: Timings) -> Self {
        Self::start_at(id, folder, timings, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(id: u64, folder: &Path, timings: Timings, address: SocketAddr) -> Self {
        let config = RaftConfig {
            id: ReplicaId(id),
            cluster: ClusterId::trusted("test"),
            data_dir: folder.join(id.to_string()),
            timings,
        };
        let now: Now = Arc::new(|| UnixMillis(1_700_000_000_000));
        let cluster = start(config, Arc::new(PlainTcp), now).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let served = CancellationToken::new();
        let server = tonic::transport::Server::builder().add_service(cluster.service(Arc::new(NoExtras)));
        let ended = served.clone();
        // As on the real peer port: without it, each answer of a few bytes waits 40 ms for the caller's delayed ACK.
        let incoming =
            TcpListenerStream::new(listener).inspect_ok(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move {
            tokio::select! {
                result = server.serve_with_incoming(incoming) => result.unwrap(),
                () = ended.cancelled() => {}
            }
        });
        Self {
            cluster,
            address,
            served,
        }
    }

    fn member(&self) -> Member {
        Member {
            peer_address: self.address.to_string(),
            admin_url: format!("http://{}", self.address),
        }
    }

    /// Stops like a crash: no handing over, connections cut.
    async fn kill(self) -> SocketAddr {
        self.served.cancel();
        self.cluster.crash().await;
        self.address
    }
}

fn organization(id: &str) -> Proposal {
    Proposal::system(Command::PutOrganization(Organization {
        id: OrganizationId::trusted(id),
        name: id.into(),
        enabled: true,
        adjustment_bps: 0,
    }))
}

/// Writes, repeating while it is certain that nothing was written.
async fn write(cluster: &Cluster, id: &str) -> Revision {
    match within(10, cluster.propose(organization(id))).await.unwrap() {
        Outcome::Done(receipt) => receipt.revision,
        Outcome::Refused(refusal) => panic!("{refusal}"),
    }
}

fn has(cluster: &Cluster, id: &str) -> bool {
    cluster
        .state()
        .organizations
        .contains_key(&OrganizationId::trusted(id))
}

async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), work)
        .await
        .expect("it takes no longer than the test allows")
}

/// Waits until `condition` holds; the test fails when it does not within ten seconds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within ten seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Replicas 1, 2 and 3 of one cluster, all voters.
async fn three(folder: &Path, timings: Timings) -> Vec<Replica> {
    let one = Replica::start(1, folder, timings.clone()).await;
    one.cluster.init(one.member()).await.unwrap();
    let mut replicas = vec![one];
    for id in [2, 3] {
        let next = Replica::start(id, folder, timings.clone()).await;
        let added = replicas[0].cluster.add_replica(ReplicaId(id), next.member());
        within(20, added).await.unwrap();
        replicas.push(next);
    }
    replicas
}

async fn leader_of(replicas: &[Replica]) -> usize {
    let leading = || {
        replicas.iter().position(|replica| {
            let status = replica.cluster.status();
            status.leader == Some(status.replica)
        })
    };
    until("someone leads", || leading().is_some()).await;
    leading().unwrap()
}
