//! Which credential goes with an attempt, and how it went. Thin: [`crate::credentials`] decides.

use std::sync::Arc;

use http::HeaderValue;
use tollway_shared::catalog::{AuthScheme, Credential, Provider, Turn};
use tollway_shared::fault::AttemptFault;
use tollway_shared::ids::CredentialId;
use tollway_shared::seal;
use tollway_shared::time::UnixMillis;

use crate::catalog::secret_header;
use crate::credentials;
use crate::pipeline::{Caller, Context};

/// The credential of an attempt; `None` at a provider that wants none.
pub(super) type Chosen = Result<Option<Arc<Credential>>, AttemptFault>;

/// Chooses among the provider's credentials that this request has not been refused with: the organization's own ones first, then
/// everybody's, then its own fallbacks; another organization's never.
pub(super) fn choose(cx: &Context, provider: &Provider, caller: &Caller, refused: &[CredentialId]) -> Chosen {
    if provider.auth == AuthScheme::None {
        return Ok(None);
    }
    let all = cx.snapshot.credentials.get(&provider.id);
    let all = all.ok_or(AttemptFault::Credential)?;
    let organization = &caller.path.organization;
    let ring = cx.plane.credentials.borrow();
    let fit =
        |credential: &Credential| !refused.contains(&credential.id) && ring.is_fit(credential, cx.arrival.at);
    let of = |turn: Turn| {
        all.values()
            .filter(move |credential| credential.turn(organization) == Some(turn))
    };
    let chance = || cx.plane.dice.chance();
    let turn = Turn::ALL
        .into_iter()
        .find(|turn| of(*turn).any(|credential| fit(credential)));
    let chosen = match turn {
        Some(turn) => ring.pick(|| of(turn), refused, cx.arrival.at, chance),
        None => {
            let may = || {
                all.values()
                    .filter(|credential| credential.turn(organization).is_some())
            };
            ring.pick(may, refused, cx.arrival.at, chance)
        }
    };
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
    caller: &Caller,
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
            .filter(|other| other.turn(&caller.path.organization).is_some())
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
    let secret =
        seal::open(&key, &credential.aad(), &credential.sealed).map_err(|_| AttemptFault::Credential)?;
    let prefix: &[u8] = match provider.auth {
        AuthScheme::Bearer => b"Bearer ",
        AuthScheme::XApiKey | AuthScheme::None => b"",
    };
    let value = secret_header(prefix, secret.expose()).ok_or(AttemptFault::Credential)?;
    live.keep_opened(credential, provider.auth, &value);
    Ok(value)
}
