//! Each noun through its whole life: made, read, replaced, listed, removed.

use super::*;

/// A change to each noun's body, and where it shows.
fn edit(path: &str, mut body: Value) -> (Value, &'static str, Value) {
    let (field, value) = match path.split('/').next().unwrap() {
        "providers" if path.contains("credentials") => ("regions", json!(["eu", "us"])),
        "providers" => ("enabled", json!(false)),
        "models" => ("context_tokens", json!(9000)),
        "endpoints" => ("rank", json!(3)),
        "budgets" => ("limit", json!("13.000000001")),
        "notices" => ("reason", json!("old")),
        _ => ("name", json!("Another name")),
    };
    body[field] = value.clone();
    (body, field, value)
}

#[tokio::test]
async fn every_noun_is_made_read_replaced_listed_and_removed() {
    let world = World::start().await;
    for (path, body) in nouns() {
        let made = world.put(path, body.clone()).await;
        let read = world.get(path).await;
        assert_eq!(made, read, "{path}");
        let (body, field, value) = edit(path, body);
        let replaced = world.put(path, body).await;
        assert_eq!(replaced[field], value, "{path}");
        assert!(
            replaced["revision"].as_u64() > made["revision"].as_u64(),
            "{path}"
        );
        assert_eq!(world.get(path).await, replaced, "{path}");
        let list = match path {
            "providers/p/credentials/main" => "providers/p/credentials",
            _ => path.split('/').next().unwrap(),
        };
        let page = world.get(list).await;
        assert!(
            page["data"].as_array().unwrap().contains(&replaced),
            "{path}: {page}"
        );
    }
    for (path, _) in nouns().into_iter().rev() {
        world.call("DELETE", path, None).await.ok();
        world.call("GET", path, None).await.refused(404, "not_found");
        world.call("DELETE", path, None).await.refused(404, "not_found");
    }
}

#[tokio::test]
async fn a_slash_in_an_id_may_be_escaped() {
    let world = World::filled().await;
    assert_eq!(world.get("models/a%2Fm").await, world.get("models/a/m").await);
    assert_eq!(
        world.get("endpoints/p%2Fa%2Fm").await,
        world.get("endpoints/p/a/m").await
    );
}

#[tokio::test]
async fn a_secret_goes_in_and_never_comes_out() {
    let world = World::filled().await;
    for path in [
        "providers/p/credentials/main",
        "providers/p/credentials",
        "audit?limit=1000",
    ] {
        let text = world.get(path).await.to_string();
        assert!(
            !text.contains("hunter2") && !text.contains("sealed") && !text.contains("ciphertext"),
            "{text}"
        );
    }
    let state = world.cluster.state();
    let kept = state.credentials.values().next().unwrap();
    let aad = kept.value.aad();
    let opened = tollway_shared::seal::open(&Key::new([7; 32]), &aad, &kept.value.sealed).unwrap();
    assert_eq!(opened.expose(), b"hunter2");
}

