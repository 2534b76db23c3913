//! The load generator: a closed loop at a fixed concurrency and an open loop at a fixed rate.
//!
//! It runs on one thread. A closed loop measures a window in the middle of steady load, so ramps do not count.
//! In the open loop a request never waits for another's answer; its time runs from its own send.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

/// Longest single request; past it the request has failed.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// A worker stops after so many failures: the run is lost anyway.
const FAILURES_MAX: u64 = 20;
/// How much of the end of a body is looked at for the end mark.
const TAIL_BYTES: usize = 64;

/// Where to send requests.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    pub(crate) api_key: String,
}

/// What to send.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) body: Bytes,
    pub(crate) stream: bool,
}

impl Work {
    /// A chat request of about `bytes` bytes whose prompt holds `directives` for the scripted provider.
    pub(crate) fn chat(model: &str, directives: &str, bytes: usize, stream: bool) -> Self {
        const LINE: &str = "The quick brown fox jumps over the lazy dog while the night train rolls past.\n";
        let body = |filler: &str| {
            serde_json::json!({
                "model": model,
                "messages": [{"role": "user", "content": format!("{directives}\n{filler}")}],
                "max_tokens": 256,
                "stream": stream,
            })
            .to_string()
        };
        let room = bytes.saturating_sub(body("").len());
        let filler: String = LINE
            .chars()
            .cycle()
            .take(room * LINE.len() / (LINE.len() + 1))
            .collect();
        Self {
            body: body(&filler).into(),
            stream,
        }
    }
}

/// Times of one answered request, from its send, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// To the first byte of the body.
    pub(crate) first_us: f64,
    /// To its last byte.
    pub(crate) total_us: f64,
}

/// What one round of load gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) times: Vec<Times>,
    pub(crate) requests: u64,
    /// Events received (lines that start with `data:`), also of requests that were still open at the end.
    pub(crate) events: u64,
    pub(crate) elapsed: Duration,
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
}

/// What the workers of a round share; all on one thread.
#[derive(Default)]
struct Counters {
    counting: Cell<bool>,
    stopping: Cell<bool>,
    requests: Cell<u64>,
    events: Cell<u64>,
    failures: Cell<u64>,
    first_failure: RefCell<Option<String>>,
    times: RefCell<Vec<Times>>,
}

impl Counters {
    fn failed(&self, failure: String) {
        self.failures.set(self.failures.get() + 1);
        self.first_failure.borrow_mut().get_or_insert(failure);
    }

    fn answered(&self, times: Times) {
        if self.counting.get() {
            self.requests.set(self.requests.get() + 1);
            self.times.borrow_mut().push(times);
        }
    }

    fn outcome(&self, elapsed: Duration) -> Outcome {
        Outcome {
            times: self.times.take(),
            requests: self.requests.get(),
            events: self.events.get(),
            elapsed,
            failures: self.failures.get(),
            first_failure: self.first_failure.take(),
        }
    }
}

/// Keeps `concurrency` requests in flight; `at_edges` is called at the start and at the end of the measured window.
pub(crate) async fn closed_loop(
    target: &Target,
    work: &Work,
    concurrency: usize,
    warm_up: Duration,
    window: Duration,
    mut at_edges: impl FnMut(),
) -> Outcome {
    let counters = Rc::new(Counters::default());
    let local = LocalSet::new();
    let mut workers = JoinSet::new();
    for number in 0..concurrency {
        let (target, work, counters) = (target.clone(), work.clone(), Rc::clone(&counters));
        // Spread the starts, or paced streams march in step.
        let delay = warm_up.mul_f64(number as f64 / concurrency as f64 / 2.0);
        workers.spawn_local_on(
            async move {
                tokio::time::sleep(delay).await;
                worker(&target, &work, &counters).await;
            },
            &local,
        );
    }
    local
        .run_until(async {
            tokio::time::sleep(warm_up).await;
            at_edges();
            counters.counting.set(true);
            let start = Instant::now();
            tokio::time::sleep(window).await;
            counters.counting.set(false);
            let elapsed = start.elapsed();
            at_edges();
            counters.stopping.set(true);
            // Requests in flight end in order: what the gateway does for them still has to succeed.
            while workers.join_next().await.is_some() {}
            counters.outcome(elapsed)
        })
        .await
}

async fn worker(target: &Target, work: &Work, counters: &Counters) {
    let mut connection = None;
    while !counters.stopping.get() && counters.failures.get() < FAILURES_MAX {
        match exchange(&mut connection, target, work, counters).await {
            Ok(times) => counters.answered(times),
            Err(failure) => {
                connection = None;
                counters.failed(failure);
            }
        }
    }
}

