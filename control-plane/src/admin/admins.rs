//! Admins: made, read, removed. An admin's key is in one answer and nowhere else.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use tollway_proto::admin::cluster::{Admin, AdminCreate, AdminCreated};
use tollway_proto::admin::text::SecretText;
use tollway_proto::admin::{Page, Removed};
use tollway_proto::command::{self, Command};
use tollway_shared::ids::AdminId;
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::PEPPER_VERSION;
use super::exchange::{Answer, OneText, Read, Write, path_id};
use super::fault::Fault;
use super::noun::{self, shown};
use super::{Api, Nothing};
use crate::clock;

struct Admins;

shown!(Admins in admins: "admin", records AdminId => command::Admin, view Admin, filters []);

/// Lists admins, without their keys.
#[utoipa::path(get, path = "/admins", tag = "admins",
    responses((status = 200, body = Page<Admin>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_admins(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Page<Admin>>, Fault> {
    noun::list::<Admins>(&api, read).await
}

/// Reads one admin, without its key.
#[utoipa::path(get, path = "/admins/{id}", tag = "admins", params(("id" = String, Path)),
    responses((status = 200, body = Admin)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_admin(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<Admin>, Fault> {
    noun::get::<Admins>(&api, &id, read).await
}

/// Makes an admin. The answer is the only time its key is shown.
#[utoipa::path(post, path = "/admins", tag = "admins", request_body = AdminCreate,
    responses((status = 201, body = AdminCreated)), security(("admin_key" = ["owner"])))]
async fn create_admin(
    Shared(api): Shared<Arc<Api>>,
    write: Write<AdminCreate>,
) -> Result<Answer<AdminCreated>, Fault> {
    let AdminCreate { id, name, role } = write.body;
    let (text, stored) = new_admin(&api.root, id.0, name, role.into());
    let command = Command::CreateAdmin(stored.clone());
    let (receipt, shown) = api.write_once(write.head, command, OneText { text }).await?;
    let state = api.after(&receipt).await;
    let record = match state.admins.get(&stored.id) {
        Some(kept) => Admin::of(&kept.value, kept.revision),
        None => Admin::of(&stored, receipt.revision),
    };
    let body = AdminCreated {
        key: SecretText::new(shown.text),
        record,
    };
    Ok(Answer::of(receipt.revision, body).created())
}

/// A new admin: the text of its key, and what is stored of it.
pub(crate) fn new_admin(
    root: &seal::Key,
    id: AdminId,
    name: String,
    role: command::Role,
) -> (String, command::Admin) {
    let text = key_text::mint(KeyKind::Admin, &super::entropy());
    let admin = command::Admin {
        name: if name.is_empty() { id.to_string() } else { name },
        id,
        role,
        digest: seal::key_digest(&seal::pepper(root, PEPPER_VERSION), text.expose()),
        pepper_version: PEPPER_VERSION,
        last4: key_text::last4(text.expose()),
        created_at: clock::now(),
    };
    (text.expose().clone(), admin)
}

/// Removes an admin. The last owner stays.
#[utoipa::path(delete, path = "/admins/{id}", tag = "admins", params(("id" = String, Path)),
    responses((status = 200, body = Removed)), security(("admin_key" = ["owner"])))]
async fn delete_admin(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Removed>, Fault> {
    let id: AdminId = path_id("id", &id)?;
    noun::removed(&api, write.head, id.to_string(), Command::RemoveAdmin(id)).await
}

/// The routes of admins.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_admins, create_admin))
        .routes(routes!(get_admin, delete_admin))
}
