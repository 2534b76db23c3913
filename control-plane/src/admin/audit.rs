//! The audit trail, read and verified. It is written by `state::apply`, in the same step as the change.

use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::Page;
use tollway_proto::admin::cluster::{AuditRecord, AuditVerdict, hex};
use tollway_proto::admin::text::Text;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::exchange::{Answer, Read};
use super::fault::Fault;
use super::params::wrong_param;
use crate::state::audit;

/// Lists audit records, oldest first; `after` is a sequence number.
#[utoipa::path(get, path = "/audit", tag = "audit",
    params(("actor" = Option<String>, Query), ("action" = Option<String>, Query), ("target" = Option<String>, Query)),
    responses((status = 200, body = Page<AuditRecord>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_audit(
    Shared(api): Shared<Arc<Api>>,
    mut read: Read,
) -> Result<Answer<Page<AuditRecord>>, Fault> {
    let window = read.params.take_window()?;
    let after: u64 = match &window.after {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| wrong_param("after", "is not a sequence number"))?,
    };
    let [actor, action, target] = ["actor", "action", "target"].map(|name| read.params.take(name));
    let seen = read.seen(&api).await?;
    let wanted = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let mut records = seen.state.audit.iter().filter(|record| {
        record.sequence > after
            && wanted(&actor, &record.actor)
            && wanted(&action, &record.action)
            && wanted(&target, &record.target)
    });
    let data: Vec<AuditRecord> = records.by_ref().take(window.limit).map(shown).collect();
    let more = records.next().is_some();
    let next = data
        .last()
        .map(|record| record.sequence.to_string())
        .filter(|_| more);
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

fn shown(record: &audit::AuditRecord) -> AuditRecord {
    // What is not JSON (a behaviour version) is shown as text.
    let json = |text: &Option<String>| {
        text.as_ref()
            .map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()))
    };
    AuditRecord {
        sequence: record.sequence,
        at: Text(record.at),
        actor: record.actor.clone(),
        action: record.action.clone(),
        target: record.target.clone(),
        revision: record.revision.0,
        before: json(&record.before),
        after: json(&record.after),
        previous: hex(&record.previous),
        hash: hex(&record.hash()),
    }
}

/// Checks every record's hash against the next record's memory of it.
#[utoipa::path(get, path = "/audit/verify", tag = "audit",
    responses((status = 200, body = AuditVerdict)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn verify_audit(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<AuditVerdict>, Fault> {
    let seen = read.seen(&api).await?;
    let first_broken = audit::first_broken(&seen.state);
    let body = AuditVerdict {
        intact: first_broken.is_none(),
        first_broken,
        count: seen.state.audit_count,
        head: hex(&seen.state.audit_head),
        revision: seen.state.revision.0,
    };
    Ok(seen.answer(body))
}

/// The routes of the audit trail.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_audit))
        .routes(routes!(verify_audit))
}
