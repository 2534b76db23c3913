//! Answers that come whole: relayed, translated, priced.

use std::time::Instant;

use serde_json::{Value, json};
use tollway_proto::usage::{EndState, UsageEvent, UsageSource, log_file_name};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;

use crate::node::{MODEL, Node, PARTITIONS, SOON, agrees, chunks, header};

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
    let body = response.text().await.unwrap();
    assert!(body.contains(&format!("\"cost\":{cost}}}")), "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(body["choices"][0]["message"]["content"].is_string(), "{body}");
    assert_eq!(body["model"], MODEL, "the caller's name, not the provider's");
    let events = node.events(1).await;
    shows(&body["usage"], &events[0]);
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
    let events = node.events(2).await;
    let id = usage["id"].as_str().unwrap();
    for chunk in chunks(&told).iter().filter(|chunk| !chunk.is_null()) {
        assert_eq!(
            (&chunk["model"], &chunk["id"]),
            (&json!(MODEL), &json!(id)),
            "{told}"
        );
    }
    shows(&usage["usage"], &events[0]);
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
async fn a_provider_that_cannot_stream_is_streamed_for() {
    let provider = Scripted::start("a");
    for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
        let node = Node::start(&[(&provider, "a", dialect)]).await;
        for (number, wants_usage) in [(1, true), (2, false)] {
            let extra = json!({"stream": true, "stream_options": {"include_usage": wants_usage},
                "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]});
            let prompt = "[[tw:plain]] [[tw:chunks=3]] [[tw:tool_call=2]]";
            let response = node.ask(prompt, extra).await;
            assert!(header(&response, "content-type").starts_with("text/event-stream"));
            let text = response.text().await.unwrap();
            let seen = chunks(&text);
            assert_eq!(seen.last(), Some(&Value::Null), "{text}");
            let deltas: Vec<_> = seen
                .iter()
                .map(|chunk| &chunk["choices"][0]["delta"])
                .filter(|delta| delta.is_object())
                .collect();
            assert_eq!(deltas[0]["role"], "assistant", "{text}");
            let said: String = deltas
                .iter()
                .filter_map(|delta| delta["content"].as_str())
                .collect();
            assert_eq!(said.matches('w').count(), 3, "{text}");
            let calls: Vec<_> = deltas
                .iter()
                .filter_map(|delta| delta["tool_calls"].as_array())
                .flatten()
                .map(|call| (call["index"].as_u64(), call["function"]["name"].as_str()))
                .collect();
            assert_eq!(calls, [(Some(0), Some("add")), (Some(1), Some("add"))], "{text}");
            let ends: Vec<_> = seen
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
                .collect();
            assert_eq!(ends, ["tool_calls"], "{text}");
            let usages = seen.iter().filter(|chunk| chunk["usage"]["cost"].is_number());
            assert_eq!(usages.count(), usize::from(wants_usage), "{text}");
            let events = node.events(number).await;
            let event = events.iter().max_by_key(|event| event.started_at.0).unwrap();
            assert_eq!((event.end, event.stream), (EndState::Completed, true));
            agrees(event, &provider);
        }
    }
}

#[tokio::test]
async fn a_provider_that_opens_and_then_thinks_is_waited_for() {
    let provider = Scripted::start("thinks");
    for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
        let node = Node::start(&[(&provider, "thinks", dialect)]).await;
        let begun = Instant::now();
        let response = node
            .ask("[[tw:delay_ms=1000]] [[tw:chunks=1]]", json!({"stream": true}))
            .await;
        // The caller sees at the deadline of the first byte that its request is alive.
        let waited = begun.elapsed().as_millis();
        assert!((400..1_000).contains(&waited), "headers after {waited} ms");
        let text = response.text().await.unwrap();
        assert_eq!(chunks(&text).last(), Some(&Value::Null), "{text}");
        agrees(&node.events(1).await[0], &provider);
    }
}

#[tokio::test]
async fn every_answer_shows_what_it_is_billed_for() {
    let provider = Scripted::start("a");
    for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
        for (prompt, estimated) in [
            ("[[tw:cache_read_tokens=4]] [[tw:prompt_tokens=9]]", false),
            ("[[tw:no_usage]]", true),
            ("[[tw:prompt_tokens=0]] [[tw:completion_tokens=0]]", true),
            ("[[tw:prompt_tokens=0]] [[tw:completion_tokens=9]]", true),
            // More than anybody sells; what is billed instead is shown.
            ("[[tw:ignore_max]] [[tw:completion_tokens=100000001]]", true),
        ] {
            let node = Node::start(&[(&provider, "a", dialect)]).await;
            for (number, extra) in [
                (1, json!({})),
                (2, json!({"stream": true})),
                (
                    3,
                    json!({"stream": true, "messages": [{"role": "user", "content": format!("{prompt} [[tw:plain]]")}]}),
                ),
            ] {
                let mut extra = extra;
                extra["stream_options"] = json!({"include_usage": true});
                let response = node.ask(prompt, extra).await;
                let id = header(&response, "x-tollway-request-id").to_owned();
                let text = response.text().await.unwrap();
                let shown = match serde_json::from_str::<Value>(&text) {
                    Ok(body) => vec![body],
                    Err(_) => chunks(&text),
                };
                let mut usages = shown
                    .iter()
                    .map(|chunk| &chunk["usage"])
                    .filter(|usage| !usage.is_null());
                let (usage, more) = (usages.next(), usages.next());
                let events = node.events(number).await;
                let event = events
                    .iter()
                    .find(|event| event.request_id.as_str() == id)
                    .unwrap();
                let from = format!("{dialect:?} {prompt}: {text}");
                assert_eq!(more, None, "{from}");
                let usage = usage.unwrap_or_else(|| panic!("{from}"));
                assert_eq!(usage["estimated"] == true, estimated, "{from}");
                shows(usage, event);
            }
        }
    }
}

