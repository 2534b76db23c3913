//! Callers who leave, at every event of many streams and under every policy: what is billed is what the provider bills.
//!
//! A provider that stops when it is cancelled bills the prompt and what it has sent; one that works on bills the whole answer. The
//! provider here writes a stream up to one event and waits: for the end of its connection, or for the word to go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tollway_data::config::Config;
use tollway_proto::usage::{EndState, UsageEvent, UsageSource};
use tollway_provider::Provider as Scripted;
use tollway_shared::catalog::Dialect;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::Resource;

use crate::node::{MODEL, Node, REGION_KEY, SOON, agrees, served_by};
use crate::recorded::{COMPLETION_TOKENS, PROMPT_TOKENS, Recorded, stream};

const STREAMS: u64 = 200;
const DIALECTS: [Dialect; 2] = [Dialect::OpenAi, Dialect::Anthropic];
/// Requests at once.
const AT_ONCE: usize = 24;
/// What the provider does once the caller has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It waits to be cancelled.
    Waits,
    /// It writes the rest.
    GoesOn,
}

/// A policy, by the name of the provider that has it, and what its provider does.
const POLICIES: [(&str, After); 6] = [
    ("aborts", After::Waits),
    ("drains", After::Waits),
    ("lasts", After::GoesOn),
    ("whole", After::GoesOn),
    ("bills-aborts", After::Waits),
    ("bills", After::GoesOn),
];

/// One request, as its caller announces it to the provider.
struct Job {
    stream: Arc<Recorded>,
    /// The last event that is written while the caller is there.
    index: usize,
    after: After,
    sent: oneshot::Sender<()>,
    left: oneshot::Receiver<Instant>,
    seen: oneshot::Sender<Call>,
}

/// One request, as its provider saw it.
struct Call {
    request_id: String,
    /// How long after the caller left its connection ended; none: the answer was written to its end.
    cancelled_after: Option<Duration>,
}

/// Jobs by their number, which is the prompt.
type Jobs = Arc<Mutex<HashMap<u64, Job>>>;

async fn read_head(socket: &mut TcpStream) -> String {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let length = text.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        if let (Some(head), Some(length)) = (text.find("\r\n\r\n"), length)
            && bytes.len() >= head + 4 + length
        {
            return text;
        }
        let read = socket.read(&mut part).await.unwrap();
        assert!(read > 0, "a whole request");
        bytes.extend_from_slice(&part[..read]);
    }
}

fn chunked(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Serves one connection: the job's stream up to its event, then what its provider does.
async fn serve(mut socket: TcpStream, jobs: Jobs) {
    socket.set_nodelay(true).unwrap();
    let head = read_head(&mut socket).await;
    let after_word = |word: &str, end: &str| {
        let rest = head.split(word).nth(1).unwrap();
        rest.split(end).next().unwrap().to_owned()
    };
    let number = after_word("\"prompt-", "\"").parse().unwrap();
    let request_id = after_word("x-tollway-request-id: ", "\r\n");
    let job = jobs.lock().unwrap().remove(&number).unwrap();
    let (first, rest) = job.stream.events.split_at(job.index + 1);
    let mut out = String::from(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    out.extend(first.iter().map(|(event, _)| chunked(event)));
    socket.write_all(out.as_bytes()).await.unwrap();
    job.sent.send(()).unwrap();
    let left = job.left.await.unwrap();
    let cancelled_after = match job.after {
        After::GoesOn => {
            let rest: String = rest.iter().map(|(event, _)| chunked(event)).collect();
            socket.write_all((rest + "0\r\n\r\n").as_bytes()).await.unwrap();
            None
        }
        After::Waits => {
            let ended = tokio::time::timeout(SOON, socket.read(&mut [0; 1])).await;
            assert!(
                matches!(ended, Ok(Ok(0) | Err(_))),
                "nobody cancelled the request"
            );
            Some(left.elapsed())
        }
    };
    let call = Call {
        request_id,
        cancelled_after,
    };
    assert!(job.seen.send(call).is_ok());
}

/// A node with a provider of each policy in each dialect.
async fn start(dummy: &Scripted) -> (Node, Jobs) {
    let one_core = |config: &mut Config| config.server.threads = 1; // which has seen what is usual
    let node = Node::start_with(&[], one_core).await;
    let jobs = Jobs::default();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for dialect in DIALECTS {
        for (policy, _) in POLICIES {
            for mut resource in served_by(dummy, &named(policy, dialect), dialect, 0, &Key::new(REGION_KEY)) {
                if let Resource::Provider(provider) = &mut resource {
                    provider.base_url = format!("http://127.0.0.1:{port}/v1");
                    (provider.first_byte_timeout_ms, provider.idle_timeout_ms) = (60_000, 60_000);
                }
                node.put(resource);
            }
        }
    }
    let served = jobs.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(socket, served.clone()));
        }
    });
    (node, jobs)
}

fn named(policy: &str, dialect: Dialect) -> String {
    match policy.split_once("bills") {
        Some((_, rest)) => format!("bills-{}{rest}", dialect.as_str()),
        None => format!("{}-{policy}", dialect.as_str()),
    }
}

/// The bytes of a request for this job.
fn request(node: &Node, number: u64, provider: &str) -> String {
    // The prompt has 16 bytes.
    let body = json!({"model": MODEL, "stream": true, "provider": {"only": [provider]},
        "messages": [{"role": "user", "content": format!("prompt-{number:09}")}]});
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        node.key,
        body.len()
    )
}

