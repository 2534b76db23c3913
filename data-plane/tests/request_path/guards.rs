//! What a node bears: callers that hold connections, callers that trickle, credentials that are refused.

use std::time::Instant;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollway_provider::{Behaviour, Provider as Scripted, fingerprint};
use tollway_shared::catalog::Dialect;

use crate::node::{Node, SOON, agrees};

async fn connected(node: &Node) -> TcpStream {
    let address = node.running.api_url.strip_prefix("http://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Whether a connection is served; a refused one is closed without a word.
async fn is_served(socket: &mut TcpStream) -> bool {
    // Both may fail on a connection that is closed already.
    drop(
        socket
            .write_all(b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n")
            .await,
    );
    let mut start = [0; 8];
    let read = tokio::time::timeout(SOON, socket.read_exact(&mut start));
    read.await.unwrap().is_ok() && &start == b"HTTP/1.1"
}

#[tokio::test]
async fn an_address_holds_no_more_than_its_share_of_connections() {
    let provider = Scripted::start("a");
    let node = Node::start_with(&[(&provider, "a", Dialect::OpenAi)], |config| {
        config.api.connections_per_address_max = 3;
        config.api.trusted_proxies = Vec::new();
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut socket = connected(&node).await;
        assert!(is_served(&mut socket).await);
        held.push(socket);
    }
    assert!(
        !is_served(&mut connected(&node).await).await,
        "a fourth is one too many"
    );
    held.pop();
    let begun = Instant::now();
    while !is_served(&mut connected(&node).await).await {
        assert!(begun.elapsed() < SOON, "a place that was given back can be taken");
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_long_before_its_deadline() {
    let provider = Scripted::start("a");
    let node = Node::start_with(&[(&provider, "a", Dialect::OpenAi)], |config| {
        config.api.body_grace_ms = 100;
    })
    .await;
    let mut socket = connected(&node).await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\n{{",
        node.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    let read = tokio::time::timeout(SOON, socket.read_exact(&mut start));
    read.await.unwrap().unwrap();
    assert_eq!(&start, b"HTTP/1.1 408");
    assert_eq!(provider.counts().received, 0);
}

#[tokio::test]
async fn a_refused_credential_is_set_aside_and_the_next_one_answers() {
    for status in [401, 403, 429] {
        let provider = Scripted::start("a");
        let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
        node.add_credential("a", "a-spare", "spare-secret");
        let bad = fingerprint("provider-secret");
        let refused = bad.clone();
        provider.set_script(move |seen| {
            let is_bad = seen.credential.as_deref() == Some(refused.as_str());
            Behaviour::refuse(if is_bad { status } else { 200 })
        });
        // Each of the two cores meets the bad one at most once; without rotation half of these would fail.
        for _ in 0..24 {
            let response = node.ask("hi", json!({})).await;
            assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        }
        let events = node.events(24).await;
        let attempts: usize = events.iter().map(|event| event.attempts.len()).sum();
        let met = provider
            .seen()
            .iter()
            .filter(|seen| seen.credential.as_deref() == Some(bad.as_str()))
            .count();
        assert!((1..=2).contains(&met), "{met} requests with a refused credential");
        assert_eq!(attempts, 24 + met, "each refusal is an attempt of its request");
        assert!(events.iter().all(|event| event.attempts.len() <= 2));
        let smooth = events.iter().find(|event| event.attempts.len() == 1).unwrap();
        agrees(smooth, &provider);
    }
}

#[tokio::test]
async fn credentials_share_the_attempts_of_a_request() {
    let provider = Scripted::start("a");
    let node = Node::start_with(&[(&provider, "a", Dialect::OpenAi)], |config| {
        config.api.attempts_max = 2;
    })
    .await;
    for n in 0..4 {
        node.add_credential("a", &format!("a-{n}"), &format!("secret-{n}"));
    }
    provider.set_script(|_| Behaviour::refuse(429));
    let response = node.ask("hi", json!({})).await;
    assert_eq!(response.status(), 429);
    assert_eq!(
        provider.counts().received,
        2,
        "credentials share the request's attempts"
    );
    let once = json!({"provider": {"allow_fallbacks": false}});
    assert_eq!(node.ask("hi", once).await.status(), 429);
    assert_eq!(provider.counts().received, 3);
}

#[tokio::test]
async fn refused_credentials_leave_an_attempt_for_the_next_provider() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let places = [(&a, "a", Dialect::OpenAi), (&b, "b", Dialect::OpenAi)];
    let node = Node::start_with(&places, |config| config.api.attempts_max = 3).await;
    for n in 0..4 {
        node.add_credential("a", &format!("a-{n}"), &format!("secret-{n}"));
    }
    a.set_script(|_| Behaviour::refuse(403));
    let ordered = json!({"provider": {"order": ["a", "b"]}});
    assert_eq!(node.ask("hi", ordered).await.status(), 200);
    assert_eq!((a.counts().received, b.counts().received), (2, 1));
}
