//! Requests that are turned away, and how that is said.

use serde_json::{Value, json};
use tollway_data::catalog::{Live, NodeSecrets};
use tollway_data::config::Config;
use tollway_data::plane::Names;
use tollway_data::run;
use tollway_proto::usage::UsageSource;
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;
use tollway_shared::cost;
use tollway_shared::ids::{ClusterId, NodeId, Region};
use tollway_shared::key_text::{KeyKind, mint};
use tollway_shared::seal::{self, Key};

use crate::node::{MODEL, Node, SOON, header};

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_openais_shape() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let message = r#""messages":[{"role":"user","content":"x"}]"#;
    let unknown = mint(KeyKind::Inference, &[9; 32]).expose().clone();
    let key = node.key.clone();
    for (key, body, status, code) in [
        (None, "{}".to_owned(), 401, "invalid_api_key"),
        (
            Some("sk-nonsense".to_owned()),
            "{}".into(),
            401,
            "invalid_api_key",
        ),
        (Some(unknown), "{}".into(), 401, "invalid_api_key"),
        (Some(key.clone()), "{".into(), 400, "invalid_json"),
        (
            Some(key.clone()),
            format!(r#"{{"model":"acme/on",{message}}}"#),
            404,
            "model_not_found",
        ),
        (
            Some(key.clone()),
            format!(r#"{{"model":"acme/old",{message}}}"#),
            410,
            "model_retired",
        ),
        (
            Some(key.clone()),
            format!(r#"{{"model":"acme/empty",{message}}}"#),
            404,
            "no_endpoints",
        ),
        (
            Some(key.clone()),
            format!(r#"{{"model":"a","model":"b",{message}}}"#),
            400,
            "duplicate_key",
        ),
        (
            Some(key.clone()),
            format!(r#"{{"x":{}1}}"#, "[".repeat(300)),
            400,
            "json_too_deep",
        ),
        (
            Some(key.clone()),
            " ".repeat((32 << 20) + 1),
            413,
            "request_too_large",
        ),
        (
            Some(key.clone()),
            format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"[[tw:status=422]]"}}]}}"#),
            422,
            "upstream_rejected",
        ),
    ] {
        let mut request = node.post(body.clone());
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.unwrap();
        let (got, retry) = (
            response.status().as_u16(),
            header(&response, "x-should-retry").to_owned(),
        );
        let body: Value = response.json().await.unwrap();
        assert_eq!(
            (got, body["error"]["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        assert_eq!(retry, "false");
        if code == "model_not_found" {
            assert!(
                body["error"]["message"].as_str().unwrap().contains("`acme/one`"),
                "{body}"
            );
        }
    }
    let url = format!("{}/v1/chat/completions", node.running.api_url);
    let wrong = node.http.get(url).send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), header(&wrong, "allow")), (405, "POST"));
    let body: Value = wrong.json().await.unwrap();
    assert_eq!(body["error"]["code"], "method_not_allowed", "{body}");
    let url = format!("{}/nowhere", node.running.api_url);
    assert_eq!(node.http.get(url).send().await.unwrap().status(), 404);
    let events = node.events(1).await; // only the one that reached the provider
    assert_eq!(
        (events[0].status, events[0].usage_source),
        (422, UsageSource::None)
    );
    assert_eq!(events[0].charge, cost::Charge::default());
}

