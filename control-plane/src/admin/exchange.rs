//! What every handler does the same way: query parameters, bodies, idempotency keys, linearizable reads, proposals, answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Textual;
use tollway_proto::admin::{PAGE_ROWS, PAGE_ROWS_MAX};
use tollway_proto::command::{Command, Idempotency, Outcome, Receipt};
use tollway_shared::ids::Revision;
use tollway_shared::seal;

use super::Api;
use super::auth::Principal;
use super::fault::Fault;
use crate::raft::Proposal;
use crate::state::State;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(15);
/// Longest `Idempotency-Key`.
pub const IDEMPOTENCY_BYTES_MAX: usize = 255;
/// How long an answer waits for this replica to see a write that another one applied.
const READ_BACK_WITHIN: Duration = Duration::from_secs(2);
/// The header with the revision of an answer.
const REVISION_HEADER: &str = "x-tollway-revision";
/// The header with the log index that a read saw.
const APPLIED_HEADER: &str = "x-tollway-applied";
/// The header that labels a read that may be old.
const CONSISTENCY_HEADER: &str = "x-tollway-consistency";

/// Query parameters. Each is taken by name; what is left over is refused by name.
#[derive(Debug, Default)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    fn of(uri: &Uri) -> Result<Self, Fault> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            Fault::new(
                ProblemCode::InvalidRequest,
                format!("the query cannot be read: {error}"),
            )
        })?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if params.insert(name.clone(), value).is_some() {
                return Err(wrong_param(&name, "is given twice"));
            }
        }
        Ok(Self(params))
    }

    /// A parameter as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// A parameter that has a text form.
    pub(crate) fn take_text<T: Textual>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => T::read(&text).map(Some).map_err(|why| wrong_param(name, why)),
        }
    }

    fn take_number(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| wrong_param(name, format!("`{text}` is not a whole number"))),
        }
    }

    /// The page that is asked for.
    pub(crate) fn take_window(&mut self) -> Result<Window, Fault> {
        let limit = self.take_number("limit")?.unwrap_or(PAGE_ROWS as u64);
        let limit = usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=PAGE_ROWS_MAX).contains(limit))
            .ok_or_else(|| wrong_param("limit", format!("must be between 1 and {PAGE_ROWS_MAX}")))?;
        Ok(Window {
            limit,
            after: self.take("after"),
        })
    }

    fn done(&self) -> Result<(), Fault> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(wrong_param(name, "is not a parameter of this route")),
        }
    }
}

/// A parameter that is wrong.
pub(crate) fn wrong_param(name: &str, why: impl std::fmt::Display) -> Fault {
    Fault::at(
        ProblemCode::InvalidRequest,
        name,
        format!("query parameter `{name}`: {why}"),
    )
}

/// The page of a list that is asked for.
#[derive(Debug)]
pub(crate) struct Window {
    /// Most rows.
    pub(crate) limit: usize,
    /// Only what comes after this id.
    pub(crate) after: Option<String>,
}

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

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Write<T> {
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
        let bytes = read_body(&parts.headers, body).await?;
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

/// Reads a body of at most [`BODY_BYTES_MAX`].
pub(crate) async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
    let too_large = || {
        Fault::new(
            ProblemCode::TooLarge,
            format!("the body is larger than {BODY_BYTES_MAX} bytes; send less at once"),
        )
    };
    let stated = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let bytes = tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_BYTES_MAX))
        .await
        .map_err(|_| Fault::new(ProblemCode::InvalidRequest, "the body did not arrive in time"))?
        .map_err(|error| match limit_reached(&error) {
            true => too_large(),
            false => Fault::new(
                ProblemCode::InvalidRequest,
                "the body could not be read to its end",
            ),
        })?;
    if !bytes.is_empty() && !is_json(headers) {
        return Err(Fault::at(
            ProblemCode::UnsupportedMediaType,
            "Content-Type",
            "the body must be JSON: send `Content-Type: application/json`",
        ));
    }
    Ok(bytes)
}

fn limit_reached(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = inner.source();
    }
    false
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Reads a JSON body, naming the field that is wrong. An empty body is `{}`.
pub(crate) fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let bytes = if bytes.is_empty() { b"{}".as_slice() } else { bytes };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        // For a number where a word is expected the reader says that there is no value; the body is JSON all the same.
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
        body_fault(&path, error.inner(), json)
    })?;
    reader.end().map_err(|error| body_fault(".", &error, false))?;
    Ok(value)
}

fn body_fault(path: &str, error: &serde_json::Error, json: bool) -> Fault {
    let text = error.to_string();
    if !error.is_data() && !json {
        return Fault::new(
            ProblemCode::MalformedJson,
            format!("the body is not JSON: {text}"),
        );
    }
    // Without the reader's " at line 1 column 7": the field says where.
    let what = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(what, _)| what);
    let quoted = |start: &str| what.strip_prefix(start)?.split('`').next();
    let inside = |name: &str| match path.trim_matches('.') {
        "" => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    };
    if let Some(name) = quoted("unknown field `") {
        let known = what
            .split_once("expected ")
            .map_or(String::new(), |(_, known)| format!("; known here: {known}"));
        let field = inside(name);
        let detail = format!("`{field}` is not a field{known}");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    if let Some(name) = quoted("missing field `") {
        let field = inside(name);
        let detail = format!("`{field}` is missing");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    if let Some(name) = quoted("duplicate field `") {
        let field = inside(name);
        let detail = format!("`{field}` is given twice");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    let field = path.trim_matches('.');
    let field = if field.is_empty() { "body" } else { field };
    let what = if error.is_data() {
        what
    } else {
        "is of the wrong type"
    };
    Fault::at(ProblemCode::Invalid, field, format!("`{field}`: {what}"))
}

/// An answer: its status, the revision it speaks of, its body.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    pub(crate) status: StatusCode,
    revision: Revision,
    applied: Option<u64>,
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
            stale: false,
            body,
        }
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
        match self.cluster.propose(proposal).await? {
            Outcome::Done(receipt) => Ok(receipt),
            Outcome::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// A state in which a write that was answered with `receipt` is visible, if this replica can have one in time.
    pub(crate) async fn after(&self, receipt: &Receipt) -> Arc<State> {
        let state = self.cluster.state();
        if self.cluster.is_leader() && state.revision >= receipt.revision {
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
