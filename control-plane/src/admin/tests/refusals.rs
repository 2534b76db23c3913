//! What is wrong with a request is said, and where.

use super::*;

#[tokio::test]
async fn a_refused_body_names_its_field() {
    let world = World::filled().await;
    let cases = [
        (
            "PUT",
            "providers/q",
            json!({"dialect": "openai", "base_url": "https://x/v1", "colour": 1}),
            "colour",
        ),
        (
            "PUT",
            "providers/q",
            json!({"base_url": "https://x/v1"}),
            "dialect",
        ),
        (
            "PUT",
            "providers/q",
            json!({"dialect": "smoke", "base_url": "https://x/v1"}),
            "dialect",
        ),
        (
            "PUT",
            "providers/q",
            json!({"dialect": "openai", "base_url": "ftp://x"}),
            "base_url",
        ),
        (
            "PUT",
            "providers/q",
            json!({"dialect": "openai", "base_url": "https://x/v1", "idle_timeout_ms": -1}),
            "idle_timeout_ms",
        ),
        (
            "PUT",
            "models/a/x",
            json!({"context_tokens": "many"}),
            "context_tokens",
        ),
        (
            "PUT",
            "endpoints/p/a/x",
            json!({"model": "nope", "provider": "p", "upstream_model": "m"}),
            "model",
        ),
        (
            "PUT",
            "endpoints/p/a/x",
            json!({"model": "a/zzz", "provider": "p", "upstream_model": "m"}),
            "model",
        ),
        (
            "PUT",
            // One byte more than leaves room for the name of the budget of its credit.
            concat!(
                "organizations/",
                "o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-o23456789-22"
            ),
            json!({"name": "long"}),
            "id",
        ),
        (
            "PUT",
            "teams/u",
            json!({"organization": "nobody"}),
            "organization",
        ),
        (
            "PUT",
            "budgets/c",
            json!({"scope": {"organization": "o"}, "limit": "1e3", "period": "daily"}),
            "limit",
        ),
        (
            "PUT",
            "budgets/c",
            json!({"scope": {"organization": "o"}, "limit": "0", "period": "daily"}),
            "limit",
        ),
        (
            "PUT",
            "budgets/c",
            json!({"scope": {"organization": "o"}, "limit": 5, "period": "daily"}),
            "limit",
        ),
        (
            "PUT",
            "budgets/c",
            json!({"scope": {"organization": "a b"}, "limit": "5", "period": "daily"}),
            "scope.organization",
        ),
        (
            "POST",
            "prices",
            json!({"endpoint": "p/a/m", "prices": {"input": "1"}}),
            "prices.output",
        ),
        (
            "POST",
            "prices",
            json!({"endpoint": "p/a/m", "prices": {"input": "1", "output": "1", "x": 1}}),
            "prices.x",
        ),
        (
            "POST",
            "keys",
            json!({"project": "j", "expires_at": "soon"}),
            "expires_at",
        ),
        (
            "POST",
            "keys",
            json!({"project": "j", "models": ["a/m", "nope"]}),
            "models[1]",
        ),
        ("POST", "join-tokens", json!({"kind": "node"}), "region"),
        ("POST", "join-tokens", json!({"kind": 1}), "kind"),
        (
            "PUT",
            "providers/p",
            json!({"dialect": true, "base_url": "https://a.example"}),
            "dialect",
        ),
        (
            "POST",
            "join-tokens",
            json!({"kind": "replica", "ttl_seconds": 0}),
            "ttl_seconds",
        ),
        ("PUT", "organizations/bad%20id", json!({}), "id"),
        (
            "PUT",
            "providers/p/credentials/x",
            json!({"secret": ""}),
            "secret",
        ),
    ];
    for (method, path, body, field) in cases {
        let shown = body.to_string();
        let refused = world.call(method, path, Some(body)).await.refused(422, "invalid");
        assert_eq!(refused["field"], field, "{shown}: {refused}");
        assert!(refused["detail"].as_str().unwrap().len() > 10, "{refused}");
    }
}

