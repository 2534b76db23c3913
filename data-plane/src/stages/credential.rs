//! Which credential goes with an attempt, and how it went. Thin: [`crate::credentials`] decides.

use std::sync::Arc;

use http::HeaderValue;
use tollway_shared::catalog::{AuthScheme, Credential, Provider, credential_aad};
use tollway_shared::fault::AttemptFault;
use tollway_shared::ids::CredentialId;
use tollway_shared::seal;
use tollway_shared::time::UnixMillis;

use crate::catalog::secret_header;
use crate::credentials;
use crate::pipeline::Context;

/// The credential of an attempt; `None` at a provider that wants none.
pub(super) type Chosen = Result<Option<Arc<Credential>>, AttemptFault>;

/// Chooses among the provider's credentials those that this request has not been refused with.
pub(super) fn choose(cx: &Context, provider: &Provider, refused: &[CredentialId]) -> Chosen {
    if provider.auth == AuthScheme::None {
        return Ok(None);
    }
    let all = cx.snapshot.credentials.get(&provider.id);
    let all = all.ok_or(AttemptFault::Credential)?;
    let ring = cx.plane.credentials.borrow();
    let chosen = ring.pick(|| all.values(), refused, cx.arrival.at, || cx.plane.dice.chance());
    chosen.cloned().map(Some).ok_or(AttemptFault::Credential)
}

/// Notes how an attempt went.
pub(super) fn note(
    cx: &Context,
    chosen: &Chosen,
    fault: Option<AttemptFault>,
    retry_after: Option<u64>,
    now: UnixMillis,
) {
    if let Ok(Some(credential)) = chosen {
        let mut ring = cx.plane.credentials.borrow_mut();
        ring.note(credential, fault, retry_after, now);
    }
}

/// Whether the attempt failed for its credential and another one is left that works; the failed one is added to `refused`.
pub(super) fn another(
    cx: &Context,
    provider: &Provider,
    chosen: &Chosen,
    fault: AttemptFault,
    refused: &mut Vec<CredentialId>,
    now: UnixMillis,
) -> bool {
    let Ok(Some(credential)) = chosen else {
        return false;
    };
    if !credentials::another_may_do(fault) {
        return false;
    }
    refused.push(credential.id.clone());
    let ring = cx.plane.credentials.borrow();
    let all = cx.snapshot.credentials.get(&provider.id);
    all.is_some_and(|all| {
        all.values()
            .any(|other| !refused.contains(&other.id) && ring.is_fit(other, now))
    })
}

/// A credential as a header, opened once per seal.
pub(super) fn header(
    cx: &Context,
    provider: &Provider,
    credential: &Credential,
) -> Result<HeaderValue, AttemptFault> {
    let live = &cx.plane.live;
    if let Some(value) = live.opened(credential, provider.auth) {
        return Ok(value);
    }
    let key = live.region_key().ok_or(AttemptFault::Credential)?;
    let aad = credential_aad(&provider.id, &credential.id, credential.version);
    let secret = seal::open(&key, &aad, &credential.sealed).map_err(|_| AttemptFault::Credential)?;
    let prefix: &[u8] = match provider.auth {
        AuthScheme::Bearer => b"Bearer ",
        AuthScheme::XApiKey | AuthScheme::None => b"",
    };
    let value = secret_header(prefix, secret.expose()).ok_or(AttemptFault::Credential)?;
    live.keep_opened(credential, provider.auth, &value);
    Ok(value)
}
