//! The whole data plane in one process, against the scripted provider: what callers see, and exactly one event per request.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tollway_data::catalog::{Live, NodeSecrets};
use tollway_data::config::Config;
use tollway_data::plane::Names;
use tollway_data::run::{self, Running};
use tollway_data::{clock, usage};
use tollway_proto::push::encode_resource;
use tollway_proto::usage::{EndState, LogLine, UsageEvent, UsageSource, log_file_name};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::{
    AuthScheme, Credential, Dialect, Endpoint, Model, PriceVersion, Provider, credential_aad,
};
use tollway_shared::cost::{self, Prices};
use tollway_shared::ids::{
    ApiKeyId, ClusterId, CredentialId, EndpointId, ModelId, NodeId, NoticeId, OrganizationId, PriceId,
    ProjectId, ProviderId, Region,
};
use tollway_shared::key_text::{KeyKind, mint};
use tollway_shared::money::Price;
use tollway_shared::notice::Notice;
use tollway_shared::seal::{self, Key};
use tollway_shared::snapshot::{Resource, Snapshot};
use tollway_shared::tenant::{ApiKey, Organization, Project};
use tollway_shared::time::UnixMillis;

const MODEL: &str = "acme/one";
const PARTITIONS: i32 = 2;
const SOON: Duration = Duration::from_secs(10);

struct Node {
    running: Running,
    live: Live,
    key: String,
    dir: tempfile::TempDir,
    http: reqwest::Client,
}

fn api_key(project: &str, id: &str, digest: [u8; 32]) -> ApiKey {
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
    }
}

fn model(id: &str) -> Resource {
    Resource::Model(Model {
        id: ModelId::trusted(id),
        name: id.into(),
        description: String::new(),
        context_tokens: 1_000,
        created_at: UnixMillis(0),
    })
}

/// A provider with a credential and an endpoint of [`MODEL`] at it, one dollar per million in, two out.
fn served_by(
    scripted: &Scripted,
    name: &str,
    dialect: Dialect,
    rank: u32,
    region_key: &Key,
) -> Vec<Resource> {
    let provider = ProviderId::trusted(name);
    let credential = CredentialId::trusted(format!("{name}-main"));
    let endpoint = EndpointId::trusted(format!("{name}/{MODEL}"));
    let aad = credential_aad(&provider, &credential, 1);
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
            bills_after_cancel: name == "bills",
            connect_timeout_ms: 2_000,
            first_byte_timeout_ms: 1_500,
            idle_timeout_ms: 600,
            enabled: true,
        }),
        Resource::Credential(Credential {
            id: credential,
            provider: provider.clone(),
            version: 1,
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
            rank,
            enabled: true,
        }),
        Resource::Price(PriceVersion {
            id: PriceId::trusted(format!("price-{name}")),
            endpoint,
            effective_from: UnixMillis(0),
            prices: Prices {
                input: Price(1_000_000_000),
                output: Price(2_000_000_000),
                input_cache_read: None,
                input_cache_write: None,
                output_reasoning: None,
                request: None,
            },
        }),
    ]
}

fn put(snapshot: &mut Snapshot, resource: Resource) {
    let digest = seal::sha256(&encode_resource(&resource));
    snapshot.put(resource, digest);
}

impl Node {
    async fn start(providers: &[(&Scripted, &str, Dialect)]) -> Self {
        let (pepper, region_key) = (Key::new([1; 32]), Key::new([2; 32]));
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
        let names = Names {
            cluster: ClusterId::trusted("cluster"),
            region: Region::trusted("eu"),
            node: NodeId::trusted("node"),
        };
        let running = run::serve(&config, names, live.clone()).await.unwrap();
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

    fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let url = format!("{}/v1/chat/completions", self.running.api_url);
        self.http
            .post(url)
            .header("content-type", "application/json")
            .body(body)
    }

