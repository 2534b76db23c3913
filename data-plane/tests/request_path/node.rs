//! A whole data plane on loopback, and what a test asks of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollway_data::catalog::{Live, NodeSecrets};
use tollway_data::config::Config;
use tollway_data::plane::Names;
use tollway_data::run::{self, Running};
use tollway_data::{clock, usage};
use tollway_proto::push::encode_resource;
use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::{
    AuthScheme, Credential, CredentialOwner, Dialect, Endpoint, Model, OnDisconnect, PriceVersion, Provider,
    credential_aad,
};
use tollway_shared::cost::{self, Prices};
use tollway_shared::ids::{
    ApiKeyId, ClusterId, CredentialId, EndpointId, ModelId, NodeId, NoticeId, OrganizationId, PriceId,
    ProjectId, ProviderId, Region,
};
use tollway_shared::key_text::{KeyKind, mint};
use tollway_shared::labels::Labels;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::notice::Notice;
use tollway_shared::seal::{self, Key};
use tollway_shared::snapshot::{Resource, Snapshot};
use tollway_shared::tenant::{ApiKey, Organization, Project};
use tollway_shared::time::UnixMillis;

use crate::grantor::Grantor;
use crate::log::{Log, events_in};

pub(crate) const MODEL: &str = "acme/one";
pub(crate) const PARTITIONS: i32 = 2;
pub(crate) const REGION_KEY: [u8; 32] = [2; 32];
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Node {
    pub(crate) running: Running,
    pub(crate) live: Live,
    pub(crate) key: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) http: reqwest::Client,
}

pub(crate) fn api_key(project: &str, id: &str, digest: [u8; 32]) -> ApiKey {
    ApiKey {
        id: ApiKeyId::trusted(id),
        project: ProjectId::trusted(project),
        name: id.into(),
        digest,
        pepper_version: 1,
        last4: "xxxx".into(),
        models: Vec::new(),
        created_at: UnixMillis(0),
        expires_at: None,
        revoked_at: None,
        rotated_from: None,
        labels: Labels::new(),
    }
}

pub(crate) fn model(id: &str) -> Resource {
    Resource::Model(Model {
        id: ModelId::trusted(id),
        name: id.into(),
        description: String::new(),
        context_tokens: 1_000,
        created_at: UnixMillis(0),
    })
}

/// A provider with a credential and an endpoint of [`MODEL`] at it, one dollar per million in, two out, and a price per request where its
/// name begins with `fee`.
pub(crate) fn served_by(
    scripted: &Scripted,
    name: &str,
    dialect: Dialect,
    rank: u32,
    region_key: &Key,
) -> Vec<Resource> {
    let provider = ProviderId::trusted(name);
    let credential = CredentialId::trusted(format!("{name}-main"));
    let endpoint = EndpointId::trusted(format!("{name}/{MODEL}"));
    let aad = credential_aad(&provider, &credential, 1, None);
    let other_key = Key::new([3; 32]);
    let sealing_key = if name == "locked" { &other_key } else { region_key };
    vec![
        Resource::Provider(Provider {
            id: provider.clone(),
            name: name.into(),
            dialect,
            base_url: format!("{}/v1", scripted.base_url()),
            auth: if dialect == Dialect::Anthropic {
                AuthScheme::XApiKey
            } else {
                AuthScheme::Bearer
            },
            private_network: true,
            stream_usage: true,
            output_cap: None,
            bills_after_cancel: name.starts_with("bills"),
            on_disconnect: match name.rsplit('-').next() {
                Some("aborts") => Some(OnDisconnect::Abort),
                Some("drains") => Some(OnDisconnect::Drain {
                    cap_ms: 30,
                    cap_tokens: None,
                }),
                Some("lasts") => Some(OnDisconnect::Drain {
                    cap_ms: 60_000,
                    cap_tokens: None,
                }),
                Some("counts") => Some(OnDisconnect::Drain {
                    cap_ms: 60_000,
                    cap_tokens: Some(10),
                }),
                Some("whole") => Some(OnDisconnect::DrainFully),
                _ => None,
            },
            connect_timeout_ms: 2_000,
            first_byte_timeout_ms: if name == "thinks" { 400 } else { 1_500 },
            idle_timeout_ms: if name == "thinks" { 5_000 } else { 600 },
            enabled: true,
        }),
        Resource::Credential(Credential {
            id: credential,
            provider: provider.clone(),
            version: 1,
            owner: None,
            regions: Vec::new(),
            sealed: seal::seal(sealing_key, &aad, b"provider-secret"),
            created_at: UnixMillis(0),
        }),
        Resource::Endpoint(Endpoint {
            id: endpoint.clone(),
            model: ModelId::trusted(MODEL),
            provider,
            upstream_model: "tw-small".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank,
            enabled: true,
        }),
        Resource::Price(PriceVersion {
            id: PriceId::trusted(format!("price-{name}")),
            endpoint,
            effective_from: UnixMillis(0),
            prices: Prices {
                request: name.starts_with("fee").then_some(NanoUsd(7_000_000)),
                ..Prices::flat(Price(1_000_000_000), Price(2_000_000_000))
            },
        }),
    ]
}

