//! Writes that are only tried.

use super::*;

fn put(path: &str, body: Value) -> Value {
    json!({"method": "PUT", "path": path, "body": body})
}

#[tokio::test]
async fn a_dry_run_judges_each_write_after_those_before_it_and_writes_nothing() {
    let world = World::start().await;
    let before = world.cluster.state();
    let mut writes: Vec<Value> = nouns().into_iter().map(|(path, body)| put(path, body)).collect();
    let price = json!({"endpoint": "p/a/m", "prices": {"input": "1", "output": "2"}});
    writes.push(json!({"method": "POST", "path": "prices", "body": price}));
    let answer = world.post("dry-run", json!({ "writes": writes })).await;
    assert_eq!(answer["refusals"], json!([]), "each refers to earlier ones");
    let after = world.cluster.state();
    assert_eq!((after.applied, after.revision), (before.applied, before.revision));
    assert!(after.providers.is_empty() && after.audit == before.audit);

    writes.insert(
        0,
        put(
            "endpoints/p%2Fa%2Fz",
            json!({"model": "a/z", "provider": "p", "upstream_model": "z"}),
        ),
    );
    writes.push(put("models/a%2Fx", json!({"context_tokens": "many"})));
    writes.push(put("nothing/x", json!({})));
    let last = writes.len() - 1;
    let answer = world.post("dry-run", json!({ "writes": writes })).await;
    let refused = |refusal: &Value| {
        (
            refusal["write"].as_u64().unwrap() as usize,
            refusal["problem"]["status"].as_u64().unwrap(),
        )
    };
    let refused: Vec<_> = answer["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(refused)
        .collect();
    assert_eq!(refused, [(0, 422), (last - 1, 422), (last, 404)], "{answer}");
    let field = &answer["refusals"][1]["problem"]["field"];
    assert_eq!(field, "context_tokens");
}

#[tokio::test]
async fn only_writes_that_do_nothing_else_can_be_tried_and_only_by_whom_they_are_allowed() {
    let world = World::filled().await;
    for (method, path) in [
        ("POST", "cluster/transfer"),
        ("DELETE", "models/a%2Fn"),
        ("POST", "keys"),
    ] {
        let body = json!({"writes": [{"method": method, "path": path, "body": {}}]});
        let refused = world
            .call("POST", "dry-run", Some(body))
            .await
            .refused(422, "invalid");
        assert_eq!(refused["field"], "writes[0].method");
    }
    let viewer = world.post("admins", json!({"id": "v", "role": "viewer"})).await;
    let body = json!({"writes": [put("organizations/x", json!({"name": "X"}))]});
    let request = world
        .request(viewer["key"].as_str().unwrap(), "POST", "dry-run")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()));
    let answer = world.send(request.unwrap()).await.ok();
    assert_eq!(answer["refusals"][0]["problem"]["code"], "forbidden", "{answer}");
}
