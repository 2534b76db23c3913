//! The admin API: `/admin/v1` over HTTP, JSON in and out, refusals as problem documents.
//!
//! An admin write: the body becomes a checked [`Command`](tollway_proto::command::Command), [`raft`](crate::raft) proposes it,
//! [`state::apply`](crate::state::apply) decides, and the outcome becomes the answer with its revision.
//!
//! | file | what |
//! |---|---|
//! | `auth` | who asks, and which roles a route allows |
//! | `params`, `body` | query parameters and bodies, and refusals that name what is wrong in them |
//! | `exchange` | what every handler does: idempotency, reads, proposals, answers |
//! | `noun` | the nouns that are made, replaced, read and removed alike |
//! | `catalog`, `tenant`, `budget`, `account`, `payments`, `keys`, `admins`, `join_tokens`, `member`, `incarnations`, `join`, `usage`, `reports`, `audit` | the routes |
//! | `dry_run` | writes that are only tried |
//! | `ops` | health, metrics, the OpenAPI document |
//! | `openapi` | the document |
//! | `fault` | refusals |

mod account;
mod admins;
mod audit;
mod auth;
mod body;
mod budget;
mod catalog;
mod dry_run;
mod exchange;
mod fault;
mod fleet;
mod incarnations;
mod join;
mod join_tokens;
mod keys;
mod member;
mod noun;
mod openapi;
mod ops;
mod params;
mod payments;
mod reports;
mod tenant;
mod usage;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tollway_proto::admin::cluster::hex;
use tollway_proto::admin::problem::{Problem, ProblemCode};
use tollway_shared::seal::Key;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use self::auth::AccessTable;
use self::dry_run::Scratch;
use self::fault::Fault;
use crate::billing::Billing;
use crate::identity::authority::certificate_hash;
use crate::metrics;
use crate::raft::Cluster;

pub(crate) use self::admins::new_admin;
pub use self::auth::PEPPER_VERSION;
pub use self::body::BODY_BYTES_MAX;
pub use self::exchange::IDEMPOTENCY_BYTES_MAX;
pub use self::fleet::{Fleet, FleetView, NoFleet};

/// The header with a request's id, also the `instance` of a refusal.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-tollway-request-id");

/// What handlers work with.
pub struct Api {
    pub(crate) cluster: Cluster,
    pub(crate) root: Key,
    pub(crate) fleet: Arc<dyn Fleet>,
    pub(crate) billing: Billing,
    pub(crate) stopping: CancellationToken,
    access: Arc<AccessTable>,
    document: Bytes,
    /// The routes of the API once more, for writes that are only tried.
    routes: Router<Arc<Api>>,
    /// Where writes are only tried.
    scratch: Option<Scratch>,
}

/// A body that says nothing.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// The routes of the API with their document.
fn collected() -> (Router<Arc<Api>>, Value) {
    let api = OpenApiRouter::new()
        .merge(catalog::routes())
        .merge(tenant::routes())
        .merge(budget::routes())
        .merge(account::routes())
        .merge(payments::routes())
        .merge(keys::routes())
        .merge(admins::routes())
        .merge(join_tokens::routes())
        .merge(member::routes())
        .merge(incarnations::routes())
        .merge(join::routes())
        .merge(usage::routes())
        .merge(reports::routes())
        .merge(audit::routes())
        .merge(dry_run::routes());
    let mut all: OpenApiRouter<Arc<Api>> = OpenApiRouter::new().nest("/admin/v1", api);
    let components = all.get_openapi_mut().components.get_or_insert_default();
    let mut schemas = vec![(
        Problem::name().into_owned(),
        <Problem as utoipa::PartialSchema>::schema(),
    )];
    Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let (router, document) = all.split_for_parts();
    (router, openapi::completed(document))
}

