//! Organizations, teams, projects, budgets.

use std::sync::Arc;

use tollway_proto::admin::tenant::{
    Budget, BudgetPut, Organization, OrganizationPut, Project, ProjectPut, Team, TeamPut,
};
use tollway_shared::budget;
use tollway_shared::ids::{BudgetId, OrganizationId, ProjectId, TeamId};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant as stored;
use tollway_shared::time::UnixMillis;
use utoipa_axum::router::OpenApiRouter;

use super::Api;
use super::noun::{an_id, replaced};
use crate::state::{Kept, State, spend};

replaced!(organizations: "organization", tag "organizations",
    one "/organizations/{id}", list "/organizations",
    records OrganizationId => stored::Organization, view Organization, put OrganizationPut,
    commands PutOrganization RemoveOrganization, filters []);

replaced!(teams: "team", tag "teams", one "/teams/{id}", list "/teams",
    records TeamId => stored::Team, view Team, put TeamPut, commands PutTeam RemoveTeam,
    filters [("organization", an_id::<OrganizationId>, |team| Some(team.organization.as_str()))]);

replaced!(projects: "project", tag "projects", one "/projects/{id}", list "/projects",
    records ProjectId => stored::Project, view Project, put ProjectPut, commands PutProject RemoveProject,
    filters [("organization", an_id::<OrganizationId>, |project| Some(project.organization.as_str())),
        ("team", an_id::<TeamId>, |project| project.team.as_ref().map(TeamId::as_str))]);

replaced!(budgets: "budget", tag "budgets", one "/budgets/{id}", list "/budgets",
    records BudgetId => budget::Budget, view Budget = with_spending, put BudgetPut, commands PutBudget RemoveBudget,
    filters [("level", a_level, |budget| Some(budget.scope.level())),
        ("of", anything, |budget| Some(budget.scope.id()))]);

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

/// A budget with what is spent of it in the period of `now`.
fn with_spending(state: &State, kept: &Kept<budget::Budget>, now: UnixMillis) -> Budget {
    let budget = &kept.value;
    let (start, _) = budget.period.window(now);
    let spent = spend::windows(state, &budget.id)
        .find(|(window, _)| *window == start)
        .map_or(NanoUsd::ZERO, |(_, spent)| spent);
    Budget::of(budget, spent, now, kept.revision)
}

/// The routes of tenants.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(organizations::routes())
        .merge(teams::routes())
        .merge(projects::routes())
        .merge(budgets::routes())
}
