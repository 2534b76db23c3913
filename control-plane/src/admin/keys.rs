//! API keys: made, rotated, revoked. A key's text is in one answer and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use tollway_proto::admin::Page;
use tollway_proto::admin::tenant::{Key, KeyCreate, KeyCreated, KeyLabels, KeyMark, KeyRotate};
use tollway_proto::admin::text::SecretText;
use tollway_proto::command::{Command, Receipt};
use tollway_shared::ids::{ApiKeyId, ProjectId, Revision};
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal;
use tollway_shared::tenant::ApiKey;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::PEPPER_VERSION;
use super::exchange::{Answer, Read, Write, path_id};
use super::fault::Fault;
use super::noun::{self, an_id, shown};
use super::{Api, Nothing};
use crate::clock;

/// How long the answer with a new key waits for the nodes.
const AT_NODES_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks at the nodes.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

struct Keys;

shown!(Keys in keys: "API key", records ApiKeyId => ApiKey, view Key,
    filters [("project", an_id::<ProjectId>, |key| Some(key.project.as_str()))]);

/// What a retry cannot read back from the state.
#[derive(Serialize, Deserialize)]
struct Made {
    id: String,
    key: String,
}

/// Lists API keys, without their text.
#[utoipa::path(get, path = "/keys", tag = "keys", params(("project" = Option<String>, Query)),
    responses((status = 200, body = Page<Key>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_keys(Shared(api): Shared<Arc<Api>>, read: Read) -> Result<Answer<Page<Key>>, Fault> {
    noun::list::<Keys>(&api, read).await
}

/// Reads one API key, without its text.
#[utoipa::path(get, path = "/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses((status = 200, body = Key)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_key(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<Key>, Fault> {
    noun::get::<Keys>(&api, &id, read).await
}

/// Makes an API key. The answer is the only time it is shown; a retry with the same `Idempotency-Key` gets the same one. It comes once every
/// connected node knows the key (`x-tollway-nodes: current`), or after a second (`behind`).
#[utoipa::path(post, path = "/keys", tag = "keys", request_body = KeyCreate,
    responses((status = 201, body = KeyCreated)), security(("admin_key" = ["owner", "admin"])))]
async fn create_key(
    Shared(api): Shared<Arc<Api>>,
    write: Write<KeyCreate>,
) -> Result<Answer<KeyCreated>, Fault> {
    let id = write
        .body
        .id
        .clone()
        .map_or_else(|| ApiKeyId::trusted(super::minted("key")), |id| id.0);
    let (text, mark) = api.mint_key();
    let stored = write.body.into_stored(id.clone(), mark, clock::now());
    let made = Made {
        id: id.to_string(),
        key: text,
    };
    let command = Command::CreateKey(stored.clone());
    let (receipt, made) = api.write_once(write.head, command, made).await?;
    Ok(api.shown(made, stored, &receipt).await)
}

/// Replaces an API key: the new one takes over its project and models, the old one ends after a grace period. A budget on the old
/// key goes on under its id and scope with what it has counted, and covers the new one too: as long as both work, they share it.
#[utoipa::path(post, path = "/keys/{id}/rotate", tag = "keys", params(("id" = String, Path)), request_body = KeyRotate,
    responses((status = 201, body = KeyCreated)), security(("admin_key" = ["owner", "admin"])))]
async fn rotate_key(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<KeyRotate>,
) -> Result<Answer<KeyCreated>, Fault> {
    let old: ApiKeyId = path_id("id", &id)?;
    // The old key's name goes on; its project and models are the state's to hand over.
    api.cluster.barrier().await?;
    let state = api.cluster.state();
    let kept = state
        .keys
        .get(&old)
        .ok_or_else(|| Fault::not_found("API key", &old))?;
    let (text, mark) = api.mint_key();
    let now = clock::now();
    let stored = ApiKey {
        id: ApiKeyId::trusted(super::minted("key")),
        digest: mark.digest,
        pepper_version: mark.pepper_version,
        last4: mark.last4,
        created_at: now,
        expires_at: write.body.expires_at.map(|at| at.0),
        revoked_at: None,
        rotated_from: Some(old.clone()),
        ..kept.value.clone()
    };
    let made = Made {
        id: stored.id.to_string(),
        key: text,
    };
    let command = Command::RotateKey {
        old,
        old_expires_at: now.plus_ms(i64::from(write.body.grace_seconds) * 1_000),
        new: stored.clone(),
    };
    let (receipt, made) = api.write_once(write.head, command, made).await?;
    Ok(api.shown(made, stored, &receipt).await)
}

