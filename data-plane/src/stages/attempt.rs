//! The failover loop, until the first byte: encode, send, classify, tell health, next.
//!
//! The answer's headers are held until a whole answer is read or a stream's first event is here, so that a provider that fails before
//! its first token costs the caller nothing but time. After that there is no failover.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};
use tollway_shared::catalog::{AuthScheme, credential_aad};
use tollway_shared::fault::{AttemptFault, Fault};
use tollway_shared::seal;

use super::plan::Plan;
use crate::ask::Ask;
use crate::dialects::slices::Slices;
use crate::dialects::sse::{Frame, Parser};
use crate::dialects::{self, Emit, Events, ProviderError, ReplyFault};
use crate::pipeline::{Caller, Context};
use crate::routing::Candidate;
use crate::upstream::{Answer, AnswerBody, Origin};

/// Most bytes of an error body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How long an error body may take.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// What the caller is answered with.
pub enum Opened {
    /// A whole answer.
    Whole(Bytes),
    /// A stream whose first event is here.
    Stream(Box<Begun>),
}

/// A stream that has begun.
pub struct Begun {
    /// The rest of the provider's body.
    pub body: AnswerBody,
    /// What was read of it and not looked at yet.
    pub parser: Parser,
    /// The dialect.
    pub events: Events,
    /// What the first event became.
    pub first: Emit,
}

/// A request that is ready to go out, and where to.
type Call = (Rc<Origin>, Request<Slices>);

/// Why an attempt gave no answer, with the provider's words where they are for the caller.
struct Failed {
    fault: AttemptFault,
    rejected: Option<String>,
    /// Whether the provider may have worked, and will bill for it.
    worked: bool,
}

impl From<AttemptFault> for Failed {
    fn from(fault: AttemptFault) -> Self {
        Self {
            fault,
            rejected: None,
            worked: fault.may_have_worked(),
        }
    }
}

/// Tries the plan's endpoints one after the other. Errors: the last one's failure, or the first that no other endpoint would mend.
pub async fn first_byte(cx: &mut Context, plan: &Plan, caller: &Caller, ask: &Ask) -> Result<Opened, Fault> {
    let mut last = None;
    for (index, candidate) in plan.attempts.iter().enumerate() {
        // Encoded ahead of the intent: a field that has no counterpart is the caller's to mend, and nothing was sent.
        let encoded = dialects::encode(ask, &candidate.endpoint, &candidate.provider)?;
        if let Some((before, fault)) = last.take() {
            let before: &Candidate = before;
            let fault: AttemptFault = fault;
            cx.plane.meters.failover(before, candidate, fault.as_str());
        }
        // Prepared ahead of it too: what cannot be sent is nobody's usage.
        let answered = match prepared(cx, candidate, encoded, ask) {
            Ok(call) => {
                cx.record.begin(candidate, caller, ask, cx.snapshot.revision)?;
                let answered = try_one(cx, candidate, call, ask).await;
                answered.inspect_err(|failed| {
                    cx.record.attempt_failed(failed.fault.as_str(), failed.worked);
                })
            }
            Err(fault) => {
                cx.record.attempt_unsent(candidate, fault.as_str());
                Err(fault.into())
            }
        };
        match answered {
            Ok(opened) => {
                cx.plane.meters.attempt(candidate, "ok");
                cx.plane
                    .health
                    .borrow_mut()
                    .note(&candidate.endpoint.id, None, cx.arrival.at);
                return Ok(opened);
            }
            Err(failed) => {
                let fault = failed.fault;
                cx.plane.meters.attempt(candidate, fault.as_str());
                let now = crate::clock::now();
                cx.plane
                    .health
                    .borrow_mut()
                    .note(&candidate.endpoint.id, Some(fault), now);
                tracing::debug!(request = %cx.arrival.request_id, endpoint = %candidate.endpoint.id, ?fault, "an attempt failed");
                if !fault.another_may_work() || index + 1 == plan.attempts.len() {
                    return Err(ending(candidate, failed, index + 1));
                }
                last = Some((candidate, fault));
            }
        }
    }
    Err(Fault::Internal) // a plan is never empty
}

