//! Who may do what, from the document itself.

use super::*;

#[tokio::test]
async fn who_is_not_an_admin_learns_nothing() {
    let world = World::start().await;
    let no_key = Request::get("/admin/v1/providers").body(Body::empty()).unwrap();
    let refused = world.send(no_key).await;
    assert!(refused.headers.contains_key("www-authenticate"));
    refused.refused(401, "unauthenticated");
    let stranger = tollway_shared::key_text::mint(tollway_shared::key_text::KeyKind::Admin, &[9; 32]);
    for key in [stranger.expose().as_str(), "ak-tw-v1-short", "sk-tw-v1-x"] {
        let request = world
            .request(key, "GET", "providers")
            .body(Body::empty())
            .unwrap();
        world.send(request).await.refused(401, "unauthenticated");
    }
    let made = world.post("admins", json!({"id": "bob", "role": "viewer"})).await;
    let key = made["key"].as_str().unwrap();
    let ask = || {
        world
            .request(key, "GET", "providers")
            .body(Body::empty())
            .unwrap()
    };
    world.send(ask()).await.ok();
    world.call("DELETE", "admins/bob", None).await.ok();
    world.send(ask()).await.refused(401, "unauthenticated");
}

/// Every operation of the document with every role: exactly the roles that its `security` lists get past the door.
#[tokio::test]
async fn every_route_lets_in_exactly_the_roles_it_documents() {
    let world = World::start().await;
    let (_, document) = collected();
    let document = openapi::published(&document);
    let mut keys = Vec::new();
    for role in ["owner", "admin", "operator", "viewer"] {
        let made = world
            .post("admins", json!({"id": format!("the-{role}"), "role": role}))
            .await;
        keys.push((role, made["key"].as_str().unwrap().to_owned()));
    }
    let mut checked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let Some(allowed) = operation["security"][0].get(auth::SCHEME) else {
                let other_ways = ["/admin/v1/join", "/admin/v1/webhooks/payments"];
                assert!(other_ways.contains(&path.as_str()), "{path} is open");
                continue;
            };
            let allowed: BTreeSet<&str> = allowed
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one.as_str().unwrap())
                .collect();
            assert!(allowed.contains("owner"), "{method} {path}");
            assert_eq!(
                allowed.contains("viewer"),
                method == "get" || path == "/admin/v1/dry-run",
                "{method} {path}: viewers read and only read, and every write that is tried is checked by itself"
            );
            if path.starts_with("/admin/v1/admins") && method != "get" {
                assert_eq!(allowed.len(), 1, "{method} {path}: only owners change admins");
            }
            let place = path.replace("{provider}", "none").replace("{id}", "999999");
            for (role, key) in &keys {
                let request = Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(&place)
                    .header("authorization", format!("Bearer {key}"))
                    .header("content-type", "application/json")
                    .body(Body::from("[]")) // a body that no operation takes: nothing is changed by those who get in
                    .unwrap();
                let reply = world.send(request).await;
                assert_ne!(reply.status, 401, "{role} {method} {path}");
                assert_eq!(
                    reply.status == 403,
                    !allowed.contains(role),
                    "{role} {method} {path}: {}",
                    reply.body
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 200, "{checked}");
}

#[tokio::test]
async fn a_route_that_states_no_access_is_closed_to_everybody() {
    let mut world = World::start().await;
    let document = json!({"paths": {
        "/admin/v1/stated": {"get": {"security": [{auth::SCHEME: ["owner"]}]}},
        "/admin/v1/forgotten": {"get": {}, "put": {"security": []}},
    }});
    let api = crate::admin::Api {
        cluster: world.cluster.clone(),
        root: Key::new([7; 32]),
        fleet: Arc::new(NoFleet),
        billing: Billing::new(Place::None).0,
        stopping: CancellationToken::new(),
        access: Arc::new(auth::AccessTable::of_document(&document, &["/open"])),
        document: axum::body::Bytes::new(),
        routes: Router::new(),
        scratch: None,
    };
    let handler = || axum::routing::get(|| async { "{}" });
    let routes = Router::new()
        .route("/open", handler())
        .route("/admin/v1/stated", handler())
        .route("/admin/v1/forgotten", handler().put(|| async { "{}" }))
        .route("/admin/v1/unknown/{id}", handler());
    world.router = crate::admin::guarded(routes, Arc::new(api));
    world.call("GET", "stated", None).await.ok();
    world.call("PUT", "forgotten", None).await.ok();
    for path in ["forgotten", "unknown/1"] {
        for method in ["GET", "HEAD"] {
            let reply = world.call(method, path, None).await;
            assert_eq!(reply.status, 500, "{method} {path}");
        }
    }
    world
        .call("DELETE", "unknown/1", None)
        .await
        .refused(405, "method_not_allowed");
    let open = |method: &str| Request::builder().method(method).uri("/open").body(Body::empty());
    for method in ["GET", "HEAD"] {
        assert_eq!(world.send(open(method).unwrap()).await.status, 200);
    }
}