/// Refuses an API key from now on, on every node. Revoking twice is not an error.
#[utoipa::path(post, path = "/keys/{id}/revoke", tag = "keys", params(("id" = String, Path)), request_body = Nothing,
    responses((status = 200, body = Key)), security(("admin_key" = ["owner", "admin"])))]
async fn revoke_key(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Key>, Fault> {
    let id: ApiKeyId = path_id("id", &id)?;
    let receipt = api.write(write.head, Command::RevokeKey(id.clone())).await?;
    api.key_after(&receipt, &id).await
}

/// Sets the labels of an API key, in place of those it has.
#[utoipa::path(put, path = "/keys/{id}/labels", tag = "keys", params(("id" = String, Path)), request_body = KeyLabels,
    responses((status = 200, body = Key)), security(("admin_key" = ["owner", "admin"])))]
async fn label_key(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<KeyLabels>,
) -> Result<Answer<Key>, Fault> {
    let id: ApiKeyId = path_id("id", &id)?;
    let command = Command::LabelKey {
        key: id.clone(),
        labels: write.body.labels,
    };
    let receipt = api.write(write.head, command).await?;
    api.key_after(&receipt, &id).await
}

impl Api {
    /// A key as a write has left it.
    async fn key_after(&self, receipt: &Receipt, id: &ApiKeyId) -> Result<Answer<Key>, Fault> {
        let state = self.after(receipt).await;
        let kept = state
            .keys
            .get(id)
            .ok_or_else(|| Fault::not_found("API key", id))?;
        Ok(Answer::of(receipt.revision, Key::of(&kept.value, kept.revision)))
    }

    /// A new inference key: its text and what is stored of it.
    fn mint_key(&self) -> (String, KeyMark) {
        let text = key_text::mint(KeyKind::Inference, &super::entropy());
        let mark = KeyMark {
            digest: seal::key_digest(&seal::pepper(&self.root, PEPPER_VERSION), text.expose()),
            pepper_version: PEPPER_VERSION,
            last4: key_text::last4(text.expose()),
        };
        (text.expose().clone(), mark)
    }

    /// The answer that shows a key, with its record as it is stored, once the nodes know it. `proposed` stands in when this replica does not see it yet.
    async fn shown(&self, made: Made, proposed: ApiKey, receipt: &Receipt) -> Answer<KeyCreated> {
        let id = ApiKeyId::trusted(made.id);
        let state = self.after(receipt).await;
        let record = match state.keys.get(&id) {
            Some(kept) => Key::of(&kept.value, kept.revision),
            None => Key::of(&proposed, receipt.revision),
        };
        let body = KeyCreated {
            key: SecretText::new(made.key),
            record,
        };
        let at_nodes = self.at_nodes(receipt.revision).await;
        Answer::of(receipt.revision, body).created().at_nodes(at_nodes)
    }

    /// Waits until every connected node runs on a revision, for at most [`AT_NODES_WITHIN`]: whoever was shown a key uses it at once.
    /// The write is done whatever comes of this. Returns whether they all do.
    async fn at_nodes(&self, revision: Revision) -> bool {
        let arrived = async {
            loop {
                let view = self.fleet.view().await;
                if view.connections.iter().all(|node| node.revision >= revision.0) {
                    // Whose nodes are not known is not waited for: they may be connected elsewhere by now.
                    return view.unanswered.is_empty();
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        tokio::time::timeout(AT_NODES_WITHIN, arrived)
            .await
            .unwrap_or(false)
    }
}

/// The routes of API keys.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key))
        .routes(routes!(rotate_key))
        .routes(routes!(revoke_key))
        .routes(routes!(label_key))
}