fn ending(candidate: &Candidate, failed: Failed, tried: usize) -> Fault {
    let provider = candidate.provider.id.clone();
    match (failed.fault, failed.rejected) {
        (AttemptFault::Status(status), Some(message)) if !failed.fault.another_may_work() => {
            Fault::UpstreamRejected {
                provider,
                status,
                message,
            }
        }
        (last, _) => Fault::AttemptsExhausted {
            tried,
            provider,
            last,
        },
    }
}

/// The call to a provider, complete: address, credential, body.
fn prepared(
    cx: &Context,
    candidate: &Candidate,
    encoded: dialects::Encoded,
    ask: &Ask,
) -> Result<Call, AttemptFault> {
    let origin = cx.plane.upstream.origin(&candidate.provider);
    let origin = origin.ok_or(AttemptFault::Address)?;
    let mut request = Request::new(encoded.body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = origin.target(encoded.path).ok_or(AttemptFault::Address)?.into();
    *request.headers_mut() = headers(cx, candidate, &origin.authority, encoded.headers, ask.stream)?;
    Ok((origin, request))
}

async fn try_one(
    cx: &mut Context,
    candidate: &Candidate,
    (origin, request): Call,
    ask: &Ask,
) -> Result<Opened, Failed> {
    let provider = &candidate.provider;
    let plane = cx.plane.clone();
    let connect = u64::from(provider.connect_timeout_ms);
    let first = u64::from(provider.first_byte_timeout_ms.max(1));
    let deadline = Instant::now() + Duration::from_millis(connect + first);
    let sent = timeout_at(deadline, plane.upstream.send(provider, origin, request)).await;
    let answer = sent.map_err(|_| AttemptFault::Timeout)??;
    let status = answer.head.status.as_u16();
    cx.record.attempt_answered(status);
    if !answer.head.status.is_success() {
        return Err(refusal(provider.dialect, status, answer).await);
    }
    let model = candidate.endpoint.model.as_str();
    let created = cx.arrival.at.0 / 1_000;
    if ask.stream {
        let events = Events::new(provider.dialect, ask.wants_usage, model, created);
        return timeout_at(deadline, begun(cx, answer.body, events))
            .await
            .map_err(|_| AttemptFault::Timeout)?;
    }
    let idle = Duration::from_millis(u64::from(provider.idle_timeout_ms.max(1)));
    let body = whole(answer.body, cx.plane.limits.reply_bytes_max, idle).await?;
    match dialects::reply(provider.dialect, body, model, created) {
        Ok(reply) => {
            cx.record.tally = reply.tally;
            Ok(Opened::Whole(reply.body))
        }
        Err(ReplyFault::Garbled) => Err(AttemptFault::Garbled.into()),
        Err(ReplyFault::Error(error)) => Err(inside(error)),
    }
}

/// Built fresh from what is known here: nothing of the caller's headers reaches a provider.
fn headers(
    cx: &Context,
    candidate: &Candidate,
    authority: &str,
    dialect: &'static [(&'static str, &'static str)],
    stream: bool,
) -> Result<HeaderMap, AttemptFault> {
    let mut headers = HeaderMap::with_capacity(8);
    let host = HeaderValue::from_str(authority).map_err(|_| AttemptFault::Address)?;
    headers.insert(HOST, host);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("tollway/", env!("CARGO_PKG_VERSION"))),
    );
    let accept = if stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    headers.insert(ACCEPT, HeaderValue::from_static(accept));
    for (name, value) in dialect {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Ok(id) = HeaderValue::from_str(cx.arrival.request_id.as_str()) {
        headers.insert("x-tollway-request-id", id);
    }
    match candidate.provider.auth {
        AuthScheme::None => {}
        AuthScheme::Bearer => drop(headers.insert(AUTHORIZATION, credential(cx, candidate)?)),
        AuthScheme::XApiKey => drop(headers.insert("x-api-key", credential(cx, candidate)?)),
    }
    Ok(headers)
}

