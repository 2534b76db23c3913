//! The built-in demo provider: an OpenAI-dialect server on loopback that repeats what it is told.
//!
//! It exists so that a machine without any provider can see a request routed, streamed, metered and billed. It is no
//! language model and says so in every answer; what it reports as tokens are the pieces it really read and wrote
//! ([`pieces`]), so counts and money add up. It keeps nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The provider's id in the catalog.
pub(crate) const PROVIDER: &str = "demo";
/// The model's id in the catalog.
pub(crate) const MODEL: &str = "demo/echo";
/// The model's name at the provider.
pub(crate) const UPSTREAM_MODEL: &str = "echo";
/// US dollars per million tokens: prompt, completion. Invented, so that a demo request shows money.
pub(crate) const PRICES: [&str; 2] = ["0.10", "0.20"];
/// Context window in tokens.
pub(crate) const CONTEXT_TOKENS: u32 = 32_768;

/// What every answer begins with.
const PREAMBLE: &str = "This is Tollway's demo provider, which repeats what it is told:";
/// Between two pieces of a stream, so that it can be seen to be one.
const PIECE_PAUSE: Duration = Duration::from_millis(10);
/// Letters in the longest piece.
const PIECE_LETTERS_MAX: usize = 6;
/// Largest request body.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A running demo provider.
#[derive(Debug)]
pub(crate) struct Demo {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Demo {
    /// Starts it on a free loopback port.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .await
            .context("the demo provider found no free port")?;
        let address = listener.local_addr()?;
        let routes = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/models", get(models))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            axum::serve(listener, routes)
                .with_graceful_shutdown(stopped)
                .await
        });
        Ok(Self {
            address,
            stop,
            server,
        })
    }

    /// The base URL in the form that a catalog takes.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Lets running answers end, for at most `within`.
    pub(crate) async fn stop(self, within: Duration) {
        self.stop.cancel();
        let abort = self.server.abort_handle();
        if tokio::time::timeout(within, self.server).await.is_err() {
            abort.abort();
        }
    }
}

#[derive(Debug, Deserialize)]
struct Ask {
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<usize>,
    #[serde(default)]
    max_completion_tokens: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

impl Message {
    /// The text, whether it came as text or as parts.
    fn text(&self) -> String {
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts: Vec<_> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
                texts.join(" ")
            }
            _ => String::new(),
        }
    }
}

/// What is said, in pieces, and how it is counted.
struct Answer {
    id: String,
    pieces: Vec<String>,
    prompt_tokens: usize,
    finish_reason: &'static str,
}

impl Answer {
    fn to(ask: &Ask) -> Self {
        let prompt_tokens = ask
            .messages
            .iter()
            .map(|message| pieces(&message.text()).len())
            .sum();
        let told = ask.messages.iter().rev().find(|message| message.role == "user");
        let text = format!("{PREAMBLE} {}", told.map(Message::text).unwrap_or_default());
        let mut pieces = pieces(text.trim_end());
        let most = ask.max_completion_tokens.or(ask.max_tokens).unwrap_or(usize::MAX);
        let finish_reason = if pieces.len() > most { "length" } else { "stop" };
        pieces.truncate(most);
        let mut random = [0u8; 12];
        // An id without randomness would still be an answer; uniqueness is all it is for.
        let _ = getrandom::fill(&mut random);
        Self {
            id: format!("chatcmpl-demo-{}", hex::encode(random)),
            pieces,
            prompt_tokens,
            finish_reason,
        }
    }

    fn usage(&self) -> Value {
        let (prompt, completion) = (self.prompt_tokens, self.pieces.len());
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    }

    fn whole(&self) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": created(), "model": UPSTREAM_MODEL,
            "choices": [{
                "index": 0, "finish_reason": self.finish_reason, "logprobs": null,
                "message": {"role": "assistant", "content": self.pieces.concat(), "refusal": null},
            }],
            "usage": self.usage(),
        })
    }

    /// The events of the stream, in order, without their pauses.
    fn events(&self, include_usage: bool) -> Vec<String> {
        let created = created();
        let chunk = |choices: Value, usage: Option<Value>| {
            let mut chunk = json!({
                "id": self.id, "object": "chat.completion.chunk", "created": created, "model": UPSTREAM_MODEL,
                "choices": choices,
            });
            if include_usage {
                chunk["usage"] = usage.unwrap_or(Value::Null);
            }
            format!("data: {chunk}\n\n")
        };
        let delta = |delta: Value, reason: Option<&str>| {
            let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
            chunk(json!([choice]), None)
        };
        let mut events = vec![delta(json!({"role": "assistant", "content": ""}), None)];
        events.extend(
            self.pieces
                .iter()
                .map(|piece| delta(json!({ "content": piece }), None)),
        );
        events.push(delta(json!({}), Some(self.finish_reason)));
        if include_usage {
            events.push(chunk(json!([]), Some(self.usage())));
        }
        events.push("data: [DONE]\n\n".into());
        events
    }
}