/// One raw exchange on a connection of its own: the status and the body.
async fn raw(node: &Node, head: &str) -> (u16, Value) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = node.running.api_url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{head}connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let read = tokio::time::timeout(SOON, socket.read_to_string(&mut text));
    read.await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn a_request_names_its_host_exactly_once() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let authorization = format!("authorization: Bearer {}\r\n", node.key);
    for (line, hosts, refused) in [
        ("GET /v1/models HTTP/1.1", "host: a\r\n", false),
        ("GET /v1/models HTTP/1.0", "", false),
        ("GET /v1/models HTTP/1.1", "", true),
        ("GET /v1/models HTTP/1.1", "host: a\r\nhost: b\r\n", true),
        ("GET /v1/models HTTP/1.1", "Host: a\r\nhost: a\r\n", true),
        ("GET /v1/models HTTP/1.0", "host: a\r\nhost: b\r\n", true),
        ("POST /v1/chat/completions HTTP/1.1", "", true),
        ("GET /nowhere HTTP/1.1", "", true),
    ] {
        let (status, body) = raw(&node, &format!("{line}\r\n{hosts}{authorization}")).await;
        assert_eq!(
            status,
            if refused { 400 } else { 200 },
            "{line} {hosts:?}: {body}"
        );
        if refused {
            let error = &body["error"];
            assert_eq!(
                (&error["code"], &error["param"]),
                (&json!("invalid_value"), &json!("host"))
            );
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
}

#[tokio::test]
async fn a_node_without_a_fresh_snapshot_never_says_401() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let url = format!("{}/v1/models", node.running.api_url);
    let list: Value = node
        .http
        .get(&url)
        .bearer_auth(&node.key)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        ["acme/one"],
        "not the retired one, nor the one that no endpoint serves"
    );
    assert_eq!(list["data"][0]["pricing"]["prompt"], "0.000001");
    let empty = Live::new(NodeSecrets::default());
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    config.usage.dir = Some(dir.path().join("usage"));
    config.api.listen = ([127, 0, 0, 1], 0).into();
    config.ops.listen = ([127, 0, 0, 1], 0).into();
    config.server.threads = 1;
    config.drain.grace_ms = 0;
    let names = Names {
        cluster: ClusterId::trusted("c"),
        region: Region::trusted("r"),
        node: NodeId::trusted("n"),
    };
    let running = run::serve(&config, names, empty).await.unwrap();
    let url = format!("{}/v1/models", running.api_url);
    let response = node.http.get(url).bearer_auth(&node.key).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(header(&response, "x-should-retry"), "true");
    assert!(!header(&response, "retry-after").is_empty());
    let ready = node
        .http
        .get(format!("{}/readyz?verbose", running.ops_url))
        .send()
        .await
        .unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("[-] snapshot"));
    assert!(running.stop().await);
}

#[tokio::test]
async fn what_a_key_may_not_use_is_neither_listed_nor_suggested() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let mistyped = json!({"model": "acme/onne"});
    let suggested = async |node: &Node| {
        let response = node.ask("x", mistyped.clone()).await;
        assert_eq!(response.status(), 404);
        let body: Value = response.json().await.unwrap();
        body["error"]["message"].as_str().unwrap().contains("`acme/one`")
    };
    assert!(suggested(&node).await);
    node.restrict_key("acme/empty");
    assert!(!suggested(&node).await);
    let url = format!("{}/v1/models", node.running.api_url);
    let list = node.http.get(url).bearer_auth(&node.key).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    assert_eq!(list["data"], json!([]));
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_the_fast_lane_at_once() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    assert_eq!(node.ask("x", json!({})).await.status(), 200);
    let digest = seal::key_digest(&Key::new([1; 32]), &node.key);
    node.live.set_stops(tollway_data::catalog::Stops {
        revision: tollway_shared::ids::Revision(9),
        keys: [digest].into(),
        budgets: Default::default(),
    });
    let refused = node.ask("x", json!({})).await;
    assert_eq!(refused.status(), 401);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "revoked_api_key");
}

#[tokio::test]
async fn a_removed_node_is_not_ready_and_refuses_until_it_is_registered_again() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    node.live.set_removed(true);
    let refused = node.ask("x", json!({})).await;
    assert_eq!(refused.status(), 503);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "node_removed");
    let url = format!("{}/readyz", node.running.ops_url);
    let ready = node.http.get(&url).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("[-] registered"));
    node.live.set_removed(false);
    assert_eq!(node.ask("x", json!({})).await.status(), 200);
    assert_eq!(node.http.get(&url).send().await.unwrap().status(), 200);
}
