//! Answers that do not come, or break: failover, error events, and what is billed all the same.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tollway_data::config::Config;
use tollway_proto::usage::{EndState, UsageSource};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;
use tollway_shared::cost;
use tollway_shared::tokens::TokenCounts;

use crate::node::{Node, SOON, agrees, chunks, header};

#[tokio::test]
async fn a_failing_endpoint_is_passed_over_before_the_first_byte() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let stream = || json!({"stream": true});
    for (prompt, mut extra, fault) in [
        ("[[tw:fail_at=a]]", json!({}), "status"),
        ("[[tw:only=a]] [[tw:garbage]]", json!({}), "garbled"),
        ("[[tw:only=a]] [[tw:stall_ms=60000]]", json!({}), "timeout"),
        // These die, or fall silent, after an opening event without a word of the answer.
        ("[[tw:only=a]] [[tw:cut_after=0]]", stream(), "broken"),
        ("[[tw:only=a]] [[tw:error_event=0]]", stream(), "status"),
        ("[[tw:only=a]] [[tw:stall_after=0]]", stream(), "timeout"),
    ] {
        for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
            let node = Node::start(&[(&a, "a", dialect), (&b, "b", Dialect::OpenAi)]).await;
            extra["provider"] = json!({"order": ["a"]});
            let response = node.ask(prompt, extra.clone()).await;
            let (status, text) = (response.status(), response.text().await.unwrap());
            assert_eq!(status, 200, "{prompt}: {text}");
            if extra["stream"] == true {
                assert_eq!(chunks(&text).last(), Some(&Value::Null), "{prompt}: {text}");
                let roles = text.matches("\"role\":").count();
                assert_eq!(roles, 1, "nothing of the first one is left: {text}");
            }
            let event = node.events(1).await.remove(0);
            assert_eq!(event.provider.as_str(), "b", "{prompt}");
            let faults: Vec<_> = event.attempts.iter().map(|a| a.fault.as_deref()).collect();
            assert_eq!(faults, [Some(fault), None], "{prompt} {dialect:?}");
            assert_eq!(event.end, EndState::Completed, "{prompt}");
            agrees(&event, &b);
        }
    }
}

