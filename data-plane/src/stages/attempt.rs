//! The failover loop, until the first token: encode, send, classify, tell health, next.
//!
//! The answer's headers are held until a whole answer is read or a stream has begun ([`opening`]), so that a provider that fails before
//! its first token costs the caller nothing but time. After that there is no failover.
//!
//! When every attempt failed, the caller gets the last one's status, where it is the caller's business ([`Fault::status`]), and the
//! soonest of the providers' `Retry-After`.

use std::rc::Rc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use tollway_shared::catalog::{AuthScheme, Credential};
use tollway_shared::fault::{AttemptFault, Fault};
use tollway_shared::time::UnixMillis;

use super::credential;
use super::hold;
use super::opening::{self, Begun, Opened};
use super::plan::Plan;
use super::report::Serving;
use crate::ask::Ask;
use crate::dialects::slices::Slices;
use crate::dialects::{self, Events, ProviderError, ReplyFault};
use crate::pipeline::{Caller, Context};
use crate::routing::Candidate;
use crate::upstream::{Answer, Origin};

/// Most bytes of an error body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How long an error body may take.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest pause that callers are told. A longer one makes OpenAI's clients ignore it and come back at once.
const RETRY_AFTER_SECONDS_MAX: u64 = 120;

/// A request that is ready to go out, and where to.
type Call = (Rc<Origin>, Request<Slices>);

/// Why an attempt gave no answer, with what the provider said about it.
pub(super) struct Failed {
    fault: AttemptFault,
    message: Option<String>,
    retry_after: Option<u64>,
}

impl From<AttemptFault> for Failed {
    fn from(fault: AttemptFault) -> Self {
        Self {
            fault,
            message: None,
            retry_after: None,
        }
    }
}

/// An error under a status of success, before anything was sent to the caller.
impl From<ProviderError> for Failed {
    fn from(error: ProviderError) -> Self {
        Self {
            fault: AttemptFault::Status(error.status.unwrap_or(502)),
            message: Some(error.message),
            retry_after: None,
        }
    }
}

/// Tries the plan's endpoints one after the other, each with more than one of its provider's credentials as long as attempts are to spare. Errors: the last one's failure, or the first that no other endpoint would mend.
pub async fn first_byte(
    cx: &mut Context,
    plan: &Plan,
    caller: &Caller,
    ask: &Ask,
) -> Result<(Candidate, Opened), Fault> {
    let mut last: Option<(&Candidate, Failed)> = None;
    let (mut tried, mut retry_after, mut unfit) = (0, None, None);
    let (mut places, mut refused) = (plan.attempts.iter(), Vec::new());
    let mut next = places.next();
    while let Some(candidate) = next.filter(|_| tried < plan.attempts_max) {
        if tried > 0 && cx.left.is_gone() {
            break; // nobody waits for another one
        }
        // Encoded ahead of the intent: a field that has no counterpart in one dialect may have one in the next.
        let encoded = match dialects::encode(ask, &candidate.endpoint, &candidate.provider) {
            Ok(encoded) => encoded,
            Err(fault) => {
                unfit.get_or_insert(fault);
                next = places.next();
                continue;
            }
        };
        tried += 1;
        if let Some((before, failed)) = &last
            && before.endpoint.id != candidate.endpoint.id
        {
            cx.plane.meters.failover(before, candidate, failed.fault.as_str());
        }
        // Prepared ahead of it too: what cannot be sent is nobody's usage.
        let chosen = credential::choose(cx, &candidate.provider, caller, &refused);
        let call = chosen
            .clone()
            .and_then(|credential| prepared(cx, candidate, credential.as_deref(), encoded, ask));
        let answered = match call {
            Ok(call) => {
                let connects = !cx.plane.upstream.keeps(&candidate.provider, &call.0);
                let serving = Serving {
                    revision: cx.snapshot.revision,
                    byok: matches!(&chosen, Ok(Some(one)) if one.owner.is_some()),
                    connects,
                    output_tokens_max: hold::output_tokens_max(&cx.snapshot, candidate),
                };
                cx.record.begin(candidate, caller, ask, serving)?;
                cx.left.attempt(candidate);
                let answered = try_one(cx, candidate, call, ask).await;
                answered.inspect_err(|failed| cx.record.attempt_failed(failed.fault.as_str()))
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
                credential::note(cx, &chosen, None, None, cx.arrival.at);
                return Ok((candidate.clone(), opened));
            }
            Err(failed) => {
                let fault = failed.fault;
                cx.plane.meters.attempt(candidate, fault.as_str());
                let now = crate::clock::now();
                credential::note(cx, &chosen, Some(fault), failed.retry_after, now);
                // The same endpoint again with another credential, which is then what was wrong with this one; only with an attempt
                // that no other endpoint wants, because what is refused may be the account or the request.
                let spare = tried + places.len() < plan.attempts_max;
                let again =
                    credential::another(cx, &candidate.provider, caller, &chosen, fault, &mut refused, now)
                        && spare;
                if !again {
                    cx.plane
                        .health
                        .borrow_mut()
                        .note(&candidate.endpoint.id, Some(fault), now);
                    refused.clear();
                    next = places.next();
                }
                tracing::debug!(request = %cx.arrival.request_id, endpoint = %candidate.endpoint.id, ?fault, "an attempt failed");
                retry_after = retry_after.into_iter().chain(failed.retry_after).min();
                last = Some((candidate, failed));
                if !fault.another_may_work() {
                    break;
                }
            }
        }
    }
    // A plan is never empty: when nothing was tried, nothing could be encoded.
    Err(match last {
        Some((candidate, failed)) => ending(candidate, failed, tried, retry_after),
        None => unfit.unwrap_or(Fault::Internal),
    })
}

