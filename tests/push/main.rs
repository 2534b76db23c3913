//! A replica and a node in one process, over real Raft and mutual TLS on loopback: join, follow, stop, restart alone, renew, leave.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod cut;
mod removed;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tollway_control::identity::authority::{Authority, LEAF_LIFE, certificate_hash};
use tollway_control::identity::{LiveCertificate, Material, PeerIdentity, accept, material, tls};
use tollway_control::publish::Publisher;
use tollway_control::raft::{self, Cluster, PeerConnector, Proposal, RaftConfig, Timings};
use tollway_data::catalog::{self, Live, intake::Caps};
use tollway_data::clock;
use tollway_data::identity::{self, Identity};
use tollway_proto::admin::cluster::{JoinRequest, JoinSecrets, Joined, Replica};
use tollway_proto::admin::text::{SecretText, Text};
use tollway_proto::command::{
    Admin, Command, InitCluster, JoinKind, JoinToken, Member, NodeRecord, Outcome, Receipt, Role,
};
use tollway_shared::catalog::{AuthScheme, Dialect, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::*;
use tollway_shared::key_text;
use tollway_shared::labels::Labels;
use tollway_shared::money::Price;
use tollway_shared::seal::{Key, sha256};
use tollway_shared::snapshot::{Resource, ResourceKind, Snapshot};
use tollway_shared::tenant::{ApiKey, Organization, Project};
use tollway_shared::time::UnixMillis;

const CLUSTER: &str = "c1";
const ROOT: [u8; 32] = [7; 32];
/// 32 bytes of 7 in base64.
const SEVENS: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
/// The key that is revoked.
const DIGEST: [u8; 32] = [1; 32];
/// What every condition is given; none comes near it.
const DEADLINE: Duration = Duration::from_secs(20);

/// One replica, so nobody to connect to.
struct Alone;

impl PeerConnector for Alone {
    fn channel(&self, _id: ReplicaId, _address: &str) -> tonic::transport::Channel {
        tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }
}

struct Control {
    cluster: Cluster,
    publisher: Publisher,
    peer_address: SocketAddr,
    authority: Authority,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Control {
    async fn start(data_dir: &Path, leaf_life: Duration) -> Self {
        let id = ClusterId::trusted(CLUSTER);
        let config = RaftConfig {
            id: ReplicaId(1),
            cluster: id.clone(),
            data_dir: data_dir.to_owned(),
            timings: Timings::default(),
        };
        let cluster = raft::start(config, Arc::new(Alone), Arc::new(clock::now))
            .await
            .unwrap();
        cluster.init(Member::default()).await.unwrap();
        let authority = Authority::create(id.clone(), clock::now()).unwrap();
        let root = Key::new(ROOT);
        let stop = CancellationToken::new();
        let publisher = Publisher::start(Arc::new(cluster.clone()), root.clone(), clock::now, stop.clone());
        let (key_pem, request) = material::request().unwrap();
        let replica = PeerIdentity::Replica(ReplicaId(1));
        let own = Material {
            certificate_pem: authority
                .issue(&request, &replica, &[], clock::now(), LEAF_LIFE)
                .unwrap(),
            key_pem,
            authority_pem: authority.certificate_pem().to_owned(),
        };
        let own = LiveCertificate::new(&own).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_address = listener.local_addr().unwrap();
        let tls = tls::peer_server(own, authority.certificate_pem()).unwrap();
        let incoming = accept::incoming(listener, tls, id.clone(), stop.clone());
        let server = tonic::transport::Server::builder().add_service(publisher.service(leaf_life));
        let stopped = stop.clone();
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, async move { stopped.cancelled().await }));
        let control = Self {
            cluster,
            publisher,
            peer_address,
            authority,
            _guard: stop.clone().drop_guard(),
            stop,
        };
        let init = InitCluster {
            cluster: id,
            authority_pem: control.authority.certificate_pem().to_owned(),
            authority_key: control.authority.sealed_key(&root),
            admin: Admin {
                id: AdminId::trusted("root"),
                name: "root".into(),
                role: Role::Owner,
                digest: [9; 32],
                pepper_version: 1,
                last4: "abcd".into(),
                created_at: UnixMillis(0),
            },
        };
        control.run(Command::InitCluster(init)).await;
        for command in catalog_commands() {
            control.run(command).await;
        }
        control
    }

    async fn run(&self, command: Command) -> Receipt {
        match self.cluster.propose(Proposal::system(command)).await.unwrap() {
            Outcome::Done(receipt) => receipt,
            Outcome::Refused(refusal) => panic!("{refusal}"),
        }
    }

    /// A node joins: its token is made, its HTTP request answered once, by what the admin API does.
    async fn join(&self, node: &str, data_dir: &Path) -> Identity {
        let pin = certificate_hash(self.authority.certificate_pem()).unwrap();
        let token = key_text::join_token(&[5; 32], &pin);
        let digest = sha256(token.expose().as_bytes());
        let region = Region::trusted("eu");
        let record = JoinToken {
            digest,
            kind: JoinKind::Node(region.clone()),
            expires_at: clock::now().plus_ms(60_000),
        };
        self.run(Command::CreateJoinToken(record)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let id = NodeId::trusted(node);
        let asks = identity::join(&url, token.expose(), id.clone(), data_dir);
        let answers = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request: JoinRequest = serde_json::from_slice(&http_body(&mut stream).await).unwrap();
            assert_eq!(sha256(request.token.expose().as_bytes()), digest);
            let record = NodeRecord {
                id: request.node.unwrap().id.0,
                region: region.clone(),
                joined_at: clock::now(),
            };
            let peer = PeerIdentity::Node {
                region: region.clone(),
                id: record.id.clone(),
            };
            self.run(Command::Join {
                token: digest,
                node: Some(record),
            })
            .await;
            let issued = self
                .authority
                .issue(&request.request_pem, &peer, &[], clock::now(), LEAF_LIFE);
            let joined = Joined {
                cluster: Text(ClusterId::trusted(CLUSTER)),
                certificate_pem: issued.unwrap(),
                authority_pem: self.authority.certificate_pem().to_owned(),
                replica_id: None,
                region: Some(Text(region.clone())),
                members: vec![Replica {
                    id: 1,
                    peer_address: self.peer_address.to_string(),
                    admin_url: String::new(),
                    voter: true,
                    matched: None,
                }],
                secrets: JoinSecrets::Node {
                    region_key_b64: SecretText::new(SEVENS),
                    peppers: [(1, SecretText::new(SEVENS))].into(),
                },
            };
            let body = serde_json::to_string(&joined).unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        };
        let (identity, ()) = tokio::join!(asks, answers);
        let identity = identity.unwrap();
        assert_eq!(Identity::load(data_dir).unwrap().membership, identity.membership);
        identity
    }
}

