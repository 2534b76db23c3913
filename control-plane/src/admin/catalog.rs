//! Providers, credentials, models, endpoints, prices, notices.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use tollway_proto::admin::catalog::{
    Credential, CredentialPut, Endpoint, EndpointPut, Model, ModelPut, Notice, NoticePut, Price, PriceCreate,
    Provider, ProviderPut,
};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::{Page, Removed};
use tollway_proto::command::Command;
use tollway_shared::catalog as stored;
use tollway_shared::ids::{CredentialId, EndpointId, ModelId, NoticeId, PriceId, ProviderId};
use tollway_shared::notice;
use tollway_shared::seal;
use tollway_shared::time::UnixMillis;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exchange::{Answer, Read, Write, path_id};
use super::fault::Fault;
use super::noun::{self, an_id, replaced, shown};
use super::{Api, Nothing};
use crate::clock;
use crate::state::State;

/// Most bytes of a provider's secret.
const SECRET_BYTES_MAX: usize = 16 << 10;

replaced!(providers: "provider", tag "providers", one "/providers/{id}", list "/providers",
    records ProviderId => stored::Provider, view Provider, put ProviderPut, commands PutProvider RemoveProvider,
    filters []);

replaced!(models: "model", tag "models", one "/models/{*id}", list "/models",
    records ModelId => stored::Model, view Model, put ModelPut = with_its_birthday, commands PutModel RemoveModel,
    filters []);

/// A model as it is put; a replaced one keeps its birthday.
fn with_its_birthday(
    put: ModelPut,
    id: ModelId,
    state: &State,
    now: UnixMillis,
) -> Result<stored::Model, Fault> {
    let born = state.models.get(&id).map_or(now, |kept| kept.value.created_at);
    Ok(put.into_stored(id, born))
}

replaced!(endpoints: "endpoint", tag "endpoints", one "/endpoints/{*id}", list "/endpoints",
    records EndpointId => stored::Endpoint, view Endpoint, put EndpointPut, commands PutEndpoint RemoveEndpoint,
    filters [("model", an_id::<ModelId>, |endpoint| Some(endpoint.model.as_str())),
        ("provider", an_id::<ProviderId>, |endpoint| Some(endpoint.provider.as_str()))]);

replaced!(notices: "notice", tag "notices", one "/notices/{id}", list "/notices",
    records NoticeId => notice::Notice, view Notice, put NoticePut, commands PutNotice RemoveNotice,
    filters [("model", an_id::<ModelId>, |notice| Some(notice.model.as_str()))]);

struct Prices;

shown!(Prices in prices: "price", records PriceId => stored::PriceVersion, view Price,
    filters [("endpoint", an_id::<EndpointId>, |price| Some(price.endpoint.as_str()))]);

/// Lists a provider's credentials, without their secrets.
#[utoipa::path(get, path = "/providers/{provider}/credentials", tag = "credentials", params(("provider" = String, Path)),
    responses((status = 200, body = Page<Credential>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_credentials(
    Shared(api): Shared<Arc<Api>>,
    Path(provider): Path<String>,
    mut read: Read,
) -> Result<Answer<Page<Credential>>, Fault> {
    let provider: ProviderId = path_id("provider", &provider)?;
    let window = read.params.take_window()?;
    let seen = read.seen(&api).await?;
    if !seen.state.providers.contains_key(&provider) {
        return Err(Fault::not_found("provider", &provider));
    }
    let (data, next) = noun::page(
        &seen.state.credentials,
        &window,
        |kept| kept.value.provider == provider,
        |_, kept| Credential::of(&kept.value, kept.revision),
    )?;
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

/// Reads one credential, without its secret.
#[utoipa::path(get, path = "/providers/{provider}/credentials/{id}", tag = "credentials",
    params(("provider" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Credential)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_credential(
    Shared(api): Shared<Arc<Api>>,
    Path((provider, id)): Path<(String, String)>,
    read: Read,
) -> Result<Answer<Credential>, Fault> {
    let (provider, id) = credential_path(&provider, &id)?;
    let seen = read.seen(&api).await?;
    let key = stored::credential_key(&provider, &id);
    let kept = seen.state.credentials.get(&key);
    let kept = kept.ok_or_else(|| Fault::not_found("credential", &key))?;
    Ok(seen.answer(Credential::of(&kept.value, kept.revision)))
}

/// Stores a provider's secret, sealed. It is never answered.
#[utoipa::path(put, path = "/providers/{provider}/credentials/{id}", tag = "credentials",
    params(("provider" = String, Path), ("id" = String, Path)), request_body = CredentialPut,
    responses((status = 200, body = Credential)), security(("admin_key" = ["owner", "admin"])))]
async fn put_credential(
    Shared(api): Shared<Arc<Api>>,
    Path((provider, id)): Path<(String, String)>,
    write: Write<CredentialPut>,
) -> Result<Answer<Credential>, Fault> {
    let (provider, id) = credential_path(&provider, &id)?;
    let secret = write.body.secret.clone();
    if secret.expose().is_empty() || secret.expose().len() > SECRET_BYTES_MAX {
        let detail = format!("`secret` must have 1 to {SECRET_BYTES_MAX} bytes");
        return Err(Fault::at(ProblemCode::Invalid, "secret", detail));
    }
    if secret.expose().bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
        let detail = "`secret` must be printable ASCII: it travels in a header";
        return Err(Fault::at(ProblemCode::Invalid, "secret", detail));
    }
    if write.body.is_fallback && write.body.organization.is_none() {
        let detail = "`is_fallback` is only for an organization's own credential";
        return Err(Fault::at(ProblemCode::Invalid, "is_fallback", detail));
    }
    // The seal binds the version, so the newest one must be known; two writers racing for one get a conflict.
    api.newest().await?;
    let version = api
        .state()
        .credentials
        .get(&stored::credential_key(&provider, &id))
        .map_or(1, |kept| kept.value.version + 1);
    let owner = write.body.organization.as_ref().map(|owner| &owner.0);
    let aad = stored::credential_aad(&provider, &id, version, owner);
    let sealed = seal::seal(&api.root, &aad, secret.expose().as_bytes());
    let record = write
        .body
        .into_stored(id.clone(), provider.clone(), version, sealed, clock::now());
    let view = Credential::of(&record, tollway_shared::ids::Revision(0));
    let (receipt, mut view) = api
        .write_once(write.head, Command::PutCredential(record), view)
        .await?;
    view.revision = receipt.revision.0;
    Ok(Answer::of(receipt.revision, view))
}

/// Removes a credential.
#[utoipa::path(delete, path = "/providers/{provider}/credentials/{id}", tag = "credentials",
    params(("provider" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = Removed)), security(("admin_key" = ["owner", "admin"])))]
