//! What every handler does the same way: idempotency keys, linearizable reads, proposals, answers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Textual;
use tollway_proto::command::{Command, Idempotency, Outcome, Receipt};
use tollway_shared::ids::Revision;
use tollway_shared::seal;

use super::Api;
use super::auth::Principal;
use super::body::{BODY_BYTES_MAX, parse_body, read_body};
use super::fault::Fault;
use super::params::{Params, wrong_param};
use crate::raft::{Proposal, ProposeFault};
use crate::state::State;

/// Longest `Idempotency-Key`.
pub const IDEMPOTENCY_BYTES_MAX: usize = 255;
/// How long an answer waits for this replica to see a write that another one applied.
const READ_BACK_WITHIN: Duration = Duration::from_secs(2);
/// The header with the revision of an answer.
const REVISION_HEADER: &str = "x-tollway-revision";
/// The header with the log index that a read saw.
const APPLIED_HEADER: &str = "x-tollway-applied";
/// The header that says whether every connected node runs on the revision of an answer: `current` or `behind`.
const NODES_HEADER: &str = "x-tollway-nodes";
/// The header that labels a read that may be old.
const CONSISTENCY_HEADER: &str = "x-tollway-consistency";

/// An id in the path.
pub(crate) fn path_id<T: Textual>(field: &str, text: &str) -> Result<T, Fault> {
    T::read(text).map_err(|why| Fault::at(ProblemCode::Invalid, field, format!("the id in the path: {why}")))
}

/// A read: its parameters, before it has chosen a state.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) params: Params,
    principal: Option<Principal>,
}

impl FromRequestParts<Arc<Api>> for Read {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _api: &Arc<Api>) -> Result<Self, Fault> {
        Ok(Self {
            params: Params::of(&parts.uri)?,
            principal: parts.extensions.get().cloned(),
        })
    }
}

impl Read {
    /// The state to read: one that has every write answered before this request, unless `consistency=stale` asks for what is here.
    pub(crate) async fn seen(mut self, api: &Api) -> Result<Seen, Fault> {
        let stale = match self.params.take("consistency").as_deref() {
            None | Some("linearizable") => false,
            Some("stale") => true,
            Some(other) => {
                let why = format!("`{other}` is neither `linearizable` nor `stale`");
                return Err(wrong_param("consistency", why));
            }
        };
        self.params.done()?;
        if !stale {
            api.cluster.barrier().await?;
        }
        let state = api.cluster.state();
        // An admin that was removed at another replica a moment ago must not read on here.
        if let Some(principal) = &self.principal
            && !state.admins.contains_key(&principal.id)
        {
            return Err(Fault::new(ProblemCode::Unauthenticated, "this admin was removed"));
        }
        Ok(Seen { state, stale })
    }
}

/// The state that a read sees.
pub(crate) struct Seen {
    pub(crate) state: Arc<State>,
    stale: bool,
}

impl Seen {
    /// The answer of a read.
    pub(crate) fn answer<T>(&self, body: T) -> Answer<T> {
        let mut answer = Answer::of(self.state.revision, body);
        answer.applied = Some(self.state.applied);
        answer.stale = self.stale;
        answer
    }
}

/// A write: who, under which conditions, and its body.
#[derive(Debug)]
pub(crate) struct Write<T> {
    pub(crate) head: Head,
    pub(crate) body: T,
}

/// What a write says besides its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) actor: String,
    pub(crate) if_revision: Option<Revision>,
    pub(crate) idempotency: Option<Idempotency>,
}

impl<T: DeserializeOwned + Serialize> FromRequest<Arc<Api>> for Write<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _api: &Arc<Api>) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let actor = parts
            .extensions
            .get::<Principal>()
            .ok_or_else(|| Fault::new(ProblemCode::Internal, "a write without an admin"))?
            .id
            .to_string();
        let mut params = Params::of(&parts.uri)?;
        let if_revision = params.take_number("if_revision")?.map(Revision);
        params.done()?;
        let key = idempotency_key(&parts.headers)?;
        let bytes = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
        let body = parse_body(&bytes)?;
        let idempotency = key.map(|key| Idempotency {
            key,
            request: request_hash(&parts, &bytes),
            answer: None,
        });
        let head = Head {
            actor,
            if_revision,
            idempotency,
        };
        Ok(Self { head, body })
    }
}

fn request_hash(parts: &Parts, body: &[u8]) -> [u8; 32] {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let head = format!("{} {target}\n", parts.method);
    seal::sha256(&[head.as_bytes(), body].concat())
}

/// The idempotency key: a bare token or a quoted structured-field string.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let wrong = |why: &str| {
        Fault::at(
            ProblemCode::InvalidRequest,
            "Idempotency-Key",
            format!("`Idempotency-Key` {why}"),
        )
    };
    let text = value
        .to_str()
        .map_err(|_| wrong("must be printable ASCII"))?
        .trim();
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => {
            let inner = rest
                .strip_suffix('"')
                .ok_or_else(|| wrong("has no closing quote"))?;
            inner.replace("\\\"", "\"").replace("\\\\", "\\")
        }
    };
    if key.is_empty() || key.len() > IDEMPOTENCY_BYTES_MAX {
        return Err(wrong(&format!(
            "must have 1 to {IDEMPOTENCY_BYTES_MAX} characters"
        )));
    }
    Ok(Some(key))
}