/// The provider's credential as a header, opened once per version and core.
fn credential(cx: &Context, candidate: &Candidate) -> Result<HeaderValue, AttemptFault> {
    let provider = &candidate.provider;
    let credentials = cx.snapshot.credentials.get(&provider.id);
    let credential = credentials
        .and_then(|all| all.values().next())
        .ok_or(AttemptFault::Credential)?;
    if let Some((version, value)) = cx.plane.credentials.borrow().get(&credential.id)
        && *version == credential.version
    {
        return Ok(value.clone());
    }
    let key = cx.plane.live.region_key().ok_or(AttemptFault::Credential)?;
    let aad = credential_aad(&provider.id, &credential.id, credential.version);
    let secret = seal::open(&key, &aad, &credential.sealed).map_err(|_| AttemptFault::Credential)?;
    let mut text = match provider.auth {
        AuthScheme::Bearer => b"Bearer ".to_vec(),
        AuthScheme::XApiKey | AuthScheme::None => Vec::new(),
    };
    text.extend_from_slice(secret.expose());
    let mut value = HeaderValue::from_bytes(&text).map_err(|_| AttemptFault::Credential)?;
    value.set_sensitive(true);
    let entry = (credential.version, value.clone());
    cx.plane
        .credentials
        .borrow_mut()
        .insert(credential.id.clone(), entry);
    Ok(value)
}

/// An answer with an error status.
async fn refusal(dialect: tollway_shared::catalog::Dialect, status: u16, answer: Answer) -> Failed {
    let body = whole(answer.body, ERROR_BYTES_MAX, ERROR_BODY_TIMEOUT).await;
    Failed {
        fault: AttemptFault::Status(status),
        rejected: Some(dialects::error_message(dialect, &body.unwrap_or_default())),
        worked: false,
    }
}

/// An error under a status of success, before anything was sent to the caller.
fn inside(error: ProviderError) -> Failed {
    Failed {
        fault: AttemptFault::Status(error.status.unwrap_or(502)),
        rejected: Some(error.message),
        worked: false,
    }
}

/// A whole body, with a bound on its size and on its silences.
async fn whole(mut body: AnswerBody, max: usize, idle: Duration) -> Result<Bytes, AttemptFault> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    loop {
        let frame = timeout(idle, body.frame())
            .await
            .map_err(|_| AttemptFault::Timeout)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| AttemptFault::Broken)?.into_data() else {
            continue;
        };
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            head => {
                rest.extend_from_slice(&head.unwrap_or_default());
                rest.extend_from_slice(&data);
            }
        }
        if rest.len().max(first.as_ref().map_or(0, Bytes::len)) > max {
            return Err(AttemptFault::Garbled);
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}

/// Reads a stream up to its first event that goes to the caller.
async fn begun(cx: &mut Context, mut body: AnswerBody, mut events: Events) -> Result<Opened, Failed> {
    let mut parser = Parser::default();
    loop {
        while let Some(frame) = parser.next_frame().map_err(|_| AttemptFault::Garbled)? {
            if let Some(first) = opening(cx, &mut events, &frame)? {
                return Ok(Opened::Stream(Box::new(Begun {
                    body,
                    parser,
                    events,
                    first,
                })));
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    parser.push(data);
                }
            }
            Some(Err(_)) | None => return Err(AttemptFault::Broken.into()),
        }
    }
}

/// Whether an event is the first that goes to the caller; comments and pings before it are not.
fn opening(cx: &mut Context, events: &mut Events, frame: &Frame) -> Result<Option<Emit>, Failed> {
    if frame.data.is_none() {
        return Ok(None);
    }
    match events.take(frame, &mut cx.record.tally) {
        Emit::Skip => Ok(None),
        Emit::Garbled => Err(AttemptFault::Garbled.into()),
        Emit::Error(error) => Err(inside(error)),
        first @ (Emit::Pass(_) | Emit::Usage(..) | Emit::Done) => Ok(Some(first)),
    }
}
