//! What is billed when the node dies. A copy of its spool is what `kill -9` would have left at that moment.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tollway_data::usage;
use tollway_proto::usage::{EndState, UsageEvent, UsageSource};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;
use tollway_shared::cost;

use crate::log::events_in;
use crate::node::{Node, PARTITIONS, SOON};

/// Streams that run when the node dies.
const STREAMS: usize = 8;
/// Tokens of all of them together that callers have by then.
const TOKENS: u64 = 6_400;

/// Copies a folder and what is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The events that a next life makes of a spool.
fn recovered(spool: &Path, log: &Path) -> Vec<UsageEvent> {
    let settings = usage::Settings {
        partitions: PARTITIONS,
        dir: Some(log.to_owned()),
        ..usage::Settings::default()
    };
    let next = usage::start(&settings, spool, 1).unwrap();
    assert!(next.stop(SOON), "everything is delivered");
    events_in(log)
}

#[tokio::test]
async fn the_first_words_of_an_answer_are_billed_before_the_next_ones_come() {
    let provider = Scripted::start("thinks");
    let node = Node::start(&[(&provider, "thinks", Dialect::OpenAi)]).await;
    let prompt = "[[tw:slow_ms=100]] [[tw:chunks=9]] [[tw:stall_after=1]]";
    let response = node.ask(prompt, json!({"stream": true})).await;
    let mut body = response.bytes_stream();
    body.next().await.unwrap().unwrap();
    let left = tempfile::tempdir().unwrap();
    let (spool, log) = (left.path().join("spool"), left.path().join("log"));
    copy(&node.dir.path().join("data/spool"), &spool);
    let events = tokio::task::spawn_blocking(move || recovered(&spool, &log))
        .await
        .unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].tokens.completion(), 2, "a piece of seven bytes");
}

#[tokio::test]
async fn streams_of_a_node_that_dies_are_billed_for_what_their_callers_had() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    // A piece is eight bytes, two tokens by the estimator: 400 tokens a second.
    let prompt = "[[tw:chunks=600]] [[tw:completion_tokens=1200]] [[tw:delay_ms=5]]";
    let bytes = Arc::new(AtomicU64::new(0));
    for _ in 0..STREAMS {
        let response = node.ask(prompt, json!({"stream": true})).await;
        let bytes = bytes.clone();
        tokio::spawn(async move {
            let mut body = response.bytes_stream();
            while let Some(Ok(part)) = body.next().await {
                let text = String::from_utf8_lossy(&part).into_owned();
                let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
                let chunks = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
                let length = |chunk: Value| {
                    chunk["choices"][0]["delta"]["content"]
                        .as_str()
                        .map_or(0, str::len)
                };
                bytes.fetch_add(chunks.map(length).sum::<usize>() as u64, Ordering::Relaxed);
            }
        });
    }
    let tokens = || bytes.load(Ordering::Relaxed) / 4;
    let begun = Instant::now();
    while tokens() < TOKENS {
        assert!(begun.elapsed() < SOON, "{} tokens", tokens());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let left = tempfile::tempdir().unwrap();
    let (spool, log) = (left.path().join("spool"), left.path().join("log"));
    let before = tokens();
    copy(&node.dir.path().join("data/spool"), &spool);
    let after = tokens();
    assert_eq!(node.events_now(), [], "all of them were running");
    let events = tokio::task::spawn_blocking(move || recovered(&spool, &log))
        .await
        .unwrap();
    assert_eq!(events.len(), STREAMS, "one event each");
    for event in &events {
        assert_eq!(
            (event.end, event.usage_source, event.attempts.len()),
            (EndState::Interrupted, UsageSource::Estimated, 1)
        );
        assert_eq!(event.charge, cost::charge(&event.tokens, &event.prices).unwrap());
    }
    let billed: u64 = events.iter().map(|event| event.tokens.completion()).sum();
    println!("billed {billed}; callers had {before} before and {after} after");
    assert!(
        billed * 100 >= before * 97 && billed * 100 <= after * 103,
        "billed {billed}; callers had {before} to {after}"
    );
    let completed = node.events(STREAMS).await;
    assert!(completed.iter().all(|event| event.end == EndState::Completed));
}
