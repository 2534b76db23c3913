//! What tenants read of their usage, while nobody is there to ask: refused by name, and requests for models do not notice.

use serde_json::{Value, json};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;

use crate::node::{Node, header};

#[tokio::test]
async fn without_a_control_plane_usage_cannot_be_read_and_models_answer_all_the_same() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let read = async |path: &str, key: Option<&str>| {
        let mut request = node.http.get(format!("{}/{path}", node.running.api_url));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        request.send().await.unwrap()
    };
    for path in [
        "v1/generation?id=gen-1",
        "v1/credits",
        "v1/key",
        "api/v1/auth/key",
        "v1/activity",
    ] {
        let answer = read(path, Some(&node.key)).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(
            (header(&answer, "retry-after"), header(&answer, "x-should-retry")),
            ("2", "true")
        );
        assert!(!header(&answer, "x-tollway-request-id").is_empty());
        assert_eq!(
            header(&answer, "x-generation-id"),
            "",
            "there is no such generation"
        );
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], 503, "{path}");
        assert_eq!(body["error"]["metadata"]["code"], "usage_unavailable", "{path}");
    }
    // What is wrong with the question is said without asking anybody.
    for (path, key, status, param) in [
        ("v1/credits", None, 401, Value::Null),
        ("v1/key", Some("sk-tw-v1-nonsense"), 401, Value::Null),
        ("v1/generation", Some(node.key.as_str()), 400, json!("id")),
        (
            "v1/activity?date=2020-01-01",
            Some(node.key.as_str()),
            400,
            json!("date"),
        ),
    ] {
        let answer = read(path, key).await;
        assert_eq!(answer.status(), status, "{path}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], status, "{path}");
        assert_eq!(body["error"]["metadata"]["param"], param, "{path}");
    }
    for (method, path, allow) in [
        ("POST", "credits", "GET"),
        ("PUT", "key", "GET"),
        ("DELETE", "auth/key", "GET"),
        ("GET", "analytics/query", "POST"),
    ] {
        let url = format!("{}/v1/{path}", node.running.api_url);
        let wrong = node.http.request(method.parse().unwrap(), url);
        let wrong = wrong.bearer_auth(&node.key).send().await.unwrap();
        assert_eq!(
            (wrong.status().as_u16(), header(&wrong, "allow")),
            (405, allow),
            "{path}"
        );
        assert!(!header(&wrong, "x-tollway-request-id").is_empty());
        let body: Value = wrong.json().await.unwrap();
        assert_eq!(body["error"]["code"], 405, "{path}");
        assert_eq!(body["error"]["metadata"]["code"], "method_not_allowed", "{path}");
    }
    assert_eq!(node.ask("hello", json!({})).await.status(), 200);
    assert_eq!(node.events(1).await.len(), 1, "reading is no usage");
    node.running.stop().await;
}