#[tokio::test]
async fn what_is_not_a_proper_request_says_so() {
    let world = World::start().await;
    let raw = |content_type: &str, body: &str| {
        world
            .request(&world.owner, "PUT", "organizations/o")
            .header("content-type", content_type)
            .body(Body::from(body.to_owned()))
            .unwrap()
    };
    world
        .send(raw("application/json", "{\"name\": "))
        .await
        .refused(400, "malformed_json");
    world
        .send(raw("application/json", "{} {}"))
        .await
        .refused(400, "malformed_json");
    let deep = format!("{{\"name\": {}{}}}", "[".repeat(200), "]".repeat(200));
    assert!(world.send(raw("application/json", &deep)).await.status < 500);
    let twice = world
        .send(raw("application/json", "{\"name\": \"a\", \"name\": \"b\"}"))
        .await;
    assert_eq!(twice.refused(422, "invalid")["field"], "name");
    world
        .send(raw("text/plain", "{}"))
        .await
        .refused(415, "unsupported_media_type");
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(BODY_BYTES_MAX));
    world
        .send(raw("application/json", &large))
        .await
        .refused(413, "too_large");
    world
        .call("GET", "nonsense", None)
        .await
        .refused(404, "unknown_route");
    let wrong = world.call("PATCH", "providers", None).await;
    assert!(wrong.headers.contains_key("allow"));
    wrong.refused(405, "method_not_allowed");
    for (path, field) in [
        ("providers?limit=0", "limit"),
        ("providers?limit=1001", "limit"),
        ("providers?colour=red", "colour"),
        ("providers?limit=1&limit=2", "limit"),
        ("providers?consistency=maybe", "consistency"),
        ("endpoints?model=nonsense", "model"),
        ("budgets?level=city", "level"),
        ("keys?project=%20", "project"),
        ("usage?group_by=weather", "group_by"),
        ("usage?from=yesterday", "from"),
        ("usage?from=2026-11-23&to=2026-11-22T23:59:59Z", "from"),
        ("usage?month=2026-13", "month"),
        ("usage?byok=maybe", "byok"),
        ("usage?organization=a%20b", "organization"),
        ("usage?key=", "key"),
        ("usage?model=m", "model"),
        ("usage/reconciliation?from=2026-11-23&to=2026-11-22", "from"),
        ("usage/reconciliation?to=2020-01-01", "from"),
    ] {
        let refused = world
            .call("GET", path, None)
            .await
            .refused(400, "invalid_request");
        assert_eq!(refused["field"], field, "{path}");
    }
}

#[tokio::test]
async fn a_stale_precondition_is_refused() {
    let world = World::start().await;
    let first = world
        .put("organizations/o?if_revision=0", json!({"name": "one"}))
        .await;
    let refused = world
        .call("PUT", "organizations/o?if_revision=0", Some(json!({})))
        .await;
    assert_eq!(
        refused.refused(412, "precondition_failed")["field"],
        "if_revision"
    );
    let path = format!("organizations/o?if_revision={}", first["revision"]);
    world.put(&path, json!({"name": "two"})).await;
    world
        .call("PUT", &path, Some(json!({"name": "three"})))
        .await
        .refused(412, "precondition_failed");
    assert_eq!(world.get("organizations/o").await["name"], "two");
    world
        .call("DELETE", &path, None)
        .await
        .refused(412, "precondition_failed");
}