/// An answer: its status, the revision it speaks of, its body.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) status: StatusCode,
    revision: Revision,
    applied: Option<u64>,
    /// Whether every connected node runs on the revision, where that was waited for.
    at_nodes: Option<bool>,
    stale: bool,
    body: T,
}

impl<T> Answer<T> {
    /// 200 at this revision.
    pub(crate) fn of(revision: Revision, body: T) -> Self {
        Self {
            status: StatusCode::OK,
            revision,
            applied: None,
            at_nodes: None,
            stale: false,
            body,
        }
    }

    /// Says whether every connected node runs on the revision.
    pub(crate) fn at_nodes(mut self, at_nodes: bool) -> Self {
        self.at_nodes = Some(at_nodes);
        self
    }

    /// 201 instead.
    pub(crate) fn created(mut self) -> Self {
        self.status = StatusCode::CREATED;
        self
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let Ok(body) = serde_json::to_vec(&self.body) else {
            return Fault::new(ProblemCode::Internal, "the answer could not be written").into_response();
        };
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REVISION_HEADER, HeaderValue::from(self.revision.0));
        if let Some(applied) = self.applied {
            headers.insert(APPLIED_HEADER, HeaderValue::from(applied));
        }
        if let Some(at_nodes) = self.at_nodes {
            let said = if at_nodes { "current" } else { "behind" };
            headers.insert(NODES_HEADER, HeaderValue::from_static(said));
        }
        if self.stale {
            headers.insert(CONSISTENCY_HEADER, HeaderValue::from_static("stale"));
        }
        response
    }
}

/// A text that one answer shows and nothing can read back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OneText {
    /// The text.
    pub(crate) text: String,
}

impl Api {
    /// Proposes a write and waits until it is applied.
    pub(crate) async fn write(&self, head: Head, command: Command) -> Result<Receipt, Fault> {
        let proposal = Proposal {
            actor: head.actor,
            idempotency: head.idempotency,
            if_revision: head.if_revision,
            command,
        };
        let outcome = match &self.scratch {
            None => self.cluster.propose(proposal).await?,
            Some(scratch) => scratch.propose(proposal),
        };
        match outcome {
            Outcome::Done(receipt) => Ok(receipt),
            Outcome::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// The state that this replica shows.
    pub(crate) fn state(&self) -> Arc<State> {
        match &self.scratch {
            None => self.cluster.state(),
            Some(scratch) => scratch.state(),
        }
    }

    /// Waits until [`Api::state`] has every write that was answered before. A dry run has begun with such a state.
    pub(crate) async fn newest(&self) -> Result<(), ProposeFault> {
        match &self.scratch {
            None => self.cluster.barrier().await,
            Some(_) => Ok(()),
        }
    }

    /// A state in which a write that was answered with `receipt` is visible, if this replica can have one in time.
    pub(crate) async fn after(&self, receipt: &Receipt) -> Arc<State> {
        let state = self.state();
        if self.scratch.is_some() || self.cluster.is_leader() && state.revision >= receipt.revision {
            return state;
        }
        // The write is done whatever comes of this: an answer from an older state is better than none.
        let _ = tokio::time::timeout(READ_BACK_WITHIN, self.cluster.barrier()).await;
        self.cluster.state()
    }

    /// Proposes a write whose answer holds `made`, which cannot be read back from the state: it is sealed with the write, so
    /// that a retry with the same idempotency key gets the first one back.
    pub(crate) async fn write_once<T: Serialize + DeserializeOwned>(
        &self,
        mut head: Head,
        command: Command,
        made: T,
    ) -> Result<(Receipt, T), Fault> {
        let Some(idempotency) = &mut head.idempotency else {
            return Ok((self.write(head, command).await?, made));
        };
        let aad = format!("answer\n{}\n{}", head.actor, idempotency.key).into_bytes();
        let plain = serde_json::to_vec(&made).expect("ids and keys are text");
        idempotency.answer = Some(seal::seal(&self.root, &aad, &plain));
        let receipt = self.write(head, command).await?;
        let Some(replay) = &receipt.replayed else {
            return Ok((receipt, made));
        };
        let first = replay
            .answer
            .as_ref()
            .and_then(|sealed| seal::open(&self.root, &aad, sealed).ok())
            .and_then(|plain| serde_json::from_slice(plain.expose()).ok());
        let lost = "the first answer to this idempotency key cannot be read";
        let made = first.ok_or_else(|| Fault::new(ProblemCode::Internal, lost))?;
        Ok((receipt, made))
    }
}

/// Runs what reads and computes, away from the threads that answer.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|fault| {
        tracing::error!(error = %fault, "making an answer failed");
        Err(Fault::new(
            ProblemCode::Internal,
            "this replica failed to make the answer",
        ))
    })
}
