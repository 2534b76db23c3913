//! Replicas on loopback, through their listeners: made, joined, asked, stopped and started again.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(dir: &Path) -> Config {
    let mut config = Config {
        data_dir: dir.to_owned(),
        ..Config::default()
    };
    config.admin.listen = free_address();
    config.peer.listen = free_address();
    config
}

/// A client that trusts the cluster's authority only.
struct Client(reqwest::Client, String);

impl Client {
    fn new(made: &Initialized) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority =
            reqwest::Certificate::from_pem(&std::fs::read(&made.authority_file).unwrap()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([authority])
            .no_proxy()
            .build()
            .unwrap();
        Self(client, made.admin_key.expose().clone())
    }

    async fn call(&self, method: &str, url: String, body: Option<Value>) -> (u16, Value) {
        let request = self.0.request(method.parse().unwrap(), url).bearer_auth(&self.1);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    async fn until(&self, url: String, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (status, body) = self.call("GET", url.clone(), None).await;
            if status == 200 && done(&body) {
                return body;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{what}: {status} {body}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn voters(status: &Value) -> usize {
    status["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|member| member["voter"] == true)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_made_joined_written_through_a_follower_and_started_again() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = config(dirs[0].path());
    let made = init(&first).await.unwrap();
    assert!(matches!(init(&first).await, Err(StartFault::Exists(_))));
    let client = Client::new(&made);
    let one = start(first.clone()).await.unwrap();
    let at = |running: &Running, path: &str| format!("{}/admin/v1/{path}", running.admin_url);
    client
        .until(at(&one, "cluster"), "the first replica leads", |status| {
            voters(status) == 1
        })
        .await;

    let (status, token) = client
        .call("POST", at(&one, "join-tokens"), Some(json!({"kind": "replica"})))
        .await;
    assert_eq!(status, 201, "{token}");
    let second = config(dirs[1].path());
    let token = token["token"].as_str().unwrap();
    let joined = join(&second, &one.admin_url, token).await.unwrap();
    assert_eq!(joined.replica, ReplicaId(2));
    assert!(
        join(
            &config(tempfile::tempdir().unwrap().path()),
            &one.admin_url,
            token
        )
        .await
        .is_err(),
        "used up"
    );
    let two = start(second.clone()).await.unwrap();
    client
        .until(at(&one, "cluster"), "two voters", |status| voters(status) == 2)
        .await;

    let (status, body) = client
        .call("PUT", at(&two, "organizations/o"), Some(json!({"name": "O"})))
        .await;
    assert_eq!(status, 200, "a follower forwards: {body}");
    let (status, read) = client.call("GET", at(&one, "organizations/o"), None).await;
    assert_eq!((status, &read), (200, &body));
    let (_, nodes) = client.call("GET", at(&one, "nodes"), None).await;
    assert_eq!(
        nodes["unanswered"],
        json!([]),
        "the other replica was asked over mutual TLS"
    );

    two.stop().await;
    let begun = Instant::now();
    let (status, refused) = client
        .call("PUT", at(&one, "organizations/p"), Some(json!({})))
        .await;
    assert_eq!(status, 503, "one of two is no majority: {refused}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(refused["code"], "no_quorum", "{refused}");
    let ready = client.0.get(format!("{}/readyz", one.admin_url));
    let ready = ready.send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().starts_with("no_quorum"));
    let (status, _) = client
        .call("GET", at(&one, "organizations?consistency=stale"), None)
        .await;
    assert_eq!(status, 200);

    let two = start(second).await.unwrap();
    client
        .until(
            at(&two, "organizations/o"),
            "what was written is still there",
            |body| body["name"] == "O",
        )
        .await;
    two.stop().await;
    one.stop().await;
}

/// What replica 1 answers to whoever shows the certificate that is in `dir`.
async fn knock(one: &Running, dir: &Path) -> Result<(), tonic::Code> {
    use crate::raft::PeerConnector as _;
    use tollway_proto::peer::v1::{Empty, peer_client::PeerClient};
    let material = Material::load(dir).unwrap();
    let live = LiveCertificate::new(&material).unwrap();
    let connector = MutualTls::new(tls::peer_client(live, &material.authority_pem).unwrap());
    let channel = connector.channel(ReplicaId(1), &one.peer_address);
    let answer = PeerClient::new(channel).fleet(Empty {}).await;
    answer.map(drop).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_is_let_in_nowhere_and_the_trail_says_who_changed_the_members() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = config(dirs[0].path());
    let made = init(&first).await.unwrap();
    let client = Client::new(&made);
    let one = start(first).await.unwrap();
    let at = |running: &Running, path: &str| format!("{}/admin/v1/{path}", running.admin_url);
    let kind = json!({"kind": "replica"});
    let (_, token) = client.call("POST", at(&one, "join-tokens"), Some(kind)).await;
    let second = config(dirs[1].path());
    join(&second, &one.admin_url, token["token"].as_str().unwrap())
        .await
        .unwrap();
    let two = start(second).await.unwrap();
    client
        .until(at(&one, "cluster"), "two voters", |status| voters(status) == 2)
        .await;
    assert_eq!(knock(&one, dirs[1].path()).await, Ok(()));

    // The follower is asked, the leader does it; and once more, so that the first one leads again.
    for leader in [2, 1] {
        let follower = if leader == 2 { &two } else { &one };
        let (status, body) = client
            .call("POST", at(follower, "cluster/transfer"), Some(json!({})))
            .await;
        assert_eq!((status, &body["id"]), (200, &json!(leader)), "{body}");
    }
    let (status, body) = client.call("DELETE", at(&one, "cluster/replicas/2"), None).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        knock(&one, dirs[1].path()).await,
        Err(tonic::Code::PermissionDenied)
    );
    assert_eq!(knock(&one, dirs[0].path()).await, Ok(()));
    let (status, body) = client.call("DELETE", at(&one, "cluster/replicas/2"), None).await;
    assert_eq!(status, 404, "{body}");
    let (status, body) = client.call("DELETE", at(&one, "cluster/replicas/1"), None).await;
    assert_eq!(status, 409, "the only voter stays: {body}");

    let (_, trail) = client.call("GET", at(&one, "audit"), None).await;
    let wanted = ["leader.transfer", "leader.transfer", "replica.remove"];
    let found: Vec<&str> = trail["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["actor"] == "owner")
        .map(|record| record["action"].as_str().unwrap())
        .filter(|action| wanted.contains(action))
        .collect();
    assert_eq!(found, wanted);
    two.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn another_sealing_key_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    assert!(matches!(
        start(config.clone()).await,
        Err(StartFault::NoReplica(_))
    ));
    init(&config).await.unwrap();
    let file = config.seal_file();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    std::fs::write(&file, "ab".repeat(32)).unwrap();
    let fault = start(config.clone()).await.err().unwrap();
    assert!(matches!(fault, StartFault::WrongKey(_)), "{fault}");
    assert!(
        fault
            .to_string()
            .contains("does not open the certificate authority's key")
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let fault = start(config).await.err().unwrap();
    assert!(fault.to_string().contains("chmod 600"), "{fault}");
}