/// A caller who leaves when the provider has written up to `index`. Returns the call as the provider saw it.
async fn leave(
    node: &Node,
    jobs: &Jobs,
    number: u64,
    stream: Arc<Recorded>,
    index: usize,
    policy: (&str, After),
) -> Call {
    let ((sent, is_sent), (has_left, left), (seen, call)) =
        (oneshot::channel(), oneshot::channel(), oneshot::channel());
    let (provider, after) = (named(policy.0, stream.dialect), policy.1);
    let job = Job {
        stream,
        index,
        after,
        sent,
        left,
        seen,
    };
    jobs.lock().unwrap().insert(number, job);
    let address = node.running.api_url.strip_prefix("http://").unwrap();
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller
        .write_all(request(node, number, &provider).as_bytes())
        .await
        .unwrap();
    is_sent.await.unwrap();
    drop(caller);
    has_left.send(Instant::now()).unwrap();
    call.await.unwrap()
}

/// What the provider bills of the completion.
fn rule((name, after): (&str, After), stream: &Recorded, index: usize) -> u64 {
    if name.starts_with("bills") || after == After::GoesOn {
        COMPLETION_TOKENS
    } else {
        stream.events[index].1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_at_whatever_event_is_billed_as_the_provider_bills() {
    let dummy = Scripted::start("dummy");
    let (node, jobs) = start(&dummy).await;
    let node = Arc::new(node);
    let mut number = 0;
    // What is usual at a provider that goes on is known from one whole answer.
    for dialect in DIALECTS {
        let stream = Arc::new(
            (0..)
                .map(stream)
                .find(|stream| stream.dialect == dialect)
                .unwrap(),
        );
        for policy in POLICIES.iter().filter(|(name, _)| name.starts_with("bills")) {
            let last = stream.events.len() - 1;
            number += 1;
            leave(
                &node,
                &jobs,
                number,
                stream.clone(),
                last,
                (policy.0, After::GoesOn),
            )
            .await;
        }
    }
    node.events(usize::try_from(number).unwrap()).await;
    let (at_once, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), tokio::task::JoinSet::new());
    for stream in (0..STREAMS).map(stream) {
        let stream = Arc::new(stream);
        for index in 0..stream.events.len() {
            for policy in POLICIES {
                let turn = at_once.clone().acquire_owned().await.unwrap();
                number += 1;
                let (node, jobs, stream) = (node.clone(), jobs.clone(), stream.clone());
                running.spawn(async move {
                    let call = leave(&node, &jobs, number, stream.clone(), index, policy).await;
                    drop(turn);
                    (call, policy, stream, index)
                });
            }
        }
    }
    let calls = running.join_all().await;
    let events = node.events(usize::try_from(number).unwrap()).await;
    let events: HashMap<String, &UsageEvent> = events
        .iter()
        .map(|event| (event.request_id.as_str().to_lowercase(), event))
        .collect();
    let mut waits = Vec::new();
    let (mut wrong, mut exact) = (Vec::new(), 0);
    for (call, policy, stream, index) in &calls {
        let event = events[&call.request_id];
        let billed = (event.tokens.prompt(), event.tokens.completion());
        if billed != (PROMPT_TOKENS, rule(*policy, stream, *index)) {
            wrong.push(format!(
                "{policy:?} at {index} of {:?}: {billed:?}, not {}, {:?}",
                stream.dialect,
                rule(*policy, stream, *index),
                event.end
            ));
        }
        exact += usize::from(event.usage_source == UsageSource::Provider);
        // After the last event there is nothing to cancel: the tail of its body is waited for.
        if policy.0.ends_with("aborts") && index + 1 < stream.events.len() {
            waits.extend(call.cancelled_after);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}: {:#?}",
        wrong.len(),
        calls.len(),
        &wrong[..wrong.len().min(20)]
    );
    waits.sort();
    let (half, most) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!(
        "{} callers left, {exact} of them are billed by the provider's own count; cancelled after {half:?} (median), {most:?} (99 of 100)",
        calls.len()
    );
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_read_on_as_well() {
    let provider = Scripted::start("whole");
    let node = Node::start(&[(&provider, "whole", Dialect::OpenAi)]).await;
    let asked = node.ask("[[tw:stall_ms=200]] [[tw:completion_tokens=77]]", json!({}));
    assert!(
        tokio::time::timeout(Duration::from_millis(80), asked)
            .await
            .is_err()
    );
    let event = node.events(1).await.remove(0);
    assert_eq!((event.end, event.tokens.completion()), (EndState::Cancelled, 77));
    agrees(&event, &provider);
}

#[tokio::test]
async fn an_answer_is_read_on_for_so_many_tokens_and_no_more() {
    let provider = Scripted::start("counts");
    let node = Node::start(&[(&provider, "counts", Dialect::OpenAi)]).await;
    // A piece is two tokens, by the estimate of a quarter of its bytes.
    let prompt = "[[tw:chunks=1000]] [[tw:delay_ms=10]]";
    let response = node.ask(prompt, json!({"stream": true})).await;
    let mut body = response.bytes_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    let event = node.events(1).await.remove(0);
    assert_eq!(
        (event.end, event.usage_source),
        (EndState::Cancelled, UsageSource::Estimated)
    );
    let billed = event.tokens.completion();
    assert!((10..1_000).contains(&billed), "{billed}");
    let begun = Instant::now();
    while provider.counts().hung_up == 0 {
        assert!(begun.elapsed() < SOON, "the provider never noticed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
