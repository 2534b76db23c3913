//! Callers: chat requests to nodes, streamed and not, some of which hang up, and what came of each.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

/// How long a caller keeps an unused connection: less than any deadline of a node, so that no request is sent on a connection that
/// is just being closed.
const KEPT_IDLE: Duration = Duration::from_secs(2);
/// The longest a caller waits for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One request to be sent.
#[derive(Debug, Clone)]
pub struct Call {
    /// The model asked for.
    pub model: String,
    /// The prompt, with any directives for the scripted provider in it.
    pub prompt: String,
    /// Whether a stream is asked for, and whether with usage.
    pub stream: Option<Usage>,
    /// Hang up once this many events have arrived.
    pub hang_up_after: Option<usize>,
}

/// Whether a streaming caller asks for the usage chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `stream_options.include_usage` is true.
    Asked,
    /// It is absent.
    NotAsked,
}

impl Call {
    /// A request that is answered in one piece.
    pub fn plain(model: &str, prompt: impl Into<String>) -> Self {
        Self {
            model: model.to_owned(),
            prompt: prompt.into(),
            stream: None,
            hang_up_after: None,
        }
    }

    /// A streamed request.
    pub fn streamed(model: &str, prompt: impl Into<String>, usage: Usage) -> Self {
        Self {
            stream: Some(usage),
            ..Self::plain(model, prompt)
        }
    }

    /// The same request, given up after `events` events.
    #[must_use]
    pub fn hanging_up_after(mut self, events: usize) -> Self {
        self.hang_up_after = Some(events);
        self
    }

    fn body(&self) -> serde_json::Value {
        let mut body = json!({"model": self.model, "messages": [{"role": "user", "content": self.prompt}]});
        if let Some(usage) = self.stream {
            body["stream"] = json!(true);
            if usage == Usage::Asked {
                body["stream_options"] = json!({"include_usage": true});
            }
        }
        body
    }
}

/// What a caller saw.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status; none when the connection failed before one came.
    pub status: Option<u16>,
    /// `x-tollway-request-id`.
    pub request_id: Option<String>,
    /// The response headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, or the stream's bytes as far as they were read.
    pub body: String,
    /// How it ended.
    pub end: AnswerEnd,
    /// From sending to the end.
    pub took: Duration,
}

/// How a caller's request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// Whole.
    Whole,
    /// The caller hung up as planned.
    HungUp,
    /// The stream carried an error event.
    ErrorEvent,
    /// The connection broke without a word.
    Cut,
    /// No connection, or no answer in time.
    Unreachable,
}

impl Answer {
    /// Whether this is a complete, successful answer.
    pub fn is_good(&self) -> bool {
        self.status == Some(200) && self.end == AnswerEnd::Whole
    }

    /// The body as JSON, for answers in one piece.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// A client that keeps connections, as callers do.
pub fn client() -> reqwest::Client {
    crate::install_crypto();
    reqwest::Client::builder()
        .timeout(ANSWER_WITHIN)
        .pool_idle_timeout(KEPT_IDLE)
        .tcp_nodelay(true)
        .build()
        .expect("a plain client needs nothing from outside")
}

/// Sends one request to a node (`api_url` ends in `/v1`) and reads what comes.
pub async fn send(client: &reqwest::Client, api_url: &str, key: &str, call: &Call) -> Answer {
    let begun = Instant::now();
    let request = client
        .post(format!("{api_url}/chat/completions"))
        .bearer_auth(key)
        .json(&call.body());
    let mut answer = Answer {
        status: None,
        request_id: None,
        headers: reqwest::header::HeaderMap::new(),
        body: String::new(),
        end: AnswerEnd::Unreachable,
        took: Duration::ZERO,
    };
    match request.send().await {
        Ok(response) => {
            answer.status = Some(response.status().as_u16());
            answer.headers = response.headers().clone();
            let id = response.headers().get("x-tollway-request-id");
            answer.request_id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
            read(response, call, &mut answer).await;
        }
        // What the connection's end looked like, for a test that fails on it.
        Err(error) => answer.body = format!("{error:?}"),
    }
    answer.took = begun.elapsed();
    answer
}

async fn read(response: reqwest::Response, call: &Call, answer: &mut Answer) {
    let mut bytes = Vec::new();
    let mut pieces = response.bytes_stream();
    answer.end = loop {
        match pieces.next().await {
            None => break AnswerEnd::Whole,
            Some(Err(_)) => break AnswerEnd::Cut,
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
        }
        let events = bytes.windows(2).filter(|pair| pair == b"\n\n").count();
        if call.hang_up_after.is_some_and(|after| events >= after) {
            break AnswerEnd::HungUp;
        }
    };
    drop(pieces);
    answer.body = String::from_utf8_lossy(&bytes).into_owned();
    let streamed = call.stream.is_some() && answer.status == Some(200);
    if streamed && answer.end == AnswerEnd::Whole {
        answer.end = match (
            answer.body.contains("\"error\":{"),
            answer.body.ends_with("data: [DONE]\n\n"),
        ) {
            (true, _) => AnswerEnd::ErrorEvent,
            (false, true) => AnswerEnd::Whole,
            (false, false) => AnswerEnd::Cut,
        };
    }
}
