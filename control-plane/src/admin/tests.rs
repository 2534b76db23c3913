//! The API over real HTTP exchanges against a replica of its own on disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tollway_proto::command::{Command, InitCluster, Member, Outcome, Role};
use tollway_shared::ids::{AdminId, ClusterId, ReplicaId};
use tollway_shared::seal::Key;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

use super::member::new_admin;
use super::{NoFleet, auth, openapi};
use crate::clock;
use crate::identity::Authority;
use crate::raft::{self, Cluster, PeerConnector, Proposal, RaftConfig, Timings};

struct Nobody;

impl PeerConnector for Nobody {
    fn channel(&self, _: ReplicaId, _: &str) -> Channel {
        Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }
}

/// A cluster of one replica with its router and an owner's key.
struct World {
    router: Router,
    cluster: Cluster,
    owner: String,
    _dir: tempfile::TempDir,
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    #[track_caller]
    fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.body
        );
        self.body
    }

    #[track_caller]
    fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!(
            (self.status, self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:tollway:problem:{code}"));
        for field in ["title", "detail", "instance"] {
            assert!(
                self.body[field].as_str().is_some_and(|text| !text.is_empty()),
                "{}",
                self.body
            );
        }
        self.body
    }
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = ClusterId::trusted("c-test");
        let config = RaftConfig {
            id: ReplicaId(1),
            cluster: id.clone(),
            data_dir: dir.path().to_owned(),
            timings: Timings::default(),
        };
        let cluster = raft::start(config, Arc::new(Nobody), Arc::new(clock::now))
            .await
            .unwrap();
        let member = Member {
            peer_address: "127.0.0.1:7601".into(),
            admin_url: "http://127.0.0.1:7600".into(),
        };
        cluster.init(member).await.unwrap();
        let root = Key::new([7; 32]);
        let authority = Authority::create(id.clone(), clock::now()).unwrap();
        let (owner, admin) = new_admin(&root, AdminId::trusted("owner"), String::new(), Role::Owner);
        let command = Command::InitCluster(InitCluster {
            cluster: id,
            authority_pem: authority.certificate_pem().to_owned(),
            authority_key: authority.sealed_key(&root),
            admin,
        });
        let made = cluster.propose(Proposal::system(command)).await.unwrap();
        assert!(matches!(made, Outcome::Done(_)), "{made:?}");
        let router = super::router(cluster.clone(), root, Arc::new(NoFleet), CancellationToken::new());
        Self {
            router,
            cluster,
            owner,
            _dir: dir,
        }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    fn request(&self, key: &str, method: &str, path: &str) -> axum::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("/admin/v1/{path}"))
            .header("authorization", format!("Bearer {key}"))
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let request = self.request(&self.owner, method, path);
        let request = match body {
            None => request.body(Body::empty()),
            Some(body) => request
                .header("content-type", "application/json")
                .body(Body::from(body.to_string())),
        };
        self.send(request.unwrap()).await
    }

    async fn idempotent(&self, key: &str, method: &str, path: &str, body: Value) -> Reply {
        let request = self
            .request(&self.owner, method, path)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Body::from(body.to_string()));
        self.send(request.unwrap()).await
    }

    async fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).await.ok()
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        self.call("PUT", path, Some(body)).await.ok()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call("POST", path, Some(body)).await.ok()
    }

    /// One of each noun of the catalog and one tenant.
    async fn filled() -> Self {
        let world = Self::start().await;
        for (path, body) in nouns() {
            world.put(path, body).await;
        }
        world
    }
}

/// Paths and bodies in an order in which each refers only to earlier ones.
fn nouns() -> Vec<(&'static str, Value)> {
    vec![
        (
            "providers/p",
            json!({"dialect": "openai", "base_url": "https://api.example.com/v1"}),
        ),
        (
            "providers/p/credentials/main",
            json!({"secret": "hunter2", "regions": ["eu"]}),
        ),
        (
            "models/a/m",
            json!({"context_tokens": 8192, "description": "A model."}),
        ),
        ("models/a/n", json!({"context_tokens": 8192})),
        (
            "endpoints/p/a/m",
            json!({"model": "a/m", "provider": "p", "upstream_model": "m"}),
        ),
        ("organizations/o", json!({"name": "O"})),
        ("teams/t", json!({"organization": "o"})),
        ("projects/j", json!({"organization": "o", "team": "t"})),
        (
            "budgets/b",
            json!({"scope": {"organization": "o"}, "limit": "12.50", "period": "monthly"}),
        ),
        (
            "notices/n",
            json!({"model": "a/m", "successor": "a/n", "deprecated_at": "2026-11-22T00:00:00Z"}),
        ),
    ]
}

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
    let aad =
        tollway_shared::catalog::credential_aad(&kept.value.provider, &kept.value.id, kept.value.version);
    let opened = tollway_shared::seal::open(&Key::new([7; 32]), &aad, &kept.value.sealed).unwrap();
    assert_eq!(opened.expose(), b"hunter2");
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
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(super::BODY_BYTES_MAX));
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
        ("usage?group_by=weather", "group_by"),
        ("usage?from=yesterday", "from"),
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
    let (_, document) = super::collected();
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
                assert_eq!(
                    path, "/admin/v1/join",
                    "only joining is authenticated in another way"
                );
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
                method == "get",
                "{method} {path}: viewers read and only read"
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
    let api = super::Api {
        cluster: world.cluster.clone(),
        root: Key::new([7; 32]),
        fleet: Arc::new(NoFleet),
        stopping: CancellationToken::new(),
        access: auth::AccessTable::of_document(&document, &["/open"]),
        document: axum::body::Bytes::new(),
    };
    let handler = || axum::routing::get(|| async { "{}" });
    let routes = Router::new()
        .route("/open", handler())
        .route("/admin/v1/stated", handler())
        .route("/admin/v1/forgotten", handler().put(|| async { "{}" }))
        .route("/admin/v1/unknown/{id}", handler());
    world.router = super::guarded(routes, Arc::new(api));
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