pub(crate) fn put(snapshot: &mut Snapshot, resource: Resource) {
    let digest = seal::sha256(&encode_resource(&resource));
    snapshot.put(resource, digest);
}

impl Node {
    pub(crate) async fn start(providers: &[(&Scripted, &str, Dialect)]) -> Self {
        Self::start_with(providers, |_| {}).await
    }

    /// The same, with other settings.
    pub(crate) async fn start_with(
        providers: &[(&Scripted, &str, Dialect)],
        set: impl FnOnce(&mut Config),
    ) -> Self {
        Self::start_leased(providers, None, set).await
    }

    /// The same, with somebody to lease budgets from, under the name that it has there.
    pub(crate) async fn start_leased(
        providers: &[(&Scripted, &str, Dialect)],
        grantor: Option<(&Grantor, &str)>,
        set: impl FnOnce(&mut Config),
    ) -> Self {
        let (pepper, region_key) = (Key::new([1; 32]), Key::new(REGION_KEY));
        let key = mint(KeyKind::Inference, &[7; 32]).expose().clone();
        let mut snapshot = Snapshot::default();
        put(&mut snapshot, model(MODEL));
        put(&mut snapshot, model("acme/empty"));
        put(&mut snapshot, model("acme/old"));
        put(
            &mut snapshot,
            Resource::Notice(Notice {
                id: NoticeId::trusted("n"),
                model: ModelId::trusted("acme/old"),
                endpoint: None,
                deprecated_at: UnixMillis(0),
                sunset_at: Some(UnixMillis(1)),
                successor: Some(ModelId::trusted(MODEL)),
                reason: "old".into(),
                url: None,
            }),
        );
        put(
            &mut snapshot,
            Resource::Organization(Organization {
                id: OrganizationId::trusted("org"),
                name: "org".into(),
                enabled: true,
                adjustment_bps: 0,
            }),
        );
        put(
            &mut snapshot,
            Resource::Project(Project {
                id: ProjectId::trusted("project"),
                organization: OrganizationId::trusted("org"),
                team: None,
                name: "project".into(),
                enabled: true,
                labels: Labels::new(),
            }),
        );
        let digest = seal::key_digest(&pepper, &key);
        put(&mut snapshot, Resource::ApiKey(api_key("project", "key", digest)));
        for (rank, (scripted, name, dialect)) in (0..).zip(providers) {
            for resource in served_by(scripted, name, *dialect, rank, &region_key) {
                put(&mut snapshot, resource);
            }
        }
        assert_eq!(snapshot.check(None), []);
        let live = Live::new(NodeSecrets {
            region_key: Some(region_key),
            peppers: [(1, pepper)].into(),
        });
        live.set_snapshot(Arc::new(snapshot), clock::now());
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            data_dir: dir.path().join("data"),
            usage: usage::Settings {
                partitions: PARTITIONS,
                dir: Some(dir.path().join("usage")),
                ..usage::Settings::default()
            },
            ..Config::default()
        };
        config.api.listen = ([127, 0, 0, 1], 0).into();
        config.ops.listen = ([127, 0, 0, 1], 0).into();
        config.server.threads = 2;
        config.drain.grace_ms = 0;
        config.drain.max_stream_ms = 200;
        set(&mut config);
        let names = Names {
            cluster: ClusterId::trusted("cluster"),
            region: Region::trusted("eu"),
            node: NodeId::trusted("node"),
        };
        let running = match grantor {
            None => run::serve(&config, names, live.clone()).await,
            Some((grantor, name)) => {
                let (call, desk) = grantor.joined(name);
                run::serve_leased(&config, names, live.clone(), call, desk).await
            }
        };
        let running = running.unwrap();
        // Another test of this process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            running,
            live,
            key,
            dir,
            http: reqwest::Client::new(),
        }
    }

    /// Puts a resource into the snapshot in force.
    pub(crate) fn put(&self, resource: Resource) {
        let mut snapshot = Snapshot::clone(&self.live.snapshot().unwrap());
        put(&mut snapshot, resource);
        self.live.set_snapshot(Arc::new(snapshot), clock::now());
    }

    /// Gives a provider one more credential.
    pub(crate) fn add_credential(&self, provider: &str, id: &str, secret: &str) {
        self.add_own_credential(provider, id, secret, None);
    }

    /// The same, of an organization's own.
    pub(crate) fn add_own_credential(
        &self,
        provider: &str,
        id: &str,
        secret: &str,
        owner: Option<CredentialOwner>,
    ) {
        let (provider, id) = (ProviderId::trusted(provider), CredentialId::trusted(id));
        let organization = owner.as_ref().map(|owner| &owner.organization);
        let aad = credential_aad(&provider, &id, 1, organization);
        let mut snapshot = Snapshot::clone(&self.live.snapshot().unwrap());
        put(
            &mut snapshot,
            Resource::Credential(Credential {
                id,
                provider,
                version: 1,
                owner,
                regions: Vec::new(),
                sealed: seal::seal(&Key::new(REGION_KEY), &aad, secret.as_bytes()),
                created_at: UnixMillis(0),
            }),
        );
        assert_eq!(snapshot.check(None), []);
        self.live.set_snapshot(Arc::new(snapshot), clock::now());
    }

    /// Lets the key use one model alone.
    pub(crate) fn restrict_key(&self, model: &str) {
        let mut snapshot = Snapshot::clone(&self.live.snapshot().unwrap());
        let digest = seal::key_digest(&Key::new([1; 32]), &self.key);
        let key = ApiKey {
            models: vec![ModelId::trusted(model)],
            ..api_key("project", "key", digest)
        };
        put(&mut snapshot, Resource::ApiKey(key));
        assert_eq!(snapshot.check(None), []);
        self.live.set_snapshot(Arc::new(snapshot), clock::now());
    }

    pub(crate) fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let url = format!("{}/v1/chat/completions", self.running.api_url);
        self.http
            .post(url)
            .header("content-type", "application/json")
            .body(body)
    }

    pub(crate) async fn ask(&self, prompt: &str, extra: Value) -> reqwest::Response {
        let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        self.post(body.to_string())
            .bearer_auth(&self.key)
            .send()
            .await
            .unwrap()
    }

    /// Events, once there are at least `count`. They are waited for as long as more keep coming.
    pub(crate) async fn events(&self, count: usize) -> Vec<UsageEvent> {
        let (mut log, mut moved) = (Log::at(&self.dir.path().join("usage")), Instant::now());
        loop {
            if log.read_on() > 0 {
                moved = Instant::now();
            }
            let found = log.events.len();
            if found >= count || moved.elapsed() > SOON {
                assert_eq!(
                    found,
                    count,
                    "the last: {:#?}",
                    &log.events[found.saturating_sub(9)..]
                );
                return log.events;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn events_now(&self) -> Vec<UsageEvent> {
        events_in(&self.dir.path().join("usage"))
    }
}

pub(crate) fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("")
}

/// The JSON of a stream's events; `[DONE]` is `null`.
pub(crate) fn chunks(text: &str) -> Vec<Value> {
    text.split("\n\n")
        .filter_map(|event| event.trim().strip_prefix("data: "))
        .map(|data| {
            if data == "[DONE]" {
                Value::Null
            } else {
                serde_json::from_str(data).unwrap()
            }
        })
        .collect()
}

pub(crate) fn agrees(event: &UsageEvent, scripted: &Scripted) {
    let seen = scripted.seen();
    let seen = seen
        .iter()
        .find(|seen| seen.request_id.as_deref() == Some(event.request_id.as_str()))
        .unwrap();
    assert_eq!(event.usage_source, UsageSource::Provider);
    assert_eq!(
        (event.tokens.prompt(), event.tokens.completion()),
        (seen.used.prompt, seen.used.completion)
    );
    assert_eq!(event.charge, cost::charge(&event.tokens, &event.prices).unwrap());
    assert!(event.charge.total.0 > 0);
}