fn ending(candidate: &Candidate, failed: Failed, tried: usize, retry_after: Option<u64>) -> Fault {
    let provider = candidate.provider.id.clone();
    match failed.fault {
        AttemptFault::Status(status) if !failed.fault.another_may_work() => Fault::UpstreamRejected {
            provider,
            status,
            message: failed.message.unwrap_or_default(),
        },
        AttemptFault::Status(status) => Fault::UpstreamFailed {
            tried,
            provider,
            status,
            message: failed.message.unwrap_or_default(),
            retry_after,
        },
        last => Fault::AttemptsExhausted {
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
    credential: Option<&Credential>,
    encoded: dialects::Encoded,
    ask: &Ask,
) -> Result<Call, AttemptFault> {
    let origin = cx.plane.upstream.origin(&candidate.provider);
    let origin = origin.ok_or(AttemptFault::Address)?;
    let mut request = Request::new(encoded.body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = origin.target(encoded.path).ok_or(AttemptFault::Address)?.into();
    *request.headers_mut() = headers(
        cx,
        candidate,
        credential,
        &origin.authority,
        encoded.headers,
        ask.stream,
    )?;
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
    let (record, left) = (&mut cx.record, &cx.left);
    let sent = plane.upstream.send(provider, origin, request, |is_out| {
        left.sent(is_out);
        record.attempt_sent(is_out);
    });
    let answer = sent.await?;
    let status = answer.head.status.as_u16();
    cx.record.attempt_answered(status);
    if !answer.head.status.is_success() {
        return Err(refusal(provider.dialect, status, answer).await);
    }
    let model = candidate.endpoint.model.as_str();
    let created = cx.arrival.at.0 / 1_000;
    let idle = Duration::from_millis(u64::from(provider.idle_timeout_ms.max(1)));
    let tally = &mut cx.record.tally;
    if ask.stream && !is_json(&answer.head.headers) {
        let events = Events::new(provider.dialect, ask.wants_usage, model, created);
        let first = u64::from(provider.first_byte_timeout_ms.max(1));
        let deadline = answer.sent_at + Duration::from_millis(first);
        let begun = opening::begun(tally, answer.body, events, deadline, idle).await?;
        return Ok(Opened::Stream(Box::new(begun)));
    }
    let body = opening::whole(answer.body, plane.limits.reply_bytes_max, idle).await?;
    let mut reply = match dialects::reply(provider.dialect, body, model, created) {
        Ok(reply) => reply,
        Err(ReplyFault::Garbled) => return Err(AttemptFault::Garbled.into()),
        Err(ReplyFault::Error(error)) => return Err(error.into()),
    };
    *tally = std::mem::take(&mut reply.tally);
    if !ask.stream {
        return Ok(Opened::Whole(reply));
    }
    // Asked for a stream, the provider sent the whole answer at once.
    let streamed = dialects::streamed(&reply.body, tally, ask.wants_usage, model, created);
    let (events, first) = streamed.ok_or(AttemptFault::Garbled)?;
    Ok(Opened::Stream(Box::new(Begun::finished(events, first))))
}

/// Whether an answer is one JSON document, whatever was asked for.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// Built fresh from what is known here: nothing of the caller's headers reaches a provider.
fn headers(
    cx: &Context,
    candidate: &Candidate,
    credential: Option<&Credential>,
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
    if let Some(credential) = credential {
        let value = credential::header(cx, &candidate.provider, credential)?;
        let name = match candidate.provider.auth {
            AuthScheme::XApiKey => HeaderName::from_static("x-api-key"),
            AuthScheme::Bearer | AuthScheme::None => AUTHORIZATION,
        };
        headers.insert(name, value);
    }
    Ok(headers)
}

/// An answer with an error status.
async fn refusal(dialect: tollway_shared::catalog::Dialect, status: u16, answer: Answer) -> Failed {
    let retry_after = retry_after(&answer.head.headers, crate::clock::now());
    let body = opening::whole(answer.body, ERROR_BYTES_MAX, ERROR_BODY_TIMEOUT).await;
    Failed {
        fault: AttemptFault::Status(status),
        message: Some(dialects::error_message(dialect, &body.unwrap_or_default())),
        retry_after,
    }
}

/// After how many seconds the provider wants to be asked again, within bounds. Seconds or a date, as RFC 9110 has it.
fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse::<u64>().ok().or_else(|| {
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_millisecond();
        let wait = at.saturating_sub(now.0).max(0).unsigned_abs();
        Some(wait.div_ceil(1_000))
    })?;
    Some(seconds.clamp(1, RETRY_AFTER_SECONDS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_in_seconds_or_as_a_date_and_bounded() {
        let now = UnixMillis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        for (text, seconds) in [
            ("7", Some(7)),
            ("0", Some(1)),
            ("99999999999", Some(120)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(1)),
            ("Mon, 07 Nov 1994 08:00:00 GMT", Some(120)),
            ("soon", None),
            ("-5", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), seconds, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