/// Sends `rate_per_s` requests a second for `window`, evenly, whatever happens to the earlier ones.
pub(crate) async fn open_loop(
    target: &Target,
    work: &Work,
    rate_per_s: u32,
    window: Duration,
    mut at_edges: impl FnMut(),
) -> Outcome {
    let counters = Rc::new(Counters::default());
    let idle: Rc<RefCell<Vec<SendRequest<Full<Bytes>>>>> = Rc::default();
    let gap = Duration::from_secs(1) / rate_per_s;
    let sends = (window.as_secs_f64() * f64::from(rate_per_s)) as u32;
    let warm_up_sends = rate_per_s / 5;
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut open = JoinSet::new();
            let mut ticks = tokio::time::interval(gap);
            let mut start = Instant::now();
            for number in 0..warm_up_sends + sends {
                ticks.tick().await;
                if number == warm_up_sends {
                    at_edges();
                    counters.counting.set(true);
                    start = Instant::now();
                }
                let (target, work) = (target.clone(), work.clone());
                let (counters, idle) = (Rc::clone(&counters), Rc::clone(&idle));
                let counted = counters.counting.get();
                open.spawn_local(async move {
                    let mut connection = idle.borrow_mut().pop();
                    match exchange(&mut connection, &target, &work, &counters).await {
                        Ok(times) if counted => counters.answered(times),
                        Ok(_) => {}
                        Err(failure) => return counters.failed(failure),
                    }
                    idle.borrow_mut().extend(connection);
                });
            }
            while open.join_next().await.is_some() {}
            let elapsed = start.elapsed();
            at_edges();
            counters.outcome(elapsed)
        })
        .await
}

/// Opens `count` streams, waits for the first byte of each, calls `while_open`, and hangs up on all.
///
/// Errors: the first stream that could not be opened.
pub(crate) async fn hold_open<T>(
    target: &Target,
    work: &Work,
    count: usize,
    while_open: impl FnOnce() -> T,
) -> Result<T, String> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let open = async {
            let mut sender = connect(target.address).await?;
            let response = sender
                .send_request(request(target, work))
                .await
                .map_err(|error| error.to_string())?;
            if response.status() != 200 {
                return Err(format!("status {}", response.status()));
            }
            let mut body = response.into_body();
            body.frame()
                .await
                .ok_or("an empty body")?
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((sender, body))
        };
        held.push(
            tokio::time::timeout(REQUEST_MAX, open)
                .await
                .map_err(|_| "no first byte".to_owned())??,
        );
    }
    Ok(while_open())
}

async fn exchange(
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    target: &Target,
    work: &Work,
    counters: &Counters,
) -> Result<Times, String> {
    let answered = tokio::time::timeout(REQUEST_MAX, async {
        let mut sender = match connection.take() {
            Some(sender) => sender,
            None => connect(target.address).await?,
        };
        sender
            .ready()
            .await
            .map_err(|error| format!("the connection was closed: {error}"))?;
        let start = Instant::now();
        let response = sender
            .send_request(request(target, work))
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let mut body = response.into_body();
        let mut first_us = None;
        let mut tail = Vec::with_capacity(2 * TAIL_BYTES);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("the body broke: {error}"))?;
            let Some(data) = frame.data_ref() else { continue };
            first_us.get_or_insert_with(|| micros(start));
            if work.stream && counters.counting.get() {
                let events = memchr::memmem::find_iter(data, b"data: ").count() as u64;
                counters.events.set(counters.events.get() + events);
            }
            tail.extend_from_slice(&data[data.len().saturating_sub(TAIL_BYTES)..]);
            if tail.len() > TAIL_BYTES {
                tail.drain(..tail.len() - TAIL_BYTES);
            }
        }
        let total_us = micros(start);
        let end_mark: &[u8] = if work.stream { b"[DONE]" } else { b"}" };
        if status != 200 || memchr::memmem::find(&tail, end_mark).is_none() {
            return Err(format!(
                "status {status}, body ends: {}",
                String::from_utf8_lossy(&tail)
            ));
        }
        *connection = Some(sender);
        Ok(Times {
            first_us: first_us.unwrap_or(total_us),
            total_us,
        })
    })
    .await;
    answered.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_MAX:?}")))
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        let _ = connection.await; // the sender tells
    });
    Ok(sender)
}

fn request(target: &Target, work: &Work) -> Request<Full<Bytes>> {
    Request::post(&target.path)
        .header(header::HOST, "127.0.0.1")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {}", target.api_key))
        .body(Full::new(work.body.clone()))
        .expect("path and key were checked when the target was made")
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
