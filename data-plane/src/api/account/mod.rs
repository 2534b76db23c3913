//! What a tenant reads of its own usage and credit, in OpenRouter's shapes and with OpenRouter's error body.
//!
//! The key is authenticated as for any request; what it may read is decided by the control plane: the usage of its project, the credit
//! of its organization. A header says what answered (`x-tollway-usage-source`) and of which instant all usage is in the answer
//! (`x-tollway-usage-as-of`).
//!
//! | file | route |
//! |---|---|
//! | [`generation`] | `GET /v1/generation` |
//! | [`credits`] | `GET /v1/credits` |
//! | [`key`] | `GET /v1/key`, `GET /v1/auth/key` |
//! | [`activity`] | `GET /v1/activity` |
//! | [`analytics`] | `POST /v1/analytics/query`, `GET /v1/analytics/meta` |
//! | [`fault`], [`params`], [`shape`] | errors, query parameters, numbers |

pub mod activity;
pub mod analytics;
pub mod credits;
pub mod fault;
pub mod generation;
pub mod key;
pub mod params;
pub mod shape;

use std::rc::Rc;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::Incoming;
use tokio::time::Instant;
use tollway_proto::push::v1::read_reply::Answer;
use tollway_proto::push::v1::read_request::Question;
use tollway_proto::push::v1::{CreditsQuestion, GenerationQuestion, KeyQuestion, ReadReply, ReadSource};
use tollway_shared::fault::Fault;
use tollway_shared::time::UnixMillis;

use super::reply::{self, Reply};
use crate::pipeline::{Arrival, Caller};
use crate::plane::{Limits, Plane};
use crate::reading::ReadFault;
use crate::stages::{authenticate, receive};
use params::Params;
use shape::Data;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noun {
    /// One request.
    Generation,
    /// The organization's credit.
    Credits,
    /// The key itself.
    Key,
    /// Sums by day and endpoint.
    Activity,
    /// Any sums.
    Analytics,
    /// What sums there are.
    AnalyticsMeta,
}

/// Answers a read.
pub async fn read(plane: &Rc<Plane>, request: Request<Incoming>, noun: Noun) -> Reply {
    let arrival = Arrival::new(&plane.dice);
    let answered = answered(plane, request, noun, arrival.at).await;
    named(answered.unwrap_or_else(|fault| fault::reply(&fault)), &arrival)
}

/// Refuses a request to one of these routes.
pub fn refused(plane: &Rc<Plane>, fault: &Fault) -> Reply {
    named(fault::reply(fault), &Arrival::new(&plane.dice))
}

/// No `x-generation-id`: there is no generation of that name to read.
fn named(mut reply: Reply, arrival: &Arrival) -> Reply {
    reply::text(
        reply.headers_mut(),
        "x-tollway-request-id",
        arrival.request_id.as_str(),
    );
    reply
}

async fn answered(
    plane: &Rc<Plane>,
    request: Request<Incoming>,
    noun: Noun,
    now: UnixMillis,
) -> Result<Reply, Fault> {
    let caller = {
        let snapshot = authenticate::snapshot(plane)?;
        authenticate::find(plane, &snapshot, request.headers(), now)?
    };
    let params = Params::read(request.uri().query())?;
    match noun {
        Noun::Generation => {
            let id = params.required("id")?;
            let question = Question::Generation(GenerationQuestion {
                request_id: id.into(),
            });
            let said = plane.reading.ask(&caller.key.id, question).await?;
            let said = said.map_err(|_| Fault::GenerationNotFound {
                id: id.chars().take(64).collect(),
            })?;
            match &said.answer {
                Some(Answer::Generation(found)) => Ok(shown(&said, &generation::body(found))),
                _ => Err(Fault::Internal),
            }
        }
        Noun::Credits => {
            let said = asked(plane, &caller, Question::Credits(CreditsQuestion {})).await?;
            match &said.answer {
                Some(Answer::Credits(found)) => Ok(shown(&said, &credits::body(found))),
                _ => Err(Fault::Internal),
            }
        }
        Noun::Key => {
            let said = asked(plane, &caller, Question::ThisKey(KeyQuestion {})).await?;
            match &said.answer {
                Some(Answer::ThisKey(found)) => Ok(shown(&said, &key::body(found))),
                _ => Err(Fault::Internal),
            }
        }
        Noun::AnalyticsMeta => {
            let meta = Data {
                data: analytics::names::meta(),
            };
            Ok(reply::json(200, HeaderMap::new(), &meta))
        }
        Noun::Analytics => {
            let began = Instant::now();
            let limits = Limits {
                body_bytes_max: analytics::BODY_BYTES_MAX,
                ..plane.limits.clone()
            };
            let body = receive::collect(request.into_body(), &limits).await?;
            let query = analytics::Query::read(&body, now)?;
            let said = plane.reading.ask(&caller.key.id, query.question()).await?;
            let said = said.map_err(|fault| match fault {
                ReadFault::TooMuch(_) => analytics::too_much(),
                _ => Fault::Internal,
            })?;
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            match &said.answer {
                Some(Answer::Sums(sums)) => {
                    let body = query.body(sums, took_ms).ok_or(Fault::Internal)?;
                    Ok(shown(&said, &body))
                }
                _ => Err(Fault::Internal),
            }
        }
        Noun::Activity => {
            let wanted = activity::Wanted::of(&params, &caller, now.day())?;
            let said = plane.reading.ask(&caller.key.id, wanted.question()).await?;
            let said = said.map_err(|fault| match fault {
                ReadFault::TooMuch(_) => wanted.too_much(),
                _ => Fault::Internal,
            })?;
            match &said.answer {
                Some(Answer::Sums(sums)) if sums.has_more => Err(wanted.too_much()),
                Some(Answer::Sums(sums)) => {
                    let body = wanted.body(sums).ok_or(Fault::Internal)?;
                    Ok(shown(&said, &body))
                }
                _ => Err(Fault::Internal),
            }
        }
    }
}

/// Asks what has an answer for every key.
async fn asked(plane: &Rc<Plane>, caller: &Caller, question: Question) -> Result<ReadReply, Fault> {
    plane
        .reading
        .ask(&caller.key.id, question)
        .await?
        .map_err(|_| Fault::UsageUnavailable)
}

fn shown(said: &ReadReply, body: &impl serde::Serialize) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let source = match said.source() {
        ReadSource::Billing => "billing",
        ReadSource::State => "state",
        ReadSource::Unspecified => "unknown",
    };
    reply::text(&mut headers, "x-tollway-usage-source", source);
    if let Some(at) = said.as_of {
        reply::text(&mut headers, "x-tollway-usage-as-of", &UnixMillis(at).rfc3339());
    }
    reply::json(200, headers, body)
}