    async fn ask(&self, prompt: &str, extra: Value) -> reqwest::Response {
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

    /// Events, once there are at least `count`.
    async fn events(&self, count: usize) -> Vec<UsageEvent> {
        let begun = Instant::now();
        loop {
            let events = self.events_now();
            if events.len() >= count || begun.elapsed() > SOON {
                assert_eq!(events.len(), count, "{events:#?}");
                return events;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn events_now(&self) -> Vec<UsageEvent> {
        let files = (0..PARTITIONS).map(|n| self.dir.path().join("usage").join(log_file_name(n)));
        let text: String = files
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect();
        text.lines()
            .filter_map(|line| serde_json::from_str::<LogLine<'_>>(line).ok())
            .map(|line| serde_json::from_str(line.event.get()).unwrap())
            .collect()
    }
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("")
}

/// The JSON of a stream's events; `[DONE]` is `null`.
fn chunks(text: &str) -> Vec<Value> {
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

fn agrees(event: &UsageEvent, scripted: &Scripted) {
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

#[tokio::test]
async fn a_whole_answer_is_priced_and_reported_once() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let response = node
        .ask("hello", json!({"user": "someone", "provider": {"only": ["a"]}}))
        .await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        (
            header(&response, "x-tollway-provider"),
            header(&response, "x-tollway-attempts")
        ),
        ("a", "1")
    );
    let id = header(&response, "x-tollway-request-id").to_owned();
    let cost = header(&response, "x-tollway-cost-usd").to_owned();
    let body: Value = response.json().await.unwrap();
    assert!(body["choices"][0]["message"]["content"].is_string(), "{body}");
    let events = node.events(1).await;
    assert_eq!(events[0].request_id.as_str(), id);
    assert_eq!(events[0].charge.total.to_string(), cost);
    assert_eq!((events[0].end, events[0].status), (EndState::Completed, 200));
    assert_eq!(events[0].user.as_deref(), Some("someone"));
    agrees(&events[0], &provider);
    let seen = &provider.seen()[0];
    assert_eq!(seen.model, "tw-small");
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(sent.get("provider"), None, "our own members stay here");
    assert_eq!(
        seen.credential.as_deref(),
        Some(tollway_provider::fingerprint("provider-secret").as_str())
    );
}

#[tokio::test]
async fn a_stream_shows_usage_only_to_those_who_asked() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let plain = node
        .ask("hello", json!({"stream": true}))
        .await
        .text()
        .await
        .unwrap();
    let seen = chunks(&plain);
    assert_eq!(seen.last(), Some(&Value::Null));
    assert!(
        seen.iter()
            .all(|chunk| chunk.get("usage").is_none_or(Value::is_null)),
        "{plain}"
    );
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let told = node.ask("hello", extra).await.text().await.unwrap();
    let usage = chunks(&told)
        .into_iter()
        .find(|chunk| chunk["usage"].is_object())
        .unwrap();
    assert!(usage["usage"]["cost"].is_number(), "{usage}");
    let events = node.events(2).await;
    events.iter().for_each(|event| agrees(event, &provider));
    assert!(
        events
            .iter()
            .all(|event| event.finish_reason.as_deref() == Some("stop"))
    );
}

#[tokio::test]
async fn an_anthropic_provider_speaks_to_openai_callers() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::Anthropic)]).await;
    let whole: Value = node.ask("hello", json!({})).await.json().await.unwrap();
    assert_eq!(whole["object"], "chat.completion", "{whole}");
    let extra = json!({"stream": true, "stream_options": {"include_usage": true},
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]});
    let text = node
        .ask("hello [[tw:tool_call]]", extra)
        .await
        .text()
        .await
        .unwrap();
    let seen = chunks(&text);
    assert_eq!(seen.last(), Some(&Value::Null), "{text}");
    assert!(
        seen.iter()
            .any(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array()),
        "{text}"
    );
    assert!(
        seen.iter().any(|chunk| chunk["usage"]["cost"].is_number()),
        "{text}"
    );
    node.events(2)
        .await
        .iter()
        .for_each(|event| agrees(event, &provider));
}