#[tokio::test]
async fn when_every_attempt_failed_the_callers_see_the_providers_status() {
    let scripted = Scripted::start("a");
    for (dialect, prompt, status, code, retry_after) in [
        (Dialect::OpenAi, "[[tw:status=500]]", 500, "upstream_failed", None),
        (
            Dialect::Anthropic,
            "[[tw:status=529]] [[tw:retry_after=7]]",
            529,
            "upstream_failed",
            Some("7"),
        ),
        (
            Dialect::OpenAi,
            "[[tw:status=429]] [[tw:retry_after=9999]]",
            429,
            "upstream_failed",
            Some("120"),
        ),
        (
            Dialect::OpenAi,
            "[[tw:status=503]]",
            503,
            "upstream_failed",
            Some("2"),
        ),
        (
            Dialect::Anthropic,
            "[[tw:status=422]]",
            422,
            "upstream_rejected",
            None,
        ),
        // Whose credential it is that the provider does not take is not the caller's business.
        (Dialect::OpenAi, "[[tw:status=401]]", 502, "upstream_failed", None),
        (Dialect::OpenAi, "[[tw:status=302]]", 502, "upstream_failed", None),
        (Dialect::OpenAi, "[[tw:garbage]]", 502, "attempts_exhausted", None),
    ] {
        let node = Node::start(&[(&scripted, "a", dialect)]).await;
        let response = node.ask(prompt, json!({})).await;
        assert_eq!(response.status(), status, "{prompt}");
        assert_eq!(
            header(&response, "x-should-retry"),
            retry_after.is_some().to_string(),
            "{prompt}"
        );
        assert_eq!(
            header(&response, "retry-after"),
            retry_after.unwrap_or(""),
            "{prompt}"
        );
        let body: Value = response.json().await.unwrap();
        let error = &body["error"];
        assert_eq!(error["code"], code, "{prompt}: {body}");
        assert_eq!(error["metadata"]["provider_name"], "a", "{prompt}: {body}");
        let told = prompt.trim_start_matches("[[tw:status=").get(..3).unwrap();
        match told.parse::<u16>() {
            Ok(told) => {
                assert_eq!(error["metadata"]["provider_code"], told, "{body}");
                let raw = json!(format!("scripted status {told}"));
                let shown = if told == 401 { &Value::Null } else { &raw };
                assert_eq!(&error["metadata"]["raw"], shown, "{body}");
            }
            Err(_) => assert_eq!(error["metadata"]["provider_code"], Value::Null, "{body}"),
        }
        let event = node.events(1).await.remove(0);
        assert_eq!((event.status, event.fault.as_deref()), (status, Some(code)));
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_event() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    for (number, prompt, code) in [
        (1, "[[tw:chunks=20]] [[tw:cut_after=3]]", "upstream_broken"),
        (2, "[[tw:chunks=20]] [[tw:stall_after=3]]", "upstream_timeout"),
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
        assert!(last["error"]["code"].is_number() && last["error"]["message"].is_string());
        // The envelope of the chunks before it, and nothing after it.
        for member in ["id", "object", "model"] {
            assert_eq!(last[member], seen[0][member], "{member}: {text}");
        }
        assert_eq!(
            last["choices"],
            json!([{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "native_finish_reason": null}])
        );
        assert!(!text.contains("[DONE]"), "{text}");
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
async fn an_answer_that_is_read_on_for_nobody_is_billed_as_it_ends_or_at_its_usual_length() {
    let bills = Scripted::start("bills");
    let one_core = |config: &mut Config| config.server.threads = 1; // each learns for itself
    let node = Node::start_with(&[(&bills, "bills", Dialect::OpenAi)], one_core).await;
    // Four bytes a token, as nearly as pieces of eight can be.
    let whole = node
        .ask("[[tw:completion_tokens=321]] [[tw:chunks=160]]", json!({}))
        .await;
    assert_eq!(whole.status(), 200);
    node.events(1).await;
    for (number, ending, billed) in [
        // The longer ones first: what came whole is seen as usual from then on.
        (2, "[[tw:cut_after=4]]", 321),
        (3, "[[tw:error_event=4]]", 321),
        (4, "[[tw:stall_after=4]]", 321),
        // All of it was seen: five pieces of eight bytes, one of them without its space.
        (5, "[[tw:no_usage]]", 10),
    ] {
        let prompt = format!("[[tw:chunks=5]] [[tw:delay_ms=20]] {ending}");
        let response = node.ask(&prompt, json!({"stream": true})).await;
        let mut body = response.bytes_stream();
        body.next().await.unwrap().unwrap();
        drop(body);
        let events = node.events(number).await;
        let event = events.iter().max_by_key(|event| event.started_at.0).unwrap();
        assert_eq!(
            (event.end, event.status, event.fault.as_deref()),
            (EndState::Cancelled, 200, None),
            "{ending}"
        );
        assert_eq!(event.usage_source, UsageSource::Estimated, "{ending}");
        assert_eq!(event.tokens.completion(), billed, "{ending}");
    }
}

#[tokio::test]
async fn a_request_that_nobody_served_costs_nothing_whatever_its_providers_may_have_done() {
    let (a, b) = (Scripted::start("a"), Scripted::start("b"));
    let both = [(&a, "fee-a", Dialect::OpenAi), (&b, "fee-b", Dialect::OpenAi)];
    let ordered = json!({"provider": {"order": ["fee-a", "fee-b"]}});
    for (endpoints, prompt, extra) in [
        (
            &both[..],
            "[[tw:only=a]] [[tw:stall_ms=60000]] [[tw:only=b]] [[tw:status=503]]",
            json!({}),
        ),
        (&both[..1], "[[tw:garbage]]", json!({})),
        (&both[..1], "[[tw:cut_after=0]]", json!({"stream": true})),
        (&both[..1], "[[tw:status=422]]", json!({})),
        (&both[..], "[[tw:status=503]]", json!({})),
    ] {
        let node = Node::start(endpoints).await;
        let mut asked = ordered.clone();
        asked
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let response = node.ask(prompt, asked).await;
        assert!(!response.status().is_success(), "{prompt}");
        assert_eq!(header(&response, "x-tollway-cost-usd"), "0", "{prompt}");
        let event = node.events(1).await.remove(0);
        assert_eq!(
            (event.end, event.usage_source, event.tokens, event.charge),
            (
                EndState::Failed,
                UsageSource::None,
                TokenCounts::default(),
                cost::Charge::default()
            ),
            "{prompt}"
        );
        assert!(
            event.attempts.iter().all(|attempt| attempt.fault.is_some()),
            "{prompt}"
        );
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
async fn a_caller_who_leaves_before_the_answer_pays_what_its_provider_bills() {
    let (a, bills) = (Scripted::start("a"), Scripted::start("bills-aborts"));
    for (scripted, name) in [(&a, "a"), (&bills, "bills-aborts")] {
        let one_core = |config: &mut Config| config.server.threads = 1; // each learns for itself
        let node = Node::start_with(&[(scripted, name, Dialect::OpenAi)], one_core).await;
        // What is known of this provider's answers is this one.
        // Four bytes a token, as nearly as pieces of eight can be.
        let whole = node
            .ask("[[tw:completion_tokens=321]] [[tw:chunks=160]]", json!({}))
            .await;
        assert_eq!(whole.status(), 200);
        node.events(1).await;
        for (number, cap, billed) in [(2, 1_000, 321), (3, 20, 20)] {
            let asked = node.ask("[[tw:stall_ms=1000]]", json!({"max_tokens": cap}));
            assert!(
                tokio::time::timeout(Duration::from_millis(200), asked)
                    .await
                    .is_err()
            );
            let events = node.events(number).await;
            let event = events.iter().max_by_key(|event| event.sequence).unwrap();
            assert_eq!((event.end, event.status), (EndState::Cancelled, 499));
            assert_eq!(event.usage_source, UsageSource::Estimated);
            let billed = if name == "a" { 0 } else { billed };
            assert!(event.tokens.input > 0);
            assert_eq!(event.tokens.completion(), billed, "{name} {cap}");
        }
    }
}
