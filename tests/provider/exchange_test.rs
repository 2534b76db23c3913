//! The provider over a real socket, spoken to with bare bytes so that nothing between hides what it sends.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Behaviour, End, Options, Provider, Route, Used, fingerprint, read_record};

fn connect(provider: &Provider, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(provider.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-secret\r\nx-tollway-request-id: r-1\r\nanthropic-version: 2023-06-01\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

/// Status and body text, chunk sizes taken out; a broken end is `false`.
fn exchange(provider: &Provider, path: &str, body: &str) -> (u16, String, bool) {
    let mut raw = Vec::new();
    connect(provider, path, body).read_to_end(&mut raw).unwrap();
    let text = String::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head[9..12].parse().unwrap();
    if !head.contains("transfer-encoding: chunked") {
        return (
            status,
            body.to_owned(),
            head.contains(&format!("content-length: {}", body.len())),
        );
    }
    let mut rest = body;
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (status, whole, true);
        }
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (status, whole, false)
}

fn chat(prompt: &str, more: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{prompt}"}}]{more}}}"#)
}

fn data(stream: &str) -> Vec<&str> {
    stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited too long for: {what}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_stream_tells_usage_only_when_asked_and_the_pieces_are_the_plain_answer() {
    let provider = Provider::start("a");
    let prompt = "[[tw:chunks=3]][[tw:prompt_tokens=10]][[tw:completion_tokens=7]]";
    let (_, plain, _) = exchange(&provider, "/v1/chat/completions", &chat(prompt, ""));
    let plain: Value = serde_json::from_str(&plain).unwrap();
    let (_, silent, whole) = exchange(
        &provider,
        "/v1/chat/completions",
        &chat(prompt, r#","stream":true"#),
    );
    assert!(whole && silent.ends_with("data: [DONE]\n\n") && !silent.contains("usage"));
    let asked = chat(
        prompt,
        r#","stream":true,"stream_options":{"include_usage":true}"#,
    );
    let (_, told, _) = exchange(&provider, "/v1/chat/completions", &asked);
    let events: Vec<Value> = data(&told)
        .iter()
        .filter(|text| **text != "[DONE]")
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let usage = events.last().unwrap();
    assert_eq!(
        (
            usage["choices"].as_array().map(Vec::len),
            usage["usage"]["total_tokens"].as_u64()
        ),
        (Some(0), Some(17))
    );
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(
        Some(text.as_str()),
        plain["choices"][0]["message"]["content"].as_str()
    );
    assert_eq!(plain["usage"]["total_tokens"], 17);

    let seen = provider.seen();
    let told: Vec<_> = seen
        .iter()
        .map(|seen| (seen.route, seen.end, seen.usage_told, seen.used.completion))
        .collect();
    assert_eq!(
        told,
        [true, false, true].map(|usage| (Route::Chat, End::Finished, usage, 7))
    );
    assert_eq!(seen[0].credential, Some(fingerprint("sk-secret")));
    assert_eq!(seen[0].request_id.as_deref(), Some("r-1"));
    assert!(!format!("{seen:?}").contains("sk-secret"));
}

#[test]
fn a_messages_stream_has_its_events_in_order_and_counts_cached_tokens_apart() {
    let provider = Provider::start("a");
    let prompt = "[[tw:chunks=2]][[tw:prompt_tokens=10]][[tw:completion_tokens=7]][[tw:cache_read_tokens=4]][[tw:cache_write_tokens=1]][[tw:tool_call]]";
    let (_, text, whole) = exchange(
        &provider,
        "/v1/messages",
        &chat(
            prompt,
            r#","max_tokens":99,"stream":true,"tools":[{"name":"weather"}]"#,
        ),
    );
    let events: Vec<Value> = data(&text)
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let names: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    let expected = "message_start content_block_start ping content_block_delta content_block_delta content_block_stop \
                    content_block_start content_block_delta content_block_delta content_block_delta content_block_stop message_delta message_stop";
    assert!(whole);
    assert_eq!(names.join(" "), expected);
    let usage = &events[0]["message"]["usage"];
    let counted = [
        "input_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
    ]
    .map(|name| usage[name].as_u64().unwrap());
    assert_eq!(counted, [5, 4, 1]);
    assert_eq!(events[6]["content_block"]["name"], "weather");
    let end = &events[events.len() - 2];
    assert_eq!(
        (
            end["usage"]["output_tokens"].as_u64(),
            end["delta"]["stop_reason"].as_str()
        ),
        (Some(7), Some("tool_use"))
    );
    assert_eq!(
        provider.seen()[0].used,
        Used {
            prompt: 10,
            completion: 7,
            cache_read: 4,
            cache_write: 1,
            reasoning: 0
        }
    );
}

#[test]
fn a_cut_stream_breaks_after_its_events_and_bills_what_was_sent() {
    let provider = Provider::start("a");
    let body = chat(
        "[[tw:chunks=10]][[tw:completion_tokens=20]][[tw:cut_after=3]]",
        r#","stream":true"#,
    );
    let (status, text, whole) = exchange(&provider, "/v1/chat/completions", &body);
    assert_eq!((status, data(&text).len(), whole), (200, 4, false));
    let seen = &provider.seen()[0];
    assert_eq!(
        (seen.end, seen.used.completion, seen.events_sent),
        (End::Broken, 6, 4)
    );
}

#[test]
fn an_error_event_ends_the_stream_without_done() {
    let provider = Provider::start("a");
    let body = chat("[[tw:chunks=10]][[tw:error_event=2]]", r#","stream":true"#);
    let (_, text, whole) = exchange(&provider, "/v1/chat/completions", &body);
    let events = data(&text);
    assert!(
        whole && events.last().unwrap().starts_with(r#"{"error""#),
        "{text}"
    );
    assert_eq!(events.len(), 4);
    assert_eq!(provider.counts().broken, 1);
}

#[test]
fn a_caller_who_hangs_up_is_noticed_with_the_events_it_was_sent() {
    let provider = Provider::start("a");
    let body = chat(
        "[[tw:chunks=10]][[tw:completion_tokens=20]][[tw:stall_after=2]]",
        r#","stream":true"#,
    );
    let caller = connect(&provider, "/v1/chat/completions", &body);
    until("two content events", || {
        provider.seen().first().is_some_and(|seen| seen.events_sent == 3)
    });
    drop(caller);
    until("the hang-up", || provider.counts().hung_up == 1);
    let seen = &provider.seen()[0];
    assert_eq!((seen.end, seen.used.completion), (End::HungUp, 4));
}

#[test]
fn a_caller_who_leaves_before_the_headers_is_billed_nothing() {
    let provider = Provider::start("a");
    let caller = connect(
        &provider,
        "/v1/chat/completions",
        &chat("[[tw:stall_ms=60000]]", ""),
    );
    until("arrival", || provider.counts().received == 1);
    drop(caller);
    until("the hang-up", || provider.counts().hung_up == 1);
    assert_eq!(provider.seen()[0].used, Used::default());
}

#[test]
fn a_prompt_fails_at_one_provider_and_is_served_by_the_next() {
    let (a, b) = (Provider::start("a"), Provider::start("b"));
    let body = chat("[[tw:fail_at=a]]", "");
    assert_eq!(
        [
            exchange(&a, "/v1/chat/completions", &body).0,
            exchange(&b, "/v1/chat/completions", &body).0
        ],
        [503, 200]
    );
    assert_eq!(
        (a.counts().refused, a.counts().prompt_tokens, b.counts().finished),
        (1, 0, 1)
    );
}

#[test]
fn the_script_of_the_test_decides_and_a_directive_overrides_it() {
    let provider = Provider::start("a");
    provider.set_script(|seen| {
        if seen.number == 0 {
            Behaviour::refuse(429)
        } else {
            Behaviour {
                prompt_tokens: Some(5),
                ..Behaviour::default()
            }
        }
    });
    assert_eq!(exchange(&provider, "/v1/chat/completions", &chat("x", "")).0, 429);
    exchange(&provider, "/v1/chat/completions", &chat("x", ""));
    exchange(
        &provider,
        "/v1/chat/completions",
        &chat("[[tw:prompt_tokens=6]]", ""),
    );
    let prompts: Vec<_> = provider.seen().iter().map(|seen| seen.used.prompt).collect();
    assert_eq!(prompts, [0, 5, 6]);
}

#[test]
fn bad_requests_are_refused_with_the_field_named() {
    let provider = Provider::start("a");
    for (path, body, named) in [
        ("/v1/chat/completions", chat("[[tw:chunk=3]]", ""), "chunk=3"),
        ("/v1/chat/completions", "{}".to_owned(), "`model`"),
        ("/v1/messages", chat("x", ""), "`max_tokens`"),
    ] {
        let (status, text, _) = exchange(&provider, path, &body);
        assert_eq!(status, 400);
        assert!(text.contains(named), "{text}");
    }
}

#[test]
fn the_record_file_has_one_line_for_each_ended_request() {
    let folder = std::env::temp_dir().join(format!("tollway-provider-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("record.jsonl");
    let provider = Provider::start_with(Options {
        record: Some(file.clone()),
        in_memory: false,
        ..Options::named("a")
    })
    .unwrap();
    exchange(
        &provider,
        "/v1/chat/completions",
        &chat("[[tw:prompt_tokens=6]]", ""),
    );
    exchange(&provider, "/v1/chat/completions", &chat("[[tw:status=500]]", ""));
    let lines = read_record(&file).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line.number,
                line.end,
                line.used.prompt,
                line.request_id.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, End::Finished, 6, Some("r-1")),
            (1, End::Refused, 0, Some("r-1"))
        ]
    );
}
