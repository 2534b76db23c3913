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
    assert!(
        ["no_quorum", "no_leader", "timeout"].contains(&refused["code"].as_str().unwrap()),
        "{refused}"
    );
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