/// Every field of every body, with values of every wrong kind: what is refused is refused by the field's name, in `field` and in words.
#[tokio::test]
async fn whatever_is_wrong_with_a_field_its_name_is_said() {
    let world = World::filled().await;
    let (_, document) = collected();
    let bodies = nouns()
        .into_iter()
        .map(|(path, body)| ("PUT", path, body))
        .chain([
            ("POST", "keys", json!({"project": "j"})),
            ("POST", "admins", json!({"id": "bob", "role": "viewer"})),
            ("POST", "join-tokens", json!({"kind": "node", "region": "eu"})),
            (
                "POST",
                "prices",
                json!({"endpoint": "p/a/m", "prices": {"input": "1", "output": "2"}}),
            ),
        ]);
    let wrong = [
        json!(null),
        json!(-1),
        json!(0.5),
        json!(true),
        json!([]),
        json!(["1", "2", "3", "4", "5", "6"]),
        json!({}),
        json!({"x": 1}),
        json!(""),
        json!("\u{0}"),
        json!("no such thing"),
        json!("9".repeat(40_000)),
    ];
    let mut refused = 0;
    for (method, path, body) in bodies {
        let template = match path.split('/').collect::<Vec<_>>()[..] {
            ["providers", _, "credentials", _] => "/providers/{provider}/credentials/{id}".to_owned(),
            [noun @ ("models" | "endpoints"), ..] => format!("/{noun}/{{*id}}"),
            [noun] => format!("/{noun}"),
            [noun, ..] => format!("/{noun}/{{id}}"),
            [] => unreachable!("every path has a noun"),
        };
        let paths = document["paths"].as_object().unwrap();
        let (_, operations) = paths
            .iter()
            .find(|(found, _)| found.ends_with(&template))
            .unwrap();
        let operation = &operations[method.to_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let name = schema.as_str().unwrap().rsplit('/').next().unwrap();
        let fields = document["components"]["schemas"][name]["properties"].as_object();
        for field in fields.unwrap().keys() {
            for value in &wrong {
                let mut body = body.clone();
                body[field] = value.clone();
                let answer = world.call(method, path, Some(body)).await;
                if answer.status < 300 || answer.status == 409 {
                    continue;
                }
                refused += 1;
                let said = &answer.body;
                let shown: String = value.to_string().chars().take(40).collect();
                let at = format!("{method} {path} {field} = {shown}: {said}");
                assert!(answer.status == 422 || answer.status == 400, "{at}");
                assert!(
                    said["field"]
                        .as_str()
                        .is_some_and(|at| at.starts_with(field.as_str())),
                    "{at}"
                );
                assert!(
                    said["detail"].as_str().unwrap().contains(&format!("`{field}")),
                    "{at}"
                );
            }
        }
    }
    assert!(refused > 250, "only {refused} were refused");
    // What serde would read as the fields in their order.
    let body = json!({"endpoint": "p/a/m", "prices": ["1", "2", null, null, null, null]});
    let listed = world.call("POST", "prices", Some(body)).await;
    assert_eq!(listed.refused(422, "invalid")["field"], "prices");
    for (path, body, field) in [
        (
            "providers/q",
            json!({"dialect": "openai", "base_url": "https://x/v1", "idle_timeout_ms": 0}),
            "idle_timeout_ms",
        ),
        ("models/a/x", json!({"context_tokens": 0}), "context_tokens"),
    ] {
        let zero = world.call("PUT", path, Some(body)).await;
        assert_eq!(zero.refused(422, "invalid")["field"], field);
    }
}

/// Nobody who sends JSON knows the names of our types.
#[tokio::test]
async fn what_a_field_must_be_is_told_in_plain_words() {
    let world = World::filled().await;
    let budget = |field: &str, value: Value| {
        let mut body = json!({"scope": {"organization": "o"}, "limit": "1", "period": "daily"});
        body[field] = value;
        ("budgets/c", body)
    };
    let mut fees = world.get("fees").await;
    let mut fee = |section: &str, value: Value| {
        let before = std::mem::replace(&mut fees[section], value);
        let body = fees.clone();
        fees[section] = before;
        ("fees", body)
    };
    let free = json!({"per_day": 1, "per_day_bought": 1, "bought": "-1"});
    for ((path, body), field, says) in [
        (
            budget("thresholds_percent", json!([300])),
            "thresholds_percent[0]",
            "must be a whole number from 0 to 255, not 300",
        ),
        (
            budget("scope", json!({})),
            "scope",
            "must be an object with exactly one field",
        ),
        (
            budget("mode", json!(1)),
            "mode",
            "must be a string or an object, not 1",
        ),
        (fee("card", json!(5)), "card", "must be an object, not 5"),
        (fee("free", free), "free.bought", "must not be negative"),
        (
            fee("card", json!({"bps": 10_001, "least": "0"})),
            "card.bps",
            "must be at most 10000",
        ),
        (
            fee("byok", json!({"bps": 1, "free_list": "-1"})),
            "byok.free_list",
            "must not be negative",
        ),
        (
            budget("limit", json!("-1")),
            "limit",
            "at most 2305843009.213693951 dollars",
        ),
    ] {
        let shown = body.to_string();
        let refused = world.call("PUT", path, Some(body)).await.refused(422, "invalid");
        assert_eq!(refused["field"], field, "{shown}: {refused}");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{shown}: {detail}");
    }
    let (path, mut body) = budget("mode", json!("soft"));
    body["per_request_max"] = json!("1");
    let soft = world.call("PUT", path, Some(body)).await.refused(422, "invalid");
    assert_eq!(soft["field"], "per_request_max");
    let raise = json!({"amount": "-1", "until": "2100-01-01T00:00:00Z"});
    let raised = world.call("POST", "budgets/b/raises", Some(raise)).await;
    assert_eq!(raised.refused(422, "invalid")["field"], "amount");
}
