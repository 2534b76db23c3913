//! What a joiner trusts, over real TLS on loopback, and what it keeps.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rcgen::{BasicConstraints, IsCa, Issuer};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority and a certificate of it for `name`, with its key.
fn chain(name: &str) -> (rcgen::Certificate, rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    (authority, leaf, leaf_key)
}

/// Whether a joiner that pins `pin` finishes a handshake with a server of this chain.
async fn trusts(
    pin: [u8; 32],
    authority: &rcgen::Certificate,
    leaf: &rcgen::Certificate,
    key: &KeyPair,
) -> bool {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone(), authority.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = TlsConnector::from(Arc::new(tls::pinned(pin).unwrap()));
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(server)).accept(stream).await.is_ok()
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("any.example").unwrap();
        client.connect(name, stream).await.is_ok()
    };
    tokio::join!(accepting, connecting).1
}

#[tokio::test]
async fn a_joiner_trusts_only_a_replica_of_the_authority_that_its_token_pins() {
    let (authority, leaf, key) = chain("control.tollway.internal");
    let pin = tollway_shared::seal::sha256(authority.der());
    assert!(trusts(pin, &authority, &leaf, &key).await);
    assert!(!trusts([0; 32], &authority, &leaf, &key).await);
    let (_, strange, strange_key) = chain("control.tollway.internal");
    assert!(
        !trusts(pin, &authority, &strange, &strange_key).await,
        "the authority is shown, but did not sign"
    );
    let (authority, node, key) = chain("node.example");
    let pin = tollway_shared::seal::sha256(authority.der());
    assert!(
        !trusts(pin, &authority, &node, &key).await,
        "a node's certificate is no replica's"
    );
}

#[tokio::test]
async fn a_token_is_sent_nowhere_without_tls_or_a_pin() {
    let folder = tempfile::tempdir().unwrap();
    let node = NodeId::trusted("n1");
    let token = tollway_shared::key_text::join_token(&[1; 32], &[2; 32]);
    let plain = join(
        "http://control.example:7600",
        token.expose(),
        node.clone(),
        folder.path(),
    )
    .await;
    assert!(
        plain
            .unwrap_err()
            .to_string()
            .contains("must start with `https://`")
    );
    let bare = join("https://control.example:7600", "jt-tw-v1-x", node, folder.path()).await;
    assert!(bare.unwrap_err().to_string().contains("not a join token"));
    assert!(!Identity::exists(folder.path()));
    let missing = Identity::load(folder.path()).unwrap_err();
    assert!(missing.to_string().contains("tollway-data join"));
}

#[test]
fn an_identity_comes_back_from_disk_and_only_its_owner_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, leaf, key) = chain("control.tollway.internal");
    let identity = Identity::new(
        Membership {
            cluster: ClusterId::trusted("c1"),
            node: NodeId::trusted("n1"),
            region: Region::trusted("eu"),
            peers: vec!["127.0.0.1:7601".into()],
        },
        NodeSecrets {
            region_key: Some(Key::new([7; 32])),
            peppers: [(1, Key::new([8; 32]))].into(),
        },
        Material {
            certificate_pem: leaf.pem(),
            key_pem: Secret::new(key.serialize_pem()),
            authority_pem: authority.pem(),
        },
    )
    .unwrap();
    identity.store(folder.path()).unwrap();
    let loaded = Identity::load(folder.path()).unwrap();
    assert_eq!(loaded.membership, identity.membership);
    assert_eq!(loaded.secrets.region_key, identity.secrets.region_key);
    assert_eq!(loaded.secrets.peppers, identity.secrets.peppers);
    assert_eq!(loaded.material.certificate_pem, identity.material.certificate_pem);
    for entry in std::fs::read_dir(folder.path().join("identity")).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let printed = format!("{loaded:?}");
    assert!(!printed.contains("PRIVATE"), "{printed}");
}
