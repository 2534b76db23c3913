//! What is only read, and how members get in.

use super::*;

#[tokio::test]
async fn answers_carry_the_revision_and_reads_say_how_fresh_they_are() {
    let world = World::filled().await;
    let fresh = world.call("GET", "organizations", None).await;
    let revision = world.cluster.state().revision.to_string();
    assert_eq!(fresh.headers["x-tollway-revision"], revision.as_str());
    assert!(fresh.headers.contains_key("x-tollway-applied"));
    assert!(!fresh.headers.contains_key("x-tollway-consistency"));
    let stale = world.call("GET", "organizations?consistency=stale", None).await;
    assert_eq!(stale.headers["x-tollway-consistency"], "stale");
    assert_eq!(
        stale.headers["x-tollway-applied"],
        world.cluster.state().applied.to_string().as_str()
    );
    let written = world.call("PUT", "organizations/p", Some(json!({}))).await;
    let header = written.headers["x-tollway-revision"].to_str().unwrap().to_owned();
    assert_eq!(written.ok()["revision"].to_string(), header);
}

#[tokio::test]
async fn usage_is_summed_by_what_is_asked_for() {
    let world = World::filled().await;
    let spend = crate::state::samples::spend(0, 10, 5);
    world
        .cluster
        .propose(Proposal::system(Command::RecordSpend(spend)))
        .await
        .unwrap();
    let all = world.get("usage").await;
    assert_eq!(all["total"]["cost"], "0.000000005");
    assert_eq!(all["freshness"], json!([{"partition": 0, "offset": 10}]));
    assert_eq!(all["source"], "state", "there is no billing store here");
    for query in [
        "usage?group_by=day,user",
        "usage?region=eu",
        "usage?from=2026-11-22T18:00:00Z",
    ] {
        world.call("GET", query, None).await.refused(503, "unavailable");
    }
    world
        .call("GET", "usage/reconciliation", None)
        .await
        .refused(503, "unavailable");
    let by = world
        .get("usage?group_by=organization,key,model,day&limit=1000")
        .await;
    let row = &by["data"][0];
    assert_eq!(
        (&row["organization"], &row["key"], &row["model"]),
        (&json!("o"), &json!("k"), &json!("a/m"))
    );
    assert_eq!(
        (&row["requests"], &row["tokens"]["output"]),
        (&json!(1), &json!(4))
    );
    let day = row["day"].as_str().unwrap();
    for (filter, rows) in [
        (format!("from={day}&to={day}"), 1),
        ("to=2020-01-01".to_owned(), 0),
        ("organization=nobody".to_owned(), 0),
        ("organization=o&provider=p".to_owned(), 1),
        ("team=t".to_owned(), 0),
    ] {
        let found = world.get(&format!("usage?group_by=key&{filter}")).await;
        assert_eq!(found["data"].as_array().unwrap().len(), rows, "{filter}");
    }
    let budget = world.get("budgets/b").await;
    assert_eq!(budget["exhausted"], false);
    assert_ne!(budget["resets_at"], Value::Null);
}

#[tokio::test]
async fn the_audit_trail_says_who_did_what_and_verifies() {
    let world = World::filled().await;
    let page = world.get("audit?action=provider.put").await;
    let record = &page["data"][0];
    assert_eq!(
        (&record["actor"], &record["target"]),
        (&json!("owner"), &json!("p"))
    );
    assert_eq!(record["after"]["base_url"], "https://api.example.com/v1");
    let verdict = world.get("audit/verify").await;
    assert_eq!(verdict["intact"], true);
    let newest = world
        .get(&format!("audit?after={}", verdict["count"].as_u64().unwrap() - 1))
        .await;
    assert_eq!(newest["data"][0]["hash"], verdict["head"]);
}

