//! Answers that come whole: relayed, translated, priced.

use serde_json::{Value, json};
use tollway_proto::usage::{EndState, log_file_name};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;

use crate::node::{Node, PARTITIONS, agrees, chunks, header};

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
