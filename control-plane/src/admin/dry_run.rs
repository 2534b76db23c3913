//! Dry runs: what a list of writes would be answered, with nothing written.
//!
//! Each write takes its own route, with the same checks of who asks and what is sent, onto a copy of the newest state, to which
//! [`state::apply`] applies it; the next one sees it there. Only writes that do nothing but that can be tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::from_fn_with_state;
use tollway_proto::admin::dry_run::{DryRun, DryRunAnswer, TriedRefusal, TriedWrite};
use tollway_proto::admin::problem::{Problem, ProblemCode};
use tollway_proto::command::{Entry, Outcome};
use tower::ServiceExt as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{parse_frame, read_body};
use super::exchange::Answer;
use super::fault::Fault;
use super::params::Params;
use super::{Api, auth, unknown_method, unknown_route};
use crate::clock;
use crate::raft::Proposal;
use crate::state::{self, State, budget};

/// Largest body: many writes in one.
const BODY_BYTES_MAX: usize = 16 << 20;
/// The one path whose resources are made by POST alone.
const PRICES: &str = "prices";

/// The copy of the state on which writes are tried.
pub(crate) struct Scratch(Mutex<State>);

impl Scratch {
    /// What the state would be by now.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::new(self.held().clone())
    }

    /// What the leader would do with a proposal.
    pub(crate) fn propose(&self, mut proposal: Proposal) -> Outcome {
        let mut state = self.held();
        let at = clock::now();
        budget::stamp(&state, &mut proposal.command, at);
        let entry = Entry {
            at,
            actor: proposal.actor,
            idempotency: proposal.idempotency,
            if_revision: proposal.if_revision,
            command: proposal.command,
        };
        let index = state.applied + 1;
        state::apply(&mut state, index, &entry).outcome
    }

    fn held(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says which of these writes would be refused, and why. Writes nothing. Each write sees those before it that would be done.
#[utoipa::path(post, path = "/dry-run", tag = "dry-run", request_body = DryRun,
    responses((status = 200, body = DryRunAnswer)),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn dry_run(Shared(api): Shared<Arc<Api>>, request: Request) -> Result<Answer<DryRunAnswer>, Fault> {
    let (parts, body) = request.into_parts();
    Params::of(&parts.uri)?.done()?;
    let bytes = read_body(&parts.headers, body, BODY_BYTES_MAX).await?;
    let DryRun { writes } = parse_frame(&bytes)?;
    let mut requests = Vec::with_capacity(writes.len());
    for (index, write) in writes.into_iter().enumerate() {
        requests.push(tried(index, write, &parts.headers)?);
    }
    api.cluster.barrier().await?;
    let state = api.cluster.state();
    let revision = state.revision;
    let scratch = Arc::new(api.on(Scratch(Mutex::new(State::clone(&state)))));
    let routes: Router = scratch
        .routes
        .clone()
        .route_layer(from_fn_with_state(scratch.clone(), auth::check))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .with_state(scratch);
    let mut refusals = Vec::new();
    for (write, request) in requests.into_iter().enumerate() {
        if let Some(problem) = problem(&routes, request).await {
            refusals.push(TriedRefusal { write, problem });
        }
    }
    let revision_shown = revision.0;
    Ok(Answer::of(
        revision,
        DryRunAnswer {
            refusals,
            revision: revision_shown,
        },
    ))
}

/// The request that a write would be.
fn tried(index: usize, write: TriedWrite, headers: &HeaderMap) -> Result<Request, Fault> {
    let TriedWrite { method, path, body } = write;
    let wrong = |field: &str, why: String| {
        let field = format!("writes[{index}].{field}");
        let detail = format!("`{field}` {why}");
        Fault::at(ProblemCode::Invalid, field, detail)
    };
    let method = match (method.as_str(), path.as_str()) {
        ("PUT", _) => Method::PUT,
        ("POST", PRICES) => Method::POST,
        _ => {
            let why = format!("is `{method}`; only PUT, and POST of `{PRICES}`, can be tried");
            return Err(wrong("method", why));
        }
    };
    let uri: Uri = format!("/admin/v1/{path}")
        .parse()
        .map_err(|_| wrong("path", "is not a path".into()))?;
    let mut request = Request::new(Body::from(body.to_string()));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let sent = request.headers_mut();
    sent.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = headers.get(header::AUTHORIZATION) {
        sent.insert(header::AUTHORIZATION, key.clone());
    }
    Ok(request)
}

/// Why a write would be refused.
async fn problem(routes: &Router, request: Request) -> Option<Problem> {
    let Ok(mut response) = routes.clone().oneshot(request).await;
    if let Some(fault) = response.extensions_mut().remove::<Fault>() {
        return Some(fault.problem());
    }
    if response.status().is_success() {
        return None;
    }
    let detail = format!("it would be answered with status {}", response.status());
    Some(Fault::new(ProblemCode::Invalid, detail).problem())
}

/// The route of dry runs.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(dry_run))
}