#[tokio::test]
async fn each_provider_has_credential_ids_of_its_own() {
    let world = World::filled().await;
    world
        .put(
            "providers/q",
            json!({"dialect": "openai", "base_url": "https://q.example.com/v1"}),
        )
        .await;
    let other = world
        .put("providers/q/credentials/main", json!({"secret": "other"}))
        .await;
    assert_eq!((&other["provider"], &other["version"]), (&json!("q"), &json!(1)));
    world
        .put("providers/q/credentials/main", json!({"secret": "newer"}))
        .await;
    assert_eq!(world.get("providers/p/credentials/main").await["version"], 1);
    assert_eq!(
        world.get("providers/q/credentials").await["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let state = world.cluster.state();
    let opened: Vec<_> = state
        .credentials
        .iter()
        .map(|(key, kept)| {
            let (kept, root) = (&kept.value, Key::new([7; 32]));
            let aad = kept.aad();
            let plain = tollway_shared::seal::open(&root, &aad, &kept.sealed).unwrap();
            (
                key.to_string(),
                String::from_utf8(plain.expose().clone()).unwrap(),
            )
        })
        .collect();
    let expected = [("p/main", "hunter2"), ("q/main", "newer")];
    assert_eq!(
        opened,
        expected.map(|(key, secret)| (key.to_owned(), secret.to_owned()))
    );
    world
        .call("DELETE", "providers/q/credentials/main", None)
        .await
        .ok();
    world
        .call("DELETE", "providers/q/credentials/main", None)
        .await
        .refused(404, "not_found");
    assert_eq!(world.get("providers/p/credentials/main").await["version"], 1);
}

#[tokio::test]
async fn prices_are_added_listed_and_taken_back_before_they_apply() {
    let world = World::filled().await;
    let prices = json!({"input": "0.5", "output": "2", "input_cache_read": "0.05"});
    let first = world
        .post("prices", json!({"endpoint": "p/a/m", "prices": prices}))
        .await;
    assert_eq!(first["effective_from"], "1970-01-01T00:00:00.000Z");
    assert_eq!(first["prices"]["input_cache_read"], "0.05");
    let body = json!({"endpoint": "p/a/m", "prices": prices, "effective_from": "2999-01-01T00:00:00Z"});
    let later = world.post("prices", body).await;
    let page = world.get("prices?endpoint=p/a/m").await;
    assert_eq!(page["data"], json!([first, later]));
    let path = |price: &Value| format!("prices/{}", price["id"].as_str().unwrap());
    assert_eq!(world.get(&path(&first)).await, first);
    world.call("DELETE", &path(&later), None).await.ok();
    world
        .call("DELETE", &path(&first), None)
        .await
        .refused(409, "conflict");
    let body = json!({"endpoint": "p/a/m", "prices": {"input": "-1", "output": "2"}});
    let refused = world
        .call("POST", "prices", Some(body))
        .await
        .refused(422, "invalid");
    assert_eq!(refused["field"], "prices.input");
}

#[tokio::test]
async fn a_key_is_shown_once_rotated_and_revoked() {
    let world = World::filled().await;
    let made = world
        .post("keys", json!({"project": "j", "name": "ci", "models": ["a/m"]}))
        .await;
    let text = made["key"].as_str().unwrap();
    assert!(text.starts_with("sk-tw-v1-") && text.ends_with(made["last4"].as_str().unwrap()));
    let path = format!("keys/{}", made["id"].as_str().unwrap());
    let read = world.get(&path).await;
    assert_eq!(read["key"], Value::Null);
    assert!(!world.get("keys?project=j").await.to_string().contains(text));
    let rotated = world
        .post(&format!("{path}/rotate"), json!({"grace_seconds": 60}))
        .await;
    assert_ne!(rotated["key"], made["key"]);
    assert_eq!(
        (&rotated["rotated_from"], &rotated["models"]),
        (&made["id"], &json!(["a/m"]))
    );
    assert_ne!(
        world.get(&path).await["expires_at"],
        Value::Null,
        "the old key ends"
    );
    let revoked = world.post(&format!("{path}/revoke"), json!({})).await;
    assert_ne!(revoked["revoked_at"], Value::Null);
    let again = world.call("POST", &format!("{path}/revoke"), None).await.ok();
    assert_eq!(again["revoked_at"], revoked["revoked_at"]);
    world
        .call("POST", &format!("{path}/rotate"), None)
        .await
        .refused(409, "conflict");
}

#[tokio::test]
async fn a_retry_with_the_same_idempotency_key_gets_the_same_key_text() {
    let world = World::filled().await;
    let body = json!({"project": "j"});
    let first = world.idempotent("abc", "POST", "keys", body.clone()).await.ok();
    let again = world
        .idempotent("\"abc\"", "POST", "keys", body.clone())
        .await
        .ok();
    assert_eq!(first, again, "the quoted form is the same key");
    assert_eq!(world.get("keys").await["data"].as_array().unwrap().len(), 1);
    let other = world
        .idempotent("abc", "POST", "keys", json!({"project": "j", "name": "x"}))
        .await;
    other.refused(422, "idempotency_reused");
    for (path, body) in [
        (
            "prices",
            json!({"endpoint": "p/a/m", "prices": {"input": "1", "output": "2"}}),
        ),
        ("admins", json!({"id": "bob", "role": "viewer"})),
        ("join-tokens", json!({"kind": "node", "region": "eu"})),
        (
            &format!("keys/{}/rotate", first["id"].as_str().unwrap()),
            json!({}),
        ),
    ] {
        let first = world.idempotent(path, "POST", path, body.clone()).await.ok();
        assert_eq!(
            first,
            world.idempotent(path, "POST", path, body).await.ok(),
            "{path}"
        );
    }
    let secret = json!({"secret": "next"});
    let path = "providers/p/credentials/main";
    let first = world.idempotent("cred", "PUT", path, secret.clone()).await.ok();
    assert_eq!(first["version"], 2);
    assert_eq!(first, world.idempotent("cred", "PUT", path, secret).await.ok());
    let long = "x".repeat(256);
    let refused = world
        .idempotent(&long, "POST", "keys", body)
        .await
        .refused(400, "invalid_request");
    assert_eq!(refused["field"], "Idempotency-Key");
}

#[tokio::test]
async fn what_is_still_used_is_not_removed() {
    let world = World::filled().await;
    for path in ["providers/p", "models/a/m", "organizations/o", "teams/t"] {
        world.call("DELETE", path, None).await.refused(409, "conflict");
    }
    world
        .call("DELETE", "admins/owner", None)
        .await
        .refused(409, "conflict");
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let world = World::start().await;
    for number in 0..7 {
        world.put(&format!("organizations/o{number}"), json!({})).await;
    }
    let mut found = Vec::new();
    let mut after = String::new();
    for _ in 0..4 {
        let page = world.get(&format!("organizations?limit=2{after}")).await;
        let rows = page["data"].as_array().unwrap();
        assert!(rows.len() <= 2);
        found.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["o0", "o1", "o2", "o3", "o4", "o5", "o6"]);
}

#[tokio::test]
async fn a_list_has_only_what_its_filters_name() {
    let world = World::filled().await;
    for (list, rows) in [
        ("endpoints?model=a/m", 1),
        ("endpoints?model=a/m&provider=other", 0),
        ("notices?model=a/other", 0),
        ("teams?organization=o", 1),
        ("projects?organization=o&team=other", 0),
        ("budgets?level=organization", 1),
        ("budgets?level=organization&of=other", 0),
        ("prices?endpoint=other", 0),
        ("keys?project=other", 0),
    ] {
        let page = world.get(list).await;
        assert_eq!(page["data"].as_array().unwrap().len(), rows, "{list}: {page}");
    }
}