async fn delete_credential(
    Shared(api): Shared<Arc<Api>>,
    Path((provider, id)): Path<(String, String)>,
    write: Write<Nothing>,
) -> Result<Answer<Removed>, Fault> {
    let (provider, id) = credential_path(&provider, &id)?;
    let command = Command::RemoveCredential(stored::credential_key(&provider, &id));
    noun::removed(&api, write.head, id.to_string(), command).await
}

fn credential_path(provider: &str, id: &str) -> Result<(ProviderId, CredentialId), Fault> {
    Ok((path_id("provider", provider)?, path_id("id", id)?))
}

/// What a retry of a new price cannot read back.
#[derive(Serialize, Deserialize)]
struct MadePrice {
    id: String,
}

/// Lists price versions.
#[utoipa::path(get, path = "/prices", tag = "prices", params(("endpoint" = Option<String>, Query)),
    responses((status = 200, body = Page<Price>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_prices(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Page<Price>>, Fault> {
    noun::list::<Prices>(&api, read).await
}

/// Adds a price version. In force at once, or from `effective_from`.
#[utoipa::path(post, path = "/prices", tag = "prices", request_body = PriceCreate,
    responses((status = 201, body = Price)), security(("admin_key" = ["owner", "admin"])))]
async fn add_price(Shared(api): Shared<Arc<Api>>, write: Write<PriceCreate>) -> Result<Answer<Price>, Fault> {
    let id = PriceId::trusted(super::minted("price"));
    let mut stored = write.body.into_stored(id.clone());
    let made = MadePrice { id: id.to_string() };
    let command = Command::AddPrice(stored.clone());
    let (receipt, made) = api.write_once(write.head, command, made).await?;
    let id = PriceId::trusted(made.id);
    stored.id = id.clone();
    // The state fills in when a price without a date starts to apply.
    let state = api.after(&receipt).await;
    let stored = state.prices.get(&id).map_or(stored, |kept| kept.value.clone());
    Ok(Answer::of(receipt.revision, Price::of(&stored, receipt.revision)).created())
}

/// Reads one price version.
#[utoipa::path(get, path = "/prices/{*id}", tag = "prices", params(("id" = String, Path)),
    responses((status = 200, body = Price)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_price(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<Price>, Fault> {
    noun::get::<Prices>(&api, &id, read).await
}

/// Takes back a price version that is not yet in force.
#[utoipa::path(delete, path = "/prices/{*id}", tag = "prices", params(("id" = String, Path)),
    responses((status = 200, body = Removed)), security(("admin_key" = ["owner", "admin"])))]
async fn delete_price(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Removed>, Fault> {
    let id: PriceId = path_id("id", &id)?;
    noun::removed(&api, write.head, id.to_string(), Command::RemovePrice(id)).await
}

/// The routes of the catalog.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(providers::routes())
        .routes(routes!(list_credentials))
        .routes(routes!(get_credential, put_credential, delete_credential))
        .merge(models::routes())
        .merge(endpoints::routes())
        .routes(routes!(list_prices, add_price))
        .routes(routes!(get_price, delete_price))
        .merge(notices::routes())
}