#[tokio::test]
async fn a_join_token_lets_one_member_in_once() {
    let world = World::start().await;
    let (_, request_pem) = crate::identity::material::request().unwrap();
    let join = |token: &Value, more: Value| {
        let mut body = json!({"token": token, "request_pem": request_pem});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let request = Request::post("/admin/v1/join").header("content-type", "application/json");
        world.send(request.body(Body::from(body.to_string())).unwrap())
    };
    let token = world
        .post("join-tokens", json!({"kind": "node", "region": "eu"}))
        .await["token"]
        .clone();
    let node = json!({"node": {"id": "n1"}});
    let elsewhere = json!({"node": {"id": "n1", "region": "us"}});
    join(&token, elsewhere).await.refused(403, "forbidden");
    let joined = join(&token, node.clone()).await.ok();
    assert_eq!(
        (&joined["region"], &joined["replica_id"]),
        (&json!("eu"), &Value::Null)
    );
    assert!(joined["secrets"]["node"]["peppers"]["1"].is_string(), "{joined}");
    let again = join(&token, node).await.ok();
    assert_eq!(
        again["secrets"], joined["secrets"],
        "a lost answer does not cost the token"
    );
    join(&token, json!({"node": {"id": "n2"}}))
        .await
        .refused(403, "forbidden");
    assert_eq!(world.get("nodes/n1").await["region"], "eu");
    assert_eq!(world.get("nodes").await["data"][0]["connection"], Value::Null);

    let token = world.post("join-tokens", json!({"kind": "replica"})).await["token"].clone();
    join(&token, json!({"node": {"id": "n3"}}))
        .await
        .refused(422, "invalid");
    let replica = json!({"replica": {"peer_address": "127.0.0.1:1", "admin_url": "https://127.0.0.1:2"}});
    let joined = join(&token, replica.clone()).await.ok();
    assert_eq!(joined["replica_id"], 2);
    assert!(joined["secrets"]["replica"]["sealing_key_b64"].is_string());
    let broken = Request::post("/admin/v1/join").header("content-type", "application/json");
    let body = json!({"token": world.post("join-tokens", json!({"kind": "replica"})).await["token"],
        "request_pem": "nonsense", "replica": replica["replica"]});
    let refused = world
        .send(broken.body(Body::from(body.to_string())).unwrap())
        .await
        .refused(422, "invalid");
    assert_eq!(refused["field"], "request_pem");
}

#[tokio::test]
async fn a_replica_that_stopped_refuses_writes_and_answers_stale_reads_only() {
    let world = World::filled().await;
    world.cluster.shutdown().await;
    let refused = world.call("PUT", "organizations/o2", Some(json!({}))).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(503, "unavailable");
    world.get("organizations?consistency=stale").await;
    world
        .call("GET", "organizations", None)
        .await
        .refused(503, "unavailable");
}

#[tokio::test]
async fn health_and_the_document_need_no_key() {
    let world = World::start().await;
    for path in ["/livez", "/readyz", "/metrics", "/admin/v1/openapi.json"] {
        let reply = world.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
    let cluster = world.get("cluster").await;
    assert_eq!(
        (&cluster["leader"], &cluster["members"][0]["voter"]),
        (&json!(1), &json!(true))
    );
}

#[tokio::test]
async fn a_forecast_draws_the_last_week_on_and_a_budget_its_own_window() {
    let world = World::filled().await;
    let mut spend = crate::state::samples::spend(0, 10, 7_000);
    spend.sums[0].cell.day = clock::now().day();
    world
        .cluster
        .propose(Proposal::system(Command::RecordSpend(spend)))
        .await
        .unwrap();
    for (filter, spent) in [
        ("", "0.000007"),
        ("organization=o&key=k", "0.000007"),
        ("period=daily&project=j", "0.000007"),
        ("team=t", "0"),
    ] {
        let found = world.get(&format!("usage/forecast?{filter}")).await;
        assert_eq!(found["spent"], spent, "{filter}: {found}");
        let [spent, forecast] = ["spent", "forecast"].map(|name| found[name].as_str().unwrap());
        let [spent, forecast] = [spent, forecast].map(|text| text.parse::<f64>().unwrap());
        assert!(forecast >= spent, "{filter}: {found}");
    }
    world
        .call("GET", "usage/forecast?period=lifetime", None)
        .await
        .refused(400, "invalid_request");
    let budget = world.get("budgets/b").await;
    assert!(budget["forecast"].is_string(), "{budget}");
    assert_eq!(budget["exhausted_at"], Value::Null);
}