/// The whole admin listener: the API, health, metrics.
///
/// - `root`: the cluster's sealing key.
/// - `billing`: this replica's billing store.
/// - `stopping`: cancelled when the replica begins to stop; `/readyz` says so from then on.
pub fn router(
    cluster: Cluster,
    root: Key,
    fleet: Arc<dyn Fleet>,
    billing: Billing,
    stopping: CancellationToken,
) -> Router {
    let (routes, document) = collected();
    let published = serde_json::to_vec(&openapi::published(&document)).expect("a document is plain JSON");
    let api = Arc::new(Api {
        cluster,
        root,
        fleet,
        billing,
        stopping,
        access: Arc::new(AccessTable::of_document(&document, &ops::OPEN)),
        document: published.into(),
        routes: routes.clone(),
        scratch: None,
    });
    guarded(routes.merge(ops::routes()), api)
}

/// Puts the check in front of every handler. The fallbacks come after it, so they answer anybody: they tell what the document tells.
fn guarded(routes: Router<Arc<Api>>, api: Arc<Api>) -> Router {
    routes
        .route_layer(from_fn_with_state(api.clone(), auth::check))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn(observe))
        .with_state(api)
}

async fn unknown_route(request: Request) -> Fault {
    let detail = format!(
        "there is nothing at `{}`; `/admin/v1/openapi.json` lists what there is",
        request.uri().path()
    );
    Fault::new(ProblemCode::UnknownRoute, detail)
}

async fn unknown_method(method: Method, request: Request) -> Fault {
    let detail = format!(
        "`{method}` is not possible at `{}`; `Allow` says what is",
        request.uri().path()
    );
    Fault::new(ProblemCode::MethodNotAllowed, detail)
}

/// The outermost layer: the request's id, refusals rendered, panics answered, counted and logged.
async fn observe(request: Request, next: Next) -> Response {
    let id = minted("req");
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let begun = Instant::now();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!(request = %id, %method, route, "a handler panicked");
        axum::response::IntoResponse::into_response(Fault::new(
            ProblemCode::Internal,
            "this replica failed to answer; its log has the reason under the request's id",
        ))
    });
    if let Some(fault) = response.extensions_mut().remove::<Fault>() {
        let allow = response.headers_mut().remove(axum::http::header::ALLOW);
        match response.status().as_u16() {
            500 => tracing::error!(request = %id, %method, route, ?fault, "this replica failed to answer"),
            503 => tracing::info!(request = %id, %method, route, ?fault, "refused"),
            _ => tracing::debug!(request = %id, %method, route, ?fault, "refused"),
        }
        response = fault.render(&id);
        if let Some(allow) = allow {
            response.headers_mut().insert(axum::http::header::ALLOW, allow);
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    metrics::answered(&method, &route, response.status(), begun.elapsed());
    response
}

/// A new id: sortable by time, unique.
pub(crate) fn minted(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::now_v7().simple())
}

/// Bytes from the operating system's generator.
pub(crate) fn entropy() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

impl Api {
    /// The same API, whose writes are only tried.
    fn on(&self, scratch: Scratch) -> Self {
        Self {
            cluster: self.cluster.clone(),
            root: self.root.clone(),
            fleet: self.fleet.clone(),
            billing: self.billing.clone(),
            stopping: self.stopping.clone(),
            access: self.access.clone(),
            document: self.document.clone(),
            routes: self.routes.clone(),
            scratch: Some(scratch),
        }
    }

    /// SHA-256 of the authority's certificate, in hex: what a join token pins.
    fn authority_hash(&self) -> Result<String, Fault> {
        let state = self.cluster.state();
        let cluster = state.cluster.as_ref();
        let pem = cluster
            .map(|cluster| cluster.authority_pem.as_str())
            .unwrap_or_default();
        let hash = certificate_hash(pem).map_err(|_| {
            Fault::new(
                ProblemCode::Unavailable,
                "this replica knows no certificate authority yet",
            )
        })?;
        Ok(hex(&hash))
    }
}

#[cfg(test)]
mod tests;