/// Cuts a text into what this provider calls tokens: at most [`PIECE_LETTERS_MAX`] letters or digits, or one other
/// character, each with the white space before it.
fn pieces(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let (mut piece, mut letters) = (String::new(), 0);
    for c in text.chars() {
        let fits = letters == 0 && piece.trim().is_empty()
            || c.is_alphanumeric() && (1..PIECE_LETTERS_MAX).contains(&letters);
        if !fits {
            out.push(std::mem::take(&mut piece));
            letters = 0;
        }
        piece.push(c);
        letters += usize::from(c.is_alphanumeric());
    }
    if !piece.is_empty() {
        out.push(piece);
    }
    out
}

fn created() -> i64 {
    jiff::Timestamp::now().as_second()
}

async fn chat(body: Bytes) -> Response {
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &error.to_string(), "invalid_request"),
    };
    if ask.model != UPSTREAM_MODEL {
        let text = format!(
            "the demo provider has no model `{}`; it has `{UPSTREAM_MODEL}`",
            ask.model
        );
        return refusal(StatusCode::NOT_FOUND, &text, "model_not_found");
    }
    let answer = Answer::to(&ask);
    if !ask.stream {
        return axum::Json(answer.whole()).into_response();
    }
    let include_usage = ask.stream_options.is_some_and(|options| options.include_usage);
    let events = answer.events(include_usage).into_iter().enumerate();
    let paced = futures::stream::iter(events).then(|(place, event)| async move {
        if place > 0 {
            tokio::time::sleep(PIECE_PAUSE).await;
        }
        Ok::<_, Infallible>(Bytes::from(event))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(paced)).into_response()
}

async fn models() -> Response {
    let model = json!({"id": UPSTREAM_MODEL, "object": "model", "created": 0, "owned_by": PROVIDER});
    axum::Json(json!({"object": "list", "data": [model]})).into_response()
}

fn refusal(status: StatusCode, message: &str, code: &str) -> Response {
    let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
    (status, axum::Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(extra: Value) -> Ask {
        let mut body = json!({"model": "echo", "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello, wonderful world!"}]},
        ]});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn pieces_are_short_and_together_the_text() {
        let text = "Hello, wonderful  wörld!\n(ok)";
        let cut = pieces(text);
        assert_eq!(cut.concat(), text);
        assert!(
            cut.iter()
                .all(|piece| piece.trim().chars().count() <= PIECE_LETTERS_MAX),
            "{cut:?}"
        );
        assert_eq!(pieces("Hello, wonderful"), ["Hello", ",", " wonder", "ful"]);
    }

    #[test]
    fn the_count_is_what_was_said_and_a_limit_is_kept() {
        let answer = Answer::to(&ask(json!({"max_tokens": 5})));
        assert_eq!(answer.finish_reason, "length");
        assert_eq!(answer.usage()["completion_tokens"], 5);
        let answer = Answer::to(&ask(json!({})));
        assert_eq!(answer.finish_reason, "stop");
        let text = answer.whole()["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(text.ends_with("Hello, wonderful world!"), "{text}");
        assert_eq!(answer.usage()["completion_tokens"], pieces(&text).len());
        assert_eq!(answer.usage()["prompt_tokens"], 3 + 6);
    }

    #[test]
    fn a_stream_says_the_same_as_the_whole_and_ends_with_usage_only_when_asked() {
        let answer = Answer::to(&ask(json!({"stream": true})));
        for include in [false, true] {
            let events = answer.events(include);
            assert_eq!(events.last().unwrap(), "data: [DONE]\n\n");
            let chunks: Vec<Value> = events[..events.len() - 1]
                .iter()
                .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
                .collect();
            let text: String = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
                .collect();
            assert_eq!(text, answer.pieces.concat());
            assert_eq!(chunks.iter().any(|chunk| chunk["usage"].is_object()), include);
        }
    }

    #[tokio::test]
    async fn an_unknown_model_is_refused_in_the_shape_of_the_dialect() {
        crate::install_crypto();
        let demo = Demo::start().await.unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let url = format!("{}/chat/completions", demo.base_url());
        let body = json!({"model": "gpt", "messages": []});
        let answer = http.post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "model_not_found");
        demo.stop(Duration::from_secs(5)).await;
    }
}
