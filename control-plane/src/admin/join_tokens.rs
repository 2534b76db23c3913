//! Join tokens: what lets one replica or node in, once. A token's text is in one answer and nowhere else.

use std::sync::Arc;

use axum::extract::State as Shared;
use tollway_proto::admin::Page;
use tollway_proto::admin::cluster::{
    JOIN_TTL_SECONDS_MAX, JoinKind, JoinToken, JoinTokenCreate, JoinTokenCreated,
};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::SecretText;
use tollway_proto::command::{self, Command};
use tollway_shared::key_text::{self, KeyKind};
use tollway_shared::seal;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::exchange::{Answer, OneText, Read, Write};
use super::fault::Fault;
use crate::clock;

/// Lists unused join tokens, without their text.
#[utoipa::path(get, path = "/join-tokens", tag = "join-tokens",
    responses((status = 200, body = Page<JoinToken>)), security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_join_tokens(
    Shared(api): Shared<Arc<Api>>,
    mut read: Read,
) -> Result<Answer<Page<JoinToken>>, Fault> {
    let window = read.params.take_window()?;
    let seen = read.seen(&api).await?;
    let now = clock::now();
    // Digests have no text form of their own, and there are few tokens: the page is cut here.
    let all = seen
        .state
        .join_tokens
        .values()
        .filter(|token| token.expires_at > now)
        .map(JoinToken::of);
    let mut rows = all.filter(|token| window.after.as_ref().is_none_or(|after| token.digest > *after));
    let data: Vec<JoinToken> = rows.by_ref().take(window.limit).collect();
    let more = rows.next().is_some();
    let next = data.last().map(|token| token.digest.clone()).filter(|_| more);
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

/// Makes a join token. It lets one replica or node in, once.
#[utoipa::path(post, path = "/join-tokens", tag = "join-tokens", request_body = JoinTokenCreate,
    responses((status = 201, body = JoinTokenCreated)), security(("admin_key" = ["owner", "operator"])))]
async fn create_join_token(
    Shared(api): Shared<Arc<Api>>,
    write: Write<JoinTokenCreate>,
) -> Result<Answer<JoinTokenCreated>, Fault> {
    let kind = join_kind(&write.body)?;
    let authority_hash = api.authority_hash()?;
    let text = key_text::mint(KeyKind::Join, &super::entropy());
    let text = format!("{}-{authority_hash}", text.expose());
    let mut stored = command::JoinToken {
        digest: seal::sha256(text.as_bytes()),
        kind,
        expires_at: clock::now().plus_ms(i64::from(write.body.ttl_seconds) * 1_000),
    };
    let command = Command::CreateJoinToken(stored.clone());
    let (receipt, shown) = api.write_once(write.head, command, OneText { text }).await?;
    if receipt.replayed.is_some() {
        stored.digest = seal::sha256(shown.text.as_bytes());
        let state = api.after(&receipt).await;
        if let Some(token) = state.join_tokens.get(&stored.digest) {
            stored = token.clone();
        }
    }
    let body = JoinTokenCreated {
        token: SecretText::new(shown.text),
        record: JoinToken::of(&stored),
    };
    Ok(Answer::of(receipt.revision, body).created())
}

fn join_kind(body: &JoinTokenCreate) -> Result<command::JoinKind, Fault> {
    if !(1..=JOIN_TTL_SECONDS_MAX).contains(&body.ttl_seconds) {
        let detail = format!("`ttl_seconds` must be between 1 and {JOIN_TTL_SECONDS_MAX}");
        return Err(Fault::at(ProblemCode::Invalid, "ttl_seconds", detail));
    }
    match (body.kind, &body.region) {
        (JoinKind::Replica, None) => Ok(command::JoinKind::Replica),
        (JoinKind::Node, Some(region)) => Ok(command::JoinKind::Node(region.0.clone())),
        (JoinKind::Replica, Some(_)) => Err(Fault::at(
            ProblemCode::Invalid,
            "region",
            "`region` is for nodes; a replica has none",
        )),
        (JoinKind::Node, None) => Err(Fault::at(
            ProblemCode::Invalid,
            "region",
            "`region` is missing: say where the node runs",
        )),
    }
}

/// The routes of join tokens.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list_join_tokens, create_join_token))
}
