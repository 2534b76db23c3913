//! Lives of nodes: what they hold, and what an operator does about one that is gone for good.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use tollway_proto::admin::Page;
use tollway_proto::admin::budget::Amount;
use tollway_proto::admin::incarnation::{Held, Incarnation, IncarnationLeases, LEASES_MAX};
use tollway_proto::admin::text::Text;
use tollway_proto::command::Command;
use tollway_shared::ids::{self, NodeId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exchange::{Answer, Head, Read, Write, path_id};
use super::fault::Fault;
use super::noun::{an_id, page};
use super::params::wrong_param;
use super::{Api, Nothing};
use crate::state::State;

/// Lists lives of nodes that hold leases of budgets, or held them until lately.
#[utoipa::path(get, path = "/incarnations", tag = "incarnations", params(("node" = Option<String>, Query)),
    responses((status = 200, body = Page<Incarnation>)),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn list_incarnations(
    Shared(api): Shared<Arc<Api>>,
    mut read: Read,
) -> Result<Answer<Page<Incarnation>>, Fault> {
    let window = read.params.take_window()?;
    let node = read.params.take("node");
    if let Some(node) = &node {
        an_id::<NodeId>(node).map_err(|why| wrong_param("node", why))?;
    }
    let seen = read.seen(&api).await?;
    let (data, next) = page(
        &seen.state.books.members,
        &window,
        |member| node.as_ref().is_none_or(|node| member.node.as_str() == node),
        |id, member| Incarnation::of(*id, member),
    )?;
    let revision = seen.state.revision.0;
    Ok(seen.answer(Page { data, next, revision }))
}

/// Reads one with its leases.
#[utoipa::path(get, path = "/incarnations/{id}", tag = "incarnations", params(("id" = String, Path)),
    responses((status = 200, body = IncarnationLeases)),
    security(("admin_key" = ["owner", "admin", "operator", "viewer"])))]
async fn get_incarnation(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    read: Read,
) -> Result<Answer<IncarnationLeases>, Fault> {
    let id: ids::Incarnation = path_id("id", &id)?;
    let seen = read.seen(&api).await?;
    Ok(seen.answer(with_leases(&seen.state, id)?))
}

/// Declares one dead that may be cut off: it gets nothing any more, and what it has out stays charged. Its node, if it lives, starts
/// another one.
#[utoipa::path(post, path = "/incarnations/{id}/fence", tag = "incarnations", params(("id" = String, Path)),
    request_body = Nothing, responses((status = 200, body = IncarnationLeases)),
    security(("admin_key" = ["owner", "operator"])))]
async fn fence(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<IncarnationLeases>, Fault> {
    changed(&api, &id, write.head, Command::FenceIncarnation).await
}

/// Frees what a fenced one has out, on your word that it spends nothing more than it reported: its machine is gone, and the providers'
/// own counts agree.
#[utoipa::path(post, path = "/incarnations/{id}/release", tag = "incarnations", params(("id" = String, Path)),
    request_body = Nothing, responses((status = 200, body = IncarnationLeases)),
    security(("admin_key" = ["owner", "operator"])))]
async fn release(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<IncarnationLeases>, Fault> {
    changed(&api, &id, write.head, Command::ReleaseIncarnation).await
}

async fn changed(
    api: &Api,
    id: &str,
    head: Head,
    command: fn(ids::Incarnation) -> Command,
) -> Result<Answer<IncarnationLeases>, Fault> {
    let id: ids::Incarnation = path_id("id", id)?;
    let receipt = api.write(head, command(id)).await?;
    let state = api.after(&receipt).await;
    Ok(Answer::of(receipt.revision, with_leases(&state, id)?))
}

fn with_leases(state: &State, id: ids::Incarnation) -> Result<IncarnationLeases, Fault> {
    let member = state.books.members.get(&id);
    let member = member.ok_or_else(|| Fault::not_found("incarnation", id))?;
    let accounts = member
        .leases
        .iter()
        .filter_map(|budget| Some((budget, state.books.accounts.get(budget)?)));
    let leases = accounts.flat_map(|(budget, account)| {
        let unit = account.terms.unit;
        let books = std::iter::once(&account.book).chain(&account.past);
        books.filter_map(move |book| {
            let lease = book.leases.get(&id)?;
            let amount = |amount: i64| Amount::of(unit, i128::from(amount));
            Some(Held {
                budget: Text(budget.clone()),
                starts_at: Text(book.span.start),
                granted: amount(lease.granted),
                spent: amount(lease.spent),
                returned: amount(lease.returned),
                outstanding: amount(lease.outstanding()),
            })
        })
    });
    Ok(IncarnationLeases {
        incarnation: Incarnation::of(id, member),
        leases: leases.take(LEASES_MAX).collect(),
    })
}

/// The routes of lives of nodes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_incarnations))
        .routes(routes!(get_incarnation))
        .routes(routes!(fence))
        .routes(routes!(release))
}
