//! Who gets through, over real TLS on loopback.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tollway_proto::command::NodeRecord;
use tollway_shared::ids::{ClusterId, NodeId, Region, ReplicaId};
use tollway_shared::time::UnixMillis;
use tonic::service::Interceptor;
use tonic::transport::server::Connected;

use super::accept::{PeerStream, incoming};
use super::admit::{OnlyNodes, OnlyReplicas, is_registered};
use super::authority::LEAF_LIFE;
use super::*;
use crate::state::State;

/// A node of region `eu`.
pub(crate) fn node(id: &str) -> PeerIdentity {
    PeerIdentity::Node {
        region: Region::trusted("eu"),
        id: NodeId::trusted(id),
    }
}

/// The machine's wall time: certificates are checked against it.
pub(crate) fn wall() -> UnixMillis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    UnixMillis(since.as_millis() as i64)
}

/// A certificate of `authority` for `identity`.
pub(crate) fn material(authority: &Authority, identity: &PeerIdentity) -> Material {
    let (key_pem, request) = material::request().unwrap();
    Material {
        certificate_pem: authority
            .issue(&request, identity, &[], wall(), LEAF_LIFE)
            .unwrap(),
        key_pem,
        authority_pem: authority.certificate_pem().to_owned(),
    }
}

struct Port {
    address: std::net::SocketAddr,
    own: Arc<LiveCertificate>,
    peers: tokio_stream::wrappers::ReceiverStream<std::io::Result<PeerStream>>,
    _stop: tokio_util::sync::DropGuard,
}

