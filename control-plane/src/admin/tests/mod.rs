//! The API over real HTTP exchanges against a replica of its own on disk: the world that the tests beside this file share.

mod access;
mod arrival;
mod credits;
mod dry_run;
mod fees;
mod lag;
mod nouns;
mod refusals;
mod reports;
mod views;

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

use super::{BODY_BYTES_MAX, Fleet, NoFleet, auth, collected, new_admin, openapi};
use crate::billing::{Billing, Place};
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
    /// Where its billing store would be.
    store: std::path::PathBuf,
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
        Self::with(Arc::new(NoFleet)).await
    }

    async fn with(fleet: Arc<dyn Fleet>) -> Self {
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
        let store = dir.path().join("billing.sqlite");
        let (billing, _) = Billing::new(Place::File(store.clone()));
        let router = super::router(cluster.clone(), root, fleet, billing, CancellationToken::new());
        Self {
            router,
            cluster,
            owner,
            store,
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