#[tokio::test]
async fn a_failing_endpoint_is_passed_over_before_the_first_byte() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let node = Node::start(&[(&a, "a", Dialect::OpenAi), (&b, "b", Dialect::OpenAi)]).await;
    for (prompt, extra, fault) in [
        ("[[tw:fail_at=a]]", json!({}), "status"),
        ("[[tw:only=a]] [[tw:garbage]]", json!({}), "garbled"),
        ("[[tw:only=a]] [[tw:stall_ms=60000]]", json!({}), "timeout"),
    ] {
        // A fresh node each time would be slow; a failure is held against `a` for a while, so it is asked for by name.
        let before = node.events_now().len();
        let mut extra = extra;
        extra["provider"] = json!({"order": ["a"]});
        let response = node.ask(prompt, extra).await;
        assert_eq!(
            response.status(),
            200,
            "{prompt}: {}",
            response.text().await.unwrap()
        );
        let _ = response.text().await.unwrap();
        let events = node.events(before + 1).await;
        let event = events
            .iter()
            .max_by_key(|event| (event.started_at.0, event.sequence))
            .unwrap();
        assert_eq!(event.provider.as_str(), "b", "{prompt}");
        let faults: Vec<_> = event.attempts.iter().map(|a| a.fault.as_deref()).collect();
        if faults.len() == 2 {
            assert_eq!(faults, [Some(fault), None], "{prompt}");
        }
        assert_eq!(event.end, EndState::Completed, "{prompt}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_event() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    for (number, prompt, code) in [
        (1, "[[tw:chunks=20]] [[tw:cut_after=3]]", "upstream_broken"),
        (2, "[[tw:chunks=20]] [[tw:stall_after=3]]", "upstream_broken"),
        (3, "[[tw:chunks=20]] [[tw:error_event=3]]", "upstream_error"),
    ] {
        let text = node
            .ask(prompt, json!({"stream": true}))
            .await
            .text()
            .await
            .unwrap();
        let seen = chunks(&text);
        let last = seen.last().unwrap();
        assert_eq!(last["error"]["metadata"]["error_type"], code, "{prompt}: {text}");
        assert!(last["error"]["code"].is_number() && last["choices"][0]["finish_reason"] == "error");
        let events = node.events(number).await;
        let event = events.iter().max_by_key(|event| event.sequence).unwrap();
        assert_eq!(
            (event.end, event.fault.as_deref()),
            (EndState::Failed, Some(code))
        );
        assert_eq!(event.usage_source, UsageSource::Estimated);
        assert!(event.tokens.output > 0 && event.estimator.is_some());
    }
}