async fn http_body(stream: &mut tokio::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        assert_ne!(read, 0, "the request ended early");
        bytes.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
            if bytes.len() >= head.len() + 4 + length {
                return bytes.split_off(head.len() + 4);
            }
        }
    }
}

/// A node's catalog, following.
struct Follower {
    live: Live,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Follower {
    fn start(identity: &Identity, data_dir: &Path) -> Self {
        let live = Live::new(identity.secrets.clone());
        let stop = CancellationToken::new();
        let config = catalog::Config {
            cluster: identity.membership.cluster.clone(),
            node: identity.membership.node.clone(),
            region: identity.membership.region.clone(),
            peers: identity.membership.peers.clone(),
            data_dir: data_dir.to_owned(),
            dial: identity.dial().unwrap(),
            caps: Caps::default(),
            recalls: Arc::new(drop),
        };
        let thread = catalog::subscribe::spawn(live.clone(), config, stop.clone()).unwrap();
        Self {
            live,
            stop,
            thread: Some(thread),
        }
    }

    async fn reaches(&self, revision: Revision) -> Arc<Snapshot> {
        until(|| {
            self.live
                .snapshot()
                .is_some_and(|snapshot| snapshot.revision >= revision)
        })
        .await;
        self.live.snapshot().unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Waits for a condition that another thread brings about, looking every millisecond.
async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn price(id: &str, dollars: i64) -> Command {
    Command::AddPrice(PriceVersion {
        id: PriceId::trusted(id),
        endpoint: EndpointId::trusted("p/a/m"),
        effective_from: UnixMillis(0), // from when it is applied
        prices: Prices::flat(Price(dollars * 1_000_000_000), Price(dollars * 1_000_000_000)),
    })
}

fn catalog_commands() -> Vec<Command> {
    vec![
        Command::PutProvider(Provider {
            id: ProviderId::trusted("p"),
            name: "P".into(),
            dialect: Dialect::OpenAi,
            base_url: "https://api.example.com/v1".into(),
            auth: AuthScheme::Bearer,
            private_network: false,
            stream_usage: true,
            output_cap: None,
            bills_after_cancel: false,
            on_disconnect: None,
            connect_timeout_ms: 1000,
            first_byte_timeout_ms: 1000,
            idle_timeout_ms: 1000,
            enabled: true,
        }),
        Command::PutModel(Model {
            id: ModelId::trusted("a/m"),
            name: "M".into(),
            description: String::new(),
            context_tokens: 8192,
            created_at: UnixMillis(0),
        }),
        Command::PutEndpoint(Endpoint {
            id: EndpointId::trusted("p/a/m"),
            model: ModelId::trusted("a/m"),
            provider: ProviderId::trusted("p"),
            upstream_model: "m".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank: 0,
            enabled: true,
        }),
        price("p1", 1),
        Command::PutOrganization(Organization {
            id: OrganizationId::trusted("o"),
            name: "O".into(),
            enabled: true,
            adjustment_bps: 0,
        }),
        Command::PutProject(Project {
            id: ProjectId::trusted("j"),
            organization: OrganizationId::trusted("o"),
            team: None,
            name: "J".into(),
            enabled: true,
            labels: Labels::new(),
        }),
        Command::CreateKey(ApiKey {
            id: ApiKeyId::trusted("k"),
            project: ProjectId::trusted("j"),
            name: "k".into(),
            digest: DIGEST,
            pepper_version: 1,
            last4: "wxyz".into(),
            models: vec![],
            created_at: UnixMillis(0),
            expires_at: None,
            revoked_at: None,
            rotated_from: None,
            labels: Labels::new(),
        }),
    ]
}

/// Resources of `after` that are not the very same objects in `before`.
fn received(before: &Snapshot, after: &Snapshot) -> Vec<ResourceKind> {
    let same = |resource: &&Arc<Resource>| {
        before
            .get(&resource.key())
            .is_some_and(|old| Arc::ptr_eq(old, resource))
    };
    after
        .resources()
        .filter(|resource| !same(resource))
        .map(|resource| resource.key().kind)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_everything_then_what_changed_and_refuses_a_revoked_key_within_a_second() {
    let (control_dir, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let control = Control::start(control_dir.path(), LEAF_LIFE).await;
    let identity = control.join("n1", node_dir.path()).await;
    let follower = Follower::start(&identity, node_dir.path());
    let newest = control.cluster.state().revision;
    let first = follower.reaches(newest).await;
    assert_eq!(first.len(), 7);

    let receipt = control.run(price("p2", 2)).await;
    let second = follower.reaches(receipt.revision).await;
    assert_eq!(received(&first, &second), [ResourceKind::Price]);
    until(|| {
        let nodes = control.publisher.nodes();
        nodes.len() == 1 && nodes[0].revision == receipt.revision && nodes[0].lag == 0
    })
    .await;

    control.run(Command::RevokeKey(ApiKeyId::trusted("k"))).await;
    let answered = Instant::now();
    let refused = || {
        let stopped = follower.live.stops().keys.contains(&DIGEST);
        let snapshot = follower.live.snapshot().unwrap();
        stopped || snapshot.keys[&DIGEST].revoked_at.is_some()
    };
    until(refused).await;
    let took = answered.elapsed();
    println!("a revoked key was refused {took:?} after the answer");
    assert!(took < Duration::from_secs(1), "{took:?}");

    // With the control plane gone, a node that starts again serves what it had.
    until(|| follower.live.snapshot().unwrap().revision == control.cluster.state().revision).await;
    let last = follower.live.snapshot().unwrap();
    drop(follower);
    control.stop.cancel();
    control.cluster.shutdown().await;
    let identity = Identity::load(node_dir.path()).unwrap();
    let alone = Follower::start(&identity, node_dir.path());
    let snapshot = alone.reaches(last.revision).await;
    assert_eq!(snapshot.hash(), last.hash());
    assert!(snapshot.keys[&DIGEST].revoked_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_renews_its_certificate_and_is_cut_off_when_it_is_removed() {
    let (control_dir, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let control = Control::start(control_dir.path(), Duration::from_secs(3600)).await;
    let joined = control.join("n1", node_dir.path()).await;
    let follower = Follower::start(&joined, node_dir.path());
    follower.reaches(control.cluster.state().revision).await;

    // Its certificate is nearly over: issued a day ago less a minute.
    let old = joined.material.certificate_pem.clone();
    let (key_pem, request) = material::request().unwrap();
    let peer = PeerIdentity::Node {
        region: Region::trusted("eu"),
        id: NodeId::trusted("n1"),
    };
    let yesterday = clock::now().plus_ms(60_000 - 86_400_000);
    let mut ending = joined.clone();
    ending.material = identity::Material {
        certificate_pem: control
            .authority
            .issue(&request, &peer, &[], yesterday, LEAF_LIFE)
            .unwrap(),
        key_pem,
        authority_pem: joined.material.authority_pem.clone(),
    };
    ending.live.swap(&ending.material).unwrap();
    let stop = CancellationToken::new();
    let peers = ending.membership.peers.clone();
    let renewing = identity::renew::run(ending, peers, node_dir.path().to_owned(), stop.clone());
    let renewing = tokio::spawn(renewing);
    let stored = || Identity::load(node_dir.path()).unwrap().material.certificate_pem;
    until(|| stored() != old).await;
    stop.cancel();
    renewing.await.unwrap();

    control.run(Command::RemoveNode(NodeId::trusted("n1"))).await;
    until(|| control.publisher.nodes().is_empty()).await;
    let before = follower.live.snapshot().unwrap().revision;
    control.run(price("p2", 2)).await;
    let dial = joined.dial().unwrap();
    let channel = dial(&joined.membership.peers[0]).await.unwrap();
    let refused = tollway_proto::push::v1::push_client::PushClient::new(channel)
        .renew(tollway_proto::push::v1::RenewRequest { request_pem: request })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert_eq!(follower.live.snapshot().unwrap().revision, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_a_replica_that_has_lost_its_majority_and_learns_of_a_revoked_key_elsewhere() {
    let (control_dir, node_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let control = Control::start(control_dir.path(), LEAF_LIFE).await;
    let other = cut::Other::start(&control).await;
    let mut identity = control.join("n1", node_dir.path()).await;
    identity.membership.peers = vec![other.peer_address.to_string()];
    let lonely = Follower::start(&identity, node_dir.path());
    lonely.reaches(control.cluster.state().revision).await;
    let both_dir = tempfile::tempdir().unwrap();
    identity.membership.peers.push(control.peer_address.to_string());
    let follower = Follower::start(&identity, both_dir.path());
    follower.reaches(control.cluster.state().revision).await;

    other.cut_off();
    let cut_at = Instant::now();
    control.run(Command::RevokeKey(ApiKeyId::trusted("k"))).await;
    let revoked = |follower: &Follower| {
        follower.live.snapshot().unwrap().keys[&DIGEST]
            .revoked_at
            .is_some()
    };
    until(|| revoked(&follower)).await;
    until(|| other.publisher.nodes().is_empty()).await;
    let took = cut_at.elapsed();
    println!("every node had left the replica {took:?} after it was cut off");
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Who knows no other replica goes on with what it has, and knows how old that is.
    assert!(!revoked(&lonely));
    let age = lonely.live.age_ms();
    until(|| lonely.live.age_ms() > age + 1_000).await;
}
