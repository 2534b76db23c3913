//! Commands on what can be asked for: providers, credentials, models, endpoints, prices, notices.

use tollway_proto::command::{Refusal, RefusalCode};
use tollway_shared::catalog::{Credential, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::ids::{CredentialId, EndpointId, ModelId, NoticeId, PriceId, ProviderId};
use tollway_shared::notice::Notice;
use tollway_shared::snapshot::{ResourceKind, base_url_problem};
use tollway_shared::time::UnixMillis;

use super::view::key;
use super::{State, Step, must_be_unused, must_exist, not_found, quota, refuse};

pub(super) fn put_provider(
    state: &mut State,
    step: &mut Step<'_>,
    provider: &Provider,
) -> Result<(), Refusal> {
    if let Some(problem) = base_url_problem(&provider.base_url) {
        return Err(refuse(RefusalCode::Invalid, "base_url", problem));
    }
    step.put(&mut state.providers, provider.id.clone(), provider.clone())?;
    step.changed.push(key(ResourceKind::Provider, provider.id.text()));
    Ok(())
}

pub(super) fn remove_provider(
    state: &mut State,
    step: &mut Step<'_>,
    id: &ProviderId,
) -> Result<(), Refusal> {
    let endpoint = state.endpoints.values().find(|kept| kept.value.provider == *id);
    must_be_unused(
        endpoint.map(|kept| format!("endpoint `{}`", kept.value.id)),
        "provider",
    )?;
    let credential = state.credentials.values().find(|kept| kept.value.provider == *id);
    must_be_unused(
        credential.map(|kept| format!("credential `{}`", kept.value.key())),
        "provider",
    )?;
    step.take(&mut state.providers, id, "provider")?;
    step.changed.push(key(ResourceKind::Provider, id.text()));
    Ok(())
}

pub(super) fn put_credential(
    state: &mut State,
    step: &mut Step<'_>,
    credential: &Credential,
) -> Result<(), Refusal> {
    must_exist(
        state.providers.contains_key(&credential.provider),
        "provider",
        "provider",
        &credential.provider,
    )?;
    if let Some(owner) = &credential.owner {
        must_exist(
            state.organizations.contains_key(&owner.organization),
            "organization",
            "organization",
            &owner.organization,
        )?;
    }
    let id = credential.key();
    let stored = state.credentials.get(&id).map(|kept| &kept.value);
    let whose = |credential: &Credential| credential.owner.as_ref().map(|owner| owner.organization.clone());
    if stored.is_some_and(|stored| whose(stored) != whose(credential)) {
        let detail = "cannot change: what was sent under it belongs to somebody else";
        return Err(refuse(RefusalCode::Conflict, "organization", detail));
    }
    // The seal binds the version, so two writers racing for the same one must not both win.
    let wanted = stored.map_or(1, |stored| stored.version + 1);
    if credential.version != wanted {
        return Err(refuse(
            RefusalCode::Conflict,
            "version",
            "was written by somebody else meanwhile; send it again",
        ));
    }
    step.put(&mut state.credentials, id.clone(), credential.clone())?;
    step.changed.push(key(ResourceKind::Credential, id.text()));
    Ok(())
}

pub(super) fn remove_credential(
    state: &mut State,
    step: &mut Step<'_>,
    id: &CredentialId,
) -> Result<(), Refusal> {
    step.take(&mut state.credentials, id, "credential")?;
    step.changed.push(key(ResourceKind::Credential, id.text()));
    Ok(())
}

pub(super) fn put_model(state: &mut State, step: &mut Step<'_>, model: &Model) -> Result<(), Refusal> {
    step.put(&mut state.models, model.id.clone(), model.clone())?;
    step.changed.push(key(ResourceKind::Model, model.id.text()));
    if model.id.is_free() {
        quota::follow_all(state, step);
    }
    Ok(())
}

pub(super) fn remove_model(state: &mut State, step: &mut Step<'_>, id: &ModelId) -> Result<(), Refusal> {
    let endpoint = state.endpoints.values().find(|kept| kept.value.model == *id);
    must_be_unused(
        endpoint.map(|kept| format!("endpoint `{}`", kept.value.id)),
        "model",
    )?;
    step.take(&mut state.models, id, "model")?;
    step.changed.push(key(ResourceKind::Model, id.text()));
    if id.is_free() {
        quota::follow_all(state, step);
    }
    Ok(())
}

pub(super) fn put_endpoint(
    state: &mut State,
    step: &mut Step<'_>,
    endpoint: &Endpoint,
) -> Result<(), Refusal> {
    must_exist(
        state.providers.contains_key(&endpoint.provider),
        "provider",
        "provider",
        &endpoint.provider,
    )?;
    must_exist(
        state.models.contains_key(&endpoint.model),
        "model",
        "model",
        &endpoint.model,
    )?;
    if endpoint.upstream_model.is_empty() {
        return Err(refuse(
            RefusalCode::Invalid,
            "upstream_model",
            "must not be empty",
        ));
    }
    step.put(&mut state.endpoints, endpoint.id.clone(), endpoint.clone())?;
    step.changed.push(key(ResourceKind::Endpoint, endpoint.id.text()));
    Ok(())
}

pub(super) fn remove_endpoint(
    state: &mut State,
    step: &mut Step<'_>,
    id: &EndpointId,
) -> Result<(), Refusal> {
    step.take(&mut state.endpoints, id, "endpoint")?;
    step.changed.push(key(ResourceKind::Endpoint, id.text()));
    let prices: Vec<PriceId> = state
        .prices
        .values()
        .filter(|kept| kept.value.endpoint == *id)
        .map(|kept| kept.value.id.clone())
        .collect();
    for price in prices {
        state.prices.remove(&price);
        step.changed.push(key(ResourceKind::Price, price.text()));
    }
    Ok(())
}

/// `effective_from` 0 means at once: since ever for an endpoint's first prices, from the entry's stamp otherwise.
pub(super) fn add_price(
    state: &mut State,
    step: &mut Step<'_>,
    version: &PriceVersion,
) -> Result<(), Refusal> {
    must_exist(
        state.endpoints.contains_key(&version.endpoint),
        "endpoint",
        "endpoint",
        &version.endpoint,
    )?;
    if let Some((field, fault)) = version.prices.inadmissible() {
        return Err(refuse(
            RefusalCode::Invalid,
            &format!("prices.{field}"),
            fault.to_string(),
        ));
    }
    if state.prices.contains_key(&version.id) {
        return Err(refuse(
            RefusalCode::Conflict,
            "id",
            format!("price `{}` exists; prices never change", version.id),
        ));
    }
    let first = !state
        .prices
        .values()
        .any(|kept| kept.value.endpoint == version.endpoint);
    let mut version = version.clone();
    if !first && version.effective_from == UnixMillis(0) {
        version.effective_from = step.entry.at;
    } else if !first && version.effective_from < step.entry.at {
        return Err(refuse(
            RefusalCode::Invalid,
            "effective_from",
            "is in the past; prices do not change backwards",
        ));
    }
    step.changed.push(key(ResourceKind::Price, version.id.text()));
    step.put(&mut state.prices, version.id.clone(), version)
}

pub(super) fn remove_price(state: &mut State, step: &mut Step<'_>, id: &PriceId) -> Result<(), Refusal> {
    let Some(kept) = state.prices.get(id) else {
        return Err(not_found("price", id));
    };
    if kept.value.effective_from <= step.entry.at {
        return Err(Refusal {
            code: RefusalCode::Conflict,
            field: None,
            detail: format!("price `{id}` is in force; add a new version instead"),
        });
    }
    step.take(&mut state.prices, id, "price")?;
    step.changed.push(key(ResourceKind::Price, id.text()));
    Ok(())
}

pub(super) fn put_notice(state: &mut State, step: &mut Step<'_>, notice: &Notice) -> Result<(), Refusal> {
    must_exist(
        state.models.contains_key(&notice.model),
        "model",
        "model",
        &notice.model,
    )?;
    if let Some(endpoint) = &notice.endpoint {
        let there = state
            .endpoints
            .get(endpoint)
            .is_some_and(|kept| kept.value.model == notice.model);
        must_exist(there, "endpoint", "an endpoint of this model", endpoint)?;
    }
    if let Some(successor) = &notice.successor {
        must_exist(
            state.models.contains_key(successor),
            "successor",
            "model",
            successor,
        )?;
        if *successor == notice.model {
            return Err(refuse(RefusalCode::Invalid, "successor", "must be another model"));
        }
    }
    if notice.sunset_at.is_some_and(|at| at < notice.deprecated_at) {
        return Err(refuse(
            RefusalCode::Invalid,
            "sunset_at",
            "must not be before `deprecated_at`",
        ));
    }
    step.put(&mut state.notices, notice.id.clone(), notice.clone())?;
    step.changed.push(key(ResourceKind::Notice, notice.id.text()));
    Ok(())
}

pub(super) fn remove_notice(state: &mut State, step: &mut Step<'_>, id: &NoticeId) -> Result<(), Refusal> {
    step.take(&mut state.notices, id, "notice")?;
    step.changed.push(key(ResourceKind::Notice, id.text()));
    Ok(())
}
