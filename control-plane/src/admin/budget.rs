//! Budgets and their raises.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use tollway_proto::admin::budget::{Budget, BudgetPut, FieldFault, RaiseCreate, Standing};
use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::command::{Command, Receipt};
use tollway_shared::budget;
use tollway_shared::ids::{AdminId, BudgetId};
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::exchange::{Answer, Write, path_id};
use super::fault::Fault;
use super::noun::replaced;
use super::{Api, Nothing};
use crate::clock;
use crate::state::{Kept, State};

replaced!(budgets: "budget", tag "budgets", one "/budgets/{id}", list "/budgets",
    records BudgetId => budget::Budget, view Budget = with_standing, put BudgetPut = sound, commands PutBudget RemoveBudget,
    filters [("level", a_level, |budget| Some(budget.scope.level())),
        ("of", anything, |budget| Some(budget.scope.id())),
        ("model", anything, |budget| budget.model.as_ref().map(|model| model.as_str()))]);

fn a_level(text: &str) -> Result<(), String> {
    match text {
        "organization" | "team" | "project" | "key" => Ok(()),
        other => Err(format!(
            "`{other}` is none of `organization`, `team`, `project`, `key`"
        )),
    }
}

/// Which id is meant depends on the level.
fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

fn wrong(fault: FieldFault) -> Fault {
    Fault::at(
        ProblemCode::Invalid,
        fault.field,
        format!("`{}` {}", fault.field, fault.why),
    )
}

fn sound(put: BudgetPut, id: BudgetId, _: &State, _: UnixMillis) -> Result<budget::Budget, Fault> {
    put.into_stored(id).map_err(wrong)
}

/// A budget with what is spent of it in its current window.
fn with_standing(state: &State, kept: &Kept<budget::Budget>, now: UnixMillis) -> Budget {
    // What was just put has its raises in the state.
    let id = &kept.value.id;
    let stored = state
        .budgets
        .get(id)
        .filter(|stored| stored.revision == kept.revision)
        .unwrap_or(kept);
    let current = state.tallies.get(id).map(|tally| tally.current);
    let standing = Standing {
        book: state.books.accounts.get(id).map(|account| &account.book),
        window: current.map_or(Span::LIFETIME, |current| current.span),
        recorded: current.map_or(0, |current| current.amount),
    };
    Budget::of(&stored.value, standing, now, kept.revision)
}

/// Raises a budget's limit until an instant. Whoever asks is noted as its author.
#[utoipa::path(post, path = "/budgets/{id}/raises", tag = "budgets", params(("id" = String, Path)),
    request_body = RaiseCreate, responses((status = 200, body = Budget)),
    security(("admin_key" = ["owner", "admin"])))]
async fn raise(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<RaiseCreate>,
) -> Result<Answer<Budget>, Fault> {
    let budget: BudgetId = path_id("id", &id)?;
    let author = AdminId::trusted(write.head.actor.as_str());
    let state = api.cluster.state();
    let terms = &stored(&state, &budget)?.value.terms;
    let raise = write
        .body
        .into_stored(terms, author, clock::now())
        .map_err(wrong)?;
    let command = Command::RaiseBudget {
        budget: budget.clone(),
        raise,
    };
    let receipt = api.write(write.head, command).await?;
    shown(&api, &budget, &receipt).await
}

/// Takes all raises of a budget back.
#[utoipa::path(delete, path = "/budgets/{id}/raises", tag = "budgets", params(("id" = String, Path)),
    responses((status = 200, body = Budget)), security(("admin_key" = ["owner", "admin"])))]
async fn clear_raises(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    write: Write<Nothing>,
) -> Result<Answer<Budget>, Fault> {
    let budget: BudgetId = path_id("id", &id)?;
    let receipt = api
        .write(write.head, Command::ClearRaises(budget.clone()))
        .await?;
    shown(&api, &budget, &receipt).await
}

async fn shown(api: &Api, id: &BudgetId, receipt: &Receipt) -> Result<Answer<Budget>, Fault> {
    let state = api.after(receipt).await;
    let body = with_standing(&state, stored(&state, id)?, clock::now());
    Ok(Answer::of(receipt.revision, body))
}

fn stored<'a>(state: &'a State, id: &BudgetId) -> Result<&'a Kept<budget::Budget>, Fault> {
    state
        .budgets
        .get(id)
        .ok_or_else(|| Fault::not_found("budget", id))
}

/// The routes of budgets.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(budgets::routes())
        .routes(routes!(raise, clear_raises))
}
