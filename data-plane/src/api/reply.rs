//! Answers to callers: bodies, headers, and faults in the shape that OpenAI's clients know.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use tollway_shared::fault::{Fault, LimitNote, UpstreamNote};
use tollway_shared::ids::RequestId;

use crate::clock;
use crate::stages::relay::{Stream, Whole};

/// Seconds after which a request that was turned away for want of capacity may come again.
const RETRY_AFTER_SECONDS: u64 = 2;

/// An answer.
pub type Reply = Response<ReplyBody>;

/// The body of an answer.
pub enum ReplyBody {
    /// Known in full, accounted for already.
    Full(Option<Bytes>),
    /// A provider's whole answer.
    Whole(Box<Whole>),
    /// A stream.
    Stream(Stream),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Whole(whole) => Poll::Ready(whole.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Whole(whole) => whole.bytes_left() == 0,
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Whole(whole) => SizeHint::with_exact(whole.bytes_left()),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorOut<'a>,
}

#[derive(Serialize)]
struct ErrorOut<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<About<'a>>,
}

/// What more there is to say.
#[derive(Serialize)]
#[serde(untagged)]
enum About<'a> {
    Upstream(Metadata<'a>),
    Limit(LimitMetadata<'a>),
}

/// The budget that stopped a request.
#[derive(Serialize)]
struct LimitMetadata<'a> {
    limit_source: &'static str,
    budget: &'a str,
    resets_at: Option<String>,
}

impl<'a> From<LimitNote<'a>> for LimitMetadata<'a> {
    fn from(note: LimitNote<'a>) -> Self {
        Self {
            limit_source: note.source,
            budget: note.budget,
            resets_at: note.resets_at.map(|at| at.rfc3339()),
        }
    }
}

/// A provider's part in an error, under OpenRouter's names.
#[derive(Serialize)]
struct Metadata<'a> {
    provider_name: &'a str,
    provider_code: Option<u16>,
    raw: Option<&'a str>,
}

impl<'a> From<UpstreamNote<'a>> for Metadata<'a> {
    fn from(note: UpstreamNote<'a>) -> Self {
        Self {
            provider_name: note.provider.as_str(),
            provider_code: note.status,
            raw: note.message,
        }
    }
}

#[derive(Serialize)]
struct StreamErrorOut<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    error: StreamError<'a>,
    choices: [StreamChoice; 1],
}

#[derive(Serialize)]
struct StreamError<'a> {
    code: u16,
    message: &'a str,
    metadata: StreamErrorMetadata<'a>,
}

#[derive(Serialize)]
struct StreamErrorMetadata<'a> {
    error_type: &'a str,
    #[serde(flatten)]
    upstream: Option<Metadata<'a>>,
}

#[derive(Serialize)]
struct StreamChoice {
    index: u32,
    delta: StreamDelta,
    finish_reason: &'static str,
    native_finish_reason: Option<()>,
}

#[derive(Serialize)]
struct StreamDelta {
    content: &'static str,
}

/// A fault as a whole answer.
pub fn fault(fault: &Fault, id: Option<&RequestId>, mut headers: HeaderMap) -> Reply {
    let spec = fault.spec();
    let status = fault.status();
    let body = ErrorBody {
        error: ErrorOut {
            message: &fault.to_string(),
            kind: spec.kind,
            param: fault.param(),
            code: spec.code,
            metadata: fault
                .upstream()
                .map(|note| About::Upstream(note.into()))
                .or_else(|| fault.limit().map(|note| About::Limit(note.into()))),
        },
    };
    if let Some(id) = id {
        name(&mut headers, id);
    }
    retry(&mut headers, fault);
    if let Fault::FreeQuota { limit, resets_at, .. } = fault {
        text(&mut headers, "x-ratelimit-limit", &limit.to_string());
        text(&mut headers, "x-ratelimit-remaining", "0");
        text(&mut headers, "x-ratelimit-reset", &resets_at.0.to_string());
        if spec.retry {
            let wait_ms = resets_at.0.saturating_sub(clock::now().0).max(1).unsigned_abs();
            headers.insert(RETRY_AFTER, wait_ms.div_ceil(1_000).into());
        }
    }
    if let Fault::ModelRetired { successor, .. } = fault {
        text(&mut headers, "x-tollway-model-lifecycle", "retired");
        if let Some(successor) = successor {
            text(&mut headers, "x-tollway-model-successor", successor.as_str());
            text(
                &mut headers,
                "link",
                &format!("</v1/models/{successor}>; rel=\"successor-version\""),
            );
        }
    }
    json(status, headers, &body)
}

/// Whether and when the same request may come again. Both headers say the same: clients obey the one and time themselves by the other.
pub fn retry(headers: &mut HeaderMap, fault: &Fault) {
    let may = fault.spec().retry;
    headers.insert(
        "x-should-retry",
        HeaderValue::from_static(if may { "true" } else { "false" }),
    );
    if may {
        let seconds = fault.retry_after().unwrap_or(RETRY_AFTER_SECONDS);
        headers.insert(RETRY_AFTER, seconds.into());
    }
}

/// A fault as the last event of a stream. The code is a number: strict clients refuse a text here.
pub fn stream_fault(fault: &Fault, id: &str, created: i64, model: &str) -> Bytes {
    let body = StreamErrorOut {
        id,
        object: "chat.completion.chunk",
        created,
        model,
        error: StreamError {
            code: fault.status(),
            message: &fault.to_string(),
            metadata: StreamErrorMetadata {
                error_type: fault.spec().code,
                upstream: fault.upstream().map(Metadata::from),
            },
        },
        choices: [StreamChoice {
            index: 0,
            delta: StreamDelta { content: "" },
            finish_reason: "error",
            native_finish_reason: None,
        }],
    };
    let json = serde_json::to_string(&body).expect("text serializes");
    Bytes::from(format!("data: {json}\n\n"))
}

/// Any JSON.
pub fn json(status: u16, mut headers: HeaderMap, body: &impl Serialize) -> Reply {
    let bytes = serde_json::to_vec(body).expect("our answers serialize");
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply(status, headers, ReplyBody::Full(Some(bytes.into())))
}

/// A provider's whole answer.
pub fn whole(mut headers: HeaderMap, body: Whole) -> Reply {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply(200, headers, ReplyBody::Whole(Box::new(body)))
}

/// A stream.
pub fn stream(mut headers: HeaderMap, body: Stream) -> Reply {
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply(200, headers, ReplyBody::Stream(body))
}

/// Names the request in the answer.
pub fn name(headers: &mut HeaderMap, id: &RequestId) {
    text(headers, "x-tollway-request-id", id.as_str());
    text(headers, "x-generation-id", id.as_str());
}

/// Adds a header whose value is known to be plain; anything else is left out.
pub fn text(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn reply(status: u16, headers: HeaderMap, body: ReplyBody) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *reply.headers_mut() = headers;
    reply
}