#[tokio::test]
async fn a_hang_up_cancels_the_provider_and_is_accounted() {
    let (a, bills) = (Scripted::start("a"), Scripted::start("bills"));
    for (scripted, name) in [(&a, "a"), (&bills, "bills")] {
        let node = Node::start(&[(scripted, name, Dialect::OpenAi)]).await;
        let response = node
            .ask("[[tw:chunks=100]] [[tw:delay_ms=10]]", json!({"stream": true}))
            .await;
        let mut body = response.bytes_stream();
        body.next().await.unwrap().unwrap();
        drop(body);
        let left = Instant::now();
        let events = node.events(1).await;
        assert_eq!(events[0].end, EndState::Cancelled);
        if name == "a" {
            while scripted.counts().hung_up == 0 {
                assert!(left.elapsed() < SOON, "the provider never noticed");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(events[0].usage_source, UsageSource::Estimated);
        } else {
            agrees(&events[0], scripted);
            assert_eq!(scripted.counts().finished, 1);
        }
    }
}

#[tokio::test]
async fn a_request_that_was_sent_and_never_answered_is_billed_as_an_estimate() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let both = [(&a, "a", Dialect::OpenAi), (&b, "b", Dialect::OpenAi)];
    let ordered = json!({"provider": {"order": ["a", "b"]}});
    for (endpoints, prompt, source) in [
        // The second one turned it away, so the first one, which may have worked, is what is billed.
        (
            &both[..],
            "[[tw:only=a]] [[tw:stall_ms=60000]] [[tw:only=b]] [[tw:status=503]]",
            UsageSource::Estimated,
        ),
        (&both[..1], "[[tw:garbage]]", UsageSource::Estimated),
        (&both[..], "[[tw:status=503]]", UsageSource::None),
    ] {
        let node = Node::start(endpoints).await;
        let response = node.ask(prompt, ordered.clone()).await;
        assert!(response.status().is_server_error(), "{prompt}");
        let event = node.events(1).await.remove(0);
        assert_eq!(
            (event.end, event.usage_source),
            (EndState::Failed, source),
            "{prompt}"
        );
        if source == UsageSource::Estimated {
            assert_eq!(event.provider.as_str(), "a", "{prompt}");
            assert!(event.tokens.input > 0 && event.charge.total.0 > 0, "{prompt}");
        } else {
            assert_eq!(event.charge, cost::Charge::default(), "{prompt}");
        }
    }
}

#[tokio::test]
async fn what_could_not_be_sent_is_no_usage() {
    let provider = Scripted::start("a");
    let node = Node::start(&[
        (&provider, "locked", Dialect::OpenAi),
        (&provider, "a", Dialect::OpenAi),
    ])
    .await;
    let failed = node.ask("x", json!({"provider": {"only": ["locked"]}})).await;
    assert_eq!(failed.status(), 502);
    let body: Value = failed.json().await.unwrap();
    assert_eq!(body["error"]["code"], "attempts_exhausted");
    let served = node.ask("x", json!({})).await;
    assert_eq!(served.status(), 200);
    assert_eq!(header(&served, "x-tollway-provider"), "a");
    assert_eq!(header(&served, "x-tollway-attempts"), "2");
    // Events are in order: had the first request one, it would be here too.
    let events = node.events(1).await;
    assert_eq!(
        events[0].request_id.as_str(),
        header(&served, "x-tollway-request-id")
    );
    let attempts = events[0].attempts.iter();
    let attempts: Vec<_> = attempts
        .map(|a| (a.provider.as_str(), a.fault.as_deref()))
        .collect();
    assert_eq!(attempts, [("locked", Some("credential")), ("a", None)]);
    agrees(&events[0], &provider);
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_answer_is_accounted() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let asked = node.ask("[[tw:stall_ms=1000]]", json!({}));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .is_err()
    );
    let events = node.events(1).await;
    assert_eq!((events[0].end, events[0].status), (EndState::Cancelled, 499));
    assert_eq!(events[0].usage_source, UsageSource::Estimated);
}

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
    assert_eq!(node.http.get(url).send().await.unwrap().status(), 405);
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
    assert_eq!(ids, ["acme/empty", "acme/one"], "the retired one is gone");
    assert_eq!(list["data"][1]["pricing"]["prompt"], "0.000001");
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
async fn a_stopping_node_tells_its_streams_and_reports_them() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let response = node
        .ask("[[tw:chunks=1000]] [[tw:delay_ms=20]]", json!({"stream": true}))
        .await;
    let text = tokio::spawn(response.text());
    let Node { running, dir, .. } = node;
    assert!(running.stop().await, "everything was delivered");
    let text = text.await.unwrap().unwrap();
    let seen = chunks(&text);
    assert_eq!(
        seen.last().unwrap()["error"]["metadata"]["error_type"],
        "draining",
        "{text}"
    );
    let files = (0..PARTITIONS).map(|n| dir.path().join("usage").join(log_file_name(n)));
    let lines: String = files
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect();
    assert_eq!(lines.lines().count(), 1);
    assert!(lines.contains("\"draining\""), "{lines}");
}