/// The figures of a usage object are those of the event, to the nano-dollar.
fn shows(usage: &Value, event: &UsageEvent) {
    let tokens = &event.tokens;
    assert_eq!(
        (
            &usage["prompt_tokens"],
            &usage["completion_tokens"],
            &usage["total_tokens"]
        ),
        (
            &json!(tokens.prompt()),
            &json!(tokens.completion()),
            &json!(tokens.prompt() + tokens.completion())
        ),
        "{usage} {event:#?}"
    );
    assert_eq!(
        usage["prompt_tokens_details"]["cached_tokens"],
        tokens.input_cache_read
    );
    let cost: f64 = event.charge.total.to_string().parse().unwrap();
    assert_eq!(usage["cost"], json!(cost), "{usage}");
    assert_eq!(
        usage["estimated"] == true,
        event.usage_source == UsageSource::Estimated,
        "{usage}"
    );
}

#[tokio::test]
async fn an_estimate_is_no_more_than_the_caller_allowed() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let prompt = "[[tw:no_usage]] [[tw:ignore_max]] [[tw:chunks=50]]";
    for (number, extra, cap) in [
        (1, json!({"max_tokens": 5}), 5),
        (
            2,
            json!({"stream": true, "max_tokens": 9, "max_completion_tokens": 6}),
            6,
        ),
    ] {
        node.ask(prompt, extra).await.text().await.unwrap();
        let events = node.events(number).await;
        let event = events.iter().max_by_key(|event| event.started_at.0).unwrap();
        assert_eq!(event.usage_source, UsageSource::Estimated);
        assert_eq!(event.tokens.completion(), cap);
    }
}

#[tokio::test]
async fn a_request_goes_to_a_provider_whose_dialect_has_words_for_it() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let system = json!({"messages": [{"role": "system", "content": "be brief"}]});
    for (extra, field) in [(json!({"n": 2}), "n"), (system, "messages")] {
        let alone = Node::start(&[(&a, "a", Dialect::Anthropic)]).await;
        let refused = alone.ask("x", extra.clone()).await;
        assert_eq!(refused.status(), 400);
        let body: Value = refused.json().await.unwrap();
        assert_eq!(body["error"]["param"], field, "{body}");
        let both = Node::start(&[(&a, "a", Dialect::Anthropic), (&b, "b", Dialect::OpenAi)]).await;
        let mut extra = extra;
        extra["provider"] = json!({"order": ["a", "b"]});
        let response = both.ask("x", extra).await;
        let event = both.events(1).await.remove(0);
        assert_eq!(event.provider.as_str(), "b", "{}", response.text().await.unwrap());
        assert_eq!(event.attempts.len(), 1, "nothing was sent to the first");
    }
    assert_eq!(a.counts().received, 0);
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

#[tokio::test]
async fn a_node_that_is_hurried_ends_its_streams_with_an_error_event_at_once() {
    let provider = Scripted::start("a");
    let long = |config: &mut tollway_data::config::Config| {
        config.drain.grace_ms = 3_600_000;
        config.drain.max_stream_ms = 3_600_000;
    };
    let node = Node::start_with(&[(&provider, "a", Dialect::OpenAi)], long).await;
    let response = node
        .ask("[[tw:chunks=1000]] [[tw:delay_ms=20]]", json!({"stream": true}))
        .await;
    let text = tokio::spawn(response.text());
    let stopped = tokio::time::timeout(SOON, node.running.stop_unless(std::future::ready(())));
    assert!(stopped.await.unwrap(), "everything was delivered");
    let text = text.await.unwrap().unwrap();
    let last = chunks(&text).pop().unwrap();
    assert_eq!(last["error"]["metadata"]["error_type"], "draining", "{text}");
}
