//! What machines ask: alive, ready, metrics, the OpenAPI document. No admin key; nothing here tells who a tenant is.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Api;
use crate::metrics;
use crate::raft::ProposeFault;

/// What anybody may read.
pub(crate) const OPEN: [&str; 4] = ["/livez", "/readyz", "/metrics", "/admin/v1/openapi.json"];

async fn livez() -> &'static str {
    "ok\n"
}

/// How long a majority has to confirm this replica's state when it is asked whether it is ready.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(1);

/// Ready: part of a made cluster, with a majority that confirms its state, and not stopping. Many who ask at once cost one question.
async fn readyz(Shared(api): Shared<Arc<Api>>) -> Response {
    let reason = if api.stopping.is_cancelled() {
        "stopping"
    } else if api.cluster.state().cluster.is_none() {
        "no state yet: this replica has not caught up, or the cluster has not been made"
    } else if api.cluster.known_leader().is_none() {
        "no leader in sight"
    } else {
        match tokio::time::timeout(CONFIRMED_WITHIN, api.cluster.barrier()).await {
            Ok(Ok(())) => return "ok\n".into_response(),
            Ok(Err(ProposeFault::Stopping)) => "stopping",
            Ok(Err(_)) | Err(_) => "no_quorum: no majority of the replicas confirms this replica's state",
        }
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn scrape(Shared(api): Shared<Arc<Api>>) -> Response {
    metrics::observe(&api.cluster);
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, metrics::render()).into_response()
}

async fn openapi(Shared(api): Shared<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.document.clone()).into_response()
}

/// The routes for machines. Each stands in [`OPEN`] too.
pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .route("/admin/v1/openapi.json", get(openapi))
}
