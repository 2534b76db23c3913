//! API key → [`Caller`]. A refusal needs a snapshot that says so: without one, or with one that is too old, it is 503, never 401.

use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tollway_shared::fault::Fault;
use tollway_shared::key_text::{KeyKind, is_well_formed};
use tollway_shared::seal::key_digest;
use tollway_shared::snapshot::Snapshot;

use crate::pipeline::{Caller, Context};
use crate::plane::Plane;

/// The snapshot that this request is answered from.
pub fn snapshot(plane: &Rc<Plane>) -> Result<Arc<Snapshot>, Fault> {
    if plane.live.is_removed() {
        return Err(Fault::NodeRemoved);
    }
    let snapshot = plane.live.snapshot().ok_or(Fault::NoSnapshot)?;
    if plane.live.age_ms() > plane.limits.max_stale_ms {
        return Err(Fault::ControlPlaneStale);
    }
    Ok(snapshot)
}

/// Finds the caller by its key.
pub fn caller(cx: &Context, headers: &HeaderMap) -> Result<Caller, Fault> {
    find(&cx.plane, &cx.snapshot, headers, cx.arrival.at)
}

/// The same, for routes that are not chat.
pub fn find(
    plane: &Plane,
    snapshot: &Snapshot,
    headers: &HeaderMap,
    now: tollway_shared::time::UnixMillis,
) -> Result<Caller, Fault> {
    let text = presented(headers)?;
    if !is_well_formed(KeyKind::Inference, text) {
        return Err(Fault::InvalidKey);
    }
    let secrets = plane.live.peppers();
    let digest = secrets
        .peppers
        .values()
        .rev()
        .map(|pepper| key_digest(pepper, text))
        .find(|digest| snapshot.keys.contains_key(digest))
        .ok_or(if secrets.peppers.is_empty() {
            Fault::NoSnapshot
        } else {
            Fault::InvalidKey
        })?;
    let key = snapshot.keys.get(&digest).ok_or(Fault::InvalidKey)?;
    let stopped = {
        let stops = plane.live.stops();
        !stops.is_empty() && stops.keys.contains(&digest)
    };
    if stopped || key.revoked_at.is_some_and(|at| at <= now) {
        return Err(Fault::RevokedKey);
    }
    if key.expires_at.is_some_and(|at| at <= now) {
        return Err(Fault::ExpiredKey);
    }
    // The snapshot's check keeps these references whole, so a gap is a fault of ours and not the caller's.
    let path = snapshot.path(key).ok_or(Fault::Internal)?;
    let organization = snapshot.organizations.get(&path.organization);
    let Some(organization) = organization.filter(|organization| organization.enabled) else {
        return Err(Fault::TenantDisabled {
            level: "organization",
        });
    };
    if !snapshot
        .projects
        .get(&path.project)
        .is_some_and(|project| project.enabled)
    {
        return Err(Fault::TenantDisabled { level: "project" });
    }
    Ok(Caller {
        key: key.clone(),
        path,
        adjustment_bps: organization.adjustment_bps,
    })
}

/// The key's text. `x-api-key` is taken too, as clients of other gateways send it.
fn presented(headers: &HeaderMap) -> Result<&str, Fault> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let text = value.to_str().map_err(|_| Fault::InvalidKey)?;
        let (scheme, key) = text.split_once(' ').ok_or(Fault::InvalidKey)?;
        return if scheme.eq_ignore_ascii_case("bearer") {
            Ok(key.trim())
        } else {
            Err(Fault::InvalidKey)
        };
    }
    let value = headers.get("x-api-key").ok_or(Fault::MissingKey)?;
    value.to_str().map_err(|_| Fault::InvalidKey)
}