async fn port(authority: &Authority) -> Port {
    let own = LiveCertificate::new(&material(authority, &PeerIdentity::Replica(ReplicaId(1)))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = tls::peer_server(own.clone(), authority.certificate_pem()).unwrap();
    let stop = CancellationToken::new();
    let peers = incoming(listener, tls, authority.cluster().clone(), stop.clone());
    Port {
        address,
        own,
        peers,
        _stop: stop.drop_guard(),
    }
}

type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(port: &Port, own: &Material, trusts: &str, name: &str) -> std::io::Result<ClientStream> {
    let own = LiveCertificate::new(own).unwrap();
    let tls = TlsConnector::from(tls::peer_client(own, trusts).unwrap());
    let stream = TcpStream::connect(port.address).await?;
    tls.connect(ServerName::try_from(name.to_owned()).unwrap(), stream)
        .await
}

async fn accepted(port: &mut Port) -> PeerStream {
    port.peers.next().await.unwrap().unwrap()
}

fn authority() -> Authority {
    Authority::create(ClusterId::trusted("c1"), wall()).unwrap()
}

#[tokio::test]
async fn a_peer_is_known_by_its_certificate() {
    let authority = authority();
    let mut port = port(&authority).await;
    let own = material(&authority, &node("n1"));
    let mut client = connect(&port, &own, authority.certificate_pem(), CONTROL_NAME)
        .await
        .unwrap();
    let mut server = accepted(&mut port).await;
    assert_eq!(server.connect_info(), node("n1"));
    client.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_nothing() {
    let authority = authority();
    let other = Authority::create(ClusterId::trusted("c1"), wall()).unwrap();
    let mut port = port(&authority).await;
    let strange = material(&other, &node("n1"));
    // The client hears of the refusal with its first read: TLS 1.3 lets it finish its own half first.
    if let Ok(mut client) = connect(&port, &strange, authority.certificate_pem(), CONTROL_NAME).await {
        assert!(client.read_u8().await.is_err());
    }
    let good = material(&authority, &node("n2"));
    let _client = connect(&port, &good, authority.certificate_pem(), CONTROL_NAME)
        .await
        .unwrap();
    assert_eq!(accepted(&mut port).await.connect_info(), node("n2"));
    // And the other way round: a server of another authority is not believed.
    assert!(
        connect(&port, &strange, other.certificate_pem(), CONTROL_NAME)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_replica_is_reached_under_its_own_number_only() {
    let authority = authority();
    let port = port(&authority).await;
    let own = material(&authority, &PeerIdentity::Replica(ReplicaId(2)));
    let trusts = authority.certificate_pem();
    assert!(
        connect(&port, &own, trusts, &replica_name(ReplicaId(1)))
            .await
            .is_ok()
    );
    assert!(
        connect(&port, &own, trusts, &replica_name(ReplicaId(3)))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_expired_certificate_gets_nothing() {
    let authority = authority();
    let mut port = port(&authority).await;
    let (key_pem, request) = material::request().unwrap();
    let yesterday = UnixMillis(wall().0 - 86_400_000);
    let life = Duration::from_secs(60);
    let old = Material {
        certificate_pem: authority
            .issue(&request, &node("n1"), &[], yesterday, life)
            .unwrap(),
        key_pem,
        authority_pem: authority.certificate_pem().to_owned(),
    };
    if let Ok(mut client) = connect(&port, &old, authority.certificate_pem(), CONTROL_NAME).await {
        assert!(client.read_u8().await.is_err());
    }
    let good = material(&authority, &node("n2"));
    let _client = connect(&port, &good, authority.certificate_pem(), CONTROL_NAME)
        .await
        .unwrap();
    assert_eq!(accepted(&mut port).await.connect_info(), node("n2"));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_by_the_same_listener_and_open_connections_stay() {
    let authority = authority();
    let mut port = port(&authority).await;
    let own = material(&authority, &node("n1"));
    let trusts = authority.certificate_pem();
    let mut before = connect(&port, &own, trusts, CONTROL_NAME).await.unwrap();
    let mut server = accepted(&mut port).await;

    let folder = tempfile::tempdir().unwrap();
    let replica = PeerIdentity::Replica(ReplicaId(1));
    let first = material(&authority, &replica);
    let stop = CancellationToken::new();
    let renewal = renew::Renewal {
        data_dir: folder.path().to_owned(),
        live: port.own.clone(),
        material: first,
        now: || UnixMillis(i64::MAX / 2), // long overdue: the first attempt comes after the shortest wait
    };
    let renewed = Arc::new(tokio::sync::Notify::new());
    let issue = |request: String| {
        let issued = authority.issue(&request, &replica, &[], wall(), LEAF_LIFE);
        renewed.notify_one();
        async move { issued }
    };
    let seen = |stream: &ClientStream| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let old = seen(&before);
    let renewing = renewal.run(issue, stop.clone());
    let checks = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        renewed.notified().await;
        while !Material::exists(folder.path()) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the certificate was not stored"
            );
            tokio::task::yield_now().await;
        }
        let after = connect(&port, &own, trusts, CONTROL_NAME).await.unwrap();
        assert_ne!(seen(&after), old);
        before.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        stop.cancel();
    };
    tokio::join!(renewing, checks);
    let stored = Material::load(folder.path()).unwrap();
    material::certified(&stored).unwrap();
}

#[test]
fn a_node_may_not_call_replicas_and_a_removed_node_may_call_nothing() {
    let request = |peer: &PeerIdentity| {
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(peer.clone());
        request
    };
    let replica = PeerIdentity::Replica(ReplicaId(1));
    assert!(OnlyReplicas.call(request(&replica)).is_ok());
    assert!(OnlyReplicas.call(request(&node("n1"))).is_err());
    assert!(OnlyReplicas.call(tonic::Request::new(())).is_err());

    assert!(OnlyNodes.call(request(&node("n1"))).is_ok());
    assert!(OnlyNodes.call(request(&replica)).is_err());
    assert!(OnlyNodes.call(tonic::Request::new(())).is_err());

    let mut state = State::default();
    let id = NodeId::trusted("n1");
    let record = NodeRecord {
        id: id.clone(),
        region: Region::trusted("eu"),
        joined_at: UnixMillis(0),
    };
    state.nodes.insert(id.clone(), record);
    assert!(is_registered(&state, &node("n1")));
    assert!(!is_registered(&state, &replica));
    let elsewhere = PeerIdentity::Node {
        region: Region::trusted("us"),
        id: id.clone(),
    };
    assert!(!is_registered(&state, &elsewhere));
    state.nodes.remove(&id);
    assert!(!is_registered(&state, &node("n1")));
}

#[test]
fn an_identity_survives_its_uri_and_nothing_else_is_read_as_one() {
    let cluster = ClusterId::trusted("c1");
    for identity in [PeerIdentity::Replica(ReplicaId(3)), node("n1")] {
        let uri = identity.uri(&cluster);
        assert_eq!(PeerIdentity::parse(&uri, &cluster), Some(identity));
        assert_eq!(PeerIdentity::parse(&uri, &ClusterId::trusted("c2")), None);
        assert_eq!(PeerIdentity::parse(&uri, &ClusterId::trusted("c")), None);
    }
    for bad in [
        "spiffe://c1/replica/x",
        "spiffe://c1/replica/1/2",
        "spiffe://c1/node/eu",
        "spiffe://c1/node/eu/n/m",
        "spiffe://c1/node//n",
        "spiffe://c1/admin/1",
        "https://c1/replica/1",
    ] {
        assert_eq!(PeerIdentity::parse(bad, &cluster), None, "{bad}");
    }
}
