//! Organizations, teams, projects, budgets.

use std::sync::Arc;

use imbl::OrdMap;
use tollway_proto::admin::tenant::{
    Budget, BudgetPut, Organization, OrganizationPut, Project, ProjectPut, Team, TeamPut,
};
use tollway_proto::command::Command;
use tollway_shared::budget;
use tollway_shared::ids::{BudgetId, OrganizationId, ProjectId, TeamId};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant as stored;
use tollway_shared::time::UnixMillis;
use utoipa_axum::router::OpenApiRouter;

use super::exchange::{Answer, Read, Write};
use super::fault::Fault;
use super::noun::{self, Filter, Noun, noun_routes};
use super::{Api, Nothing};
use crate::state::{Kept, State, spend};

struct Organizations;

impl Noun for Organizations {
    type Id = OrganizationId;
    type Stored = stored::Organization;
    type Put = OrganizationPut;
    type View = Organization;
    const NAME: &'static str = "organization";
    const FILTERS: &'static [Filter<Self::Stored>] = &[];

    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>> {
        &state.organizations
    }

    fn stored(put: OrganizationPut, id: Self::Id, _: &State, _: UnixMillis) -> Self::Stored {
        put.into_stored(id)
    }

    fn view(_: &State, kept: &Kept<Self::Stored>, _: UnixMillis) -> Organization {
        Organization::of(&kept.value, kept.revision)
    }

    fn put(stored: Self::Stored) -> Command {
        Command::PutOrganization(stored)
    }

    fn remove(id: Self::Id) -> Command {
        Command::RemoveOrganization(id)
    }
}

noun_routes!(Organizations in organizations, tag "organizations", one "/organizations/{id}", list "/organizations",
    roles ["owner", "admin"], put OrganizationPut, view Organization, filters []);

struct Teams;

impl Noun for Teams {
    type Id = TeamId;
    type Stored = stored::Team;
    type Put = TeamPut;
    type View = Team;
    const NAME: &'static str = "team";
    const FILTERS: &'static [Filter<Self::Stored>] =
        &[("organization", |team, value| team.organization.as_str() == value)];

    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>> {
        &state.teams
    }

    fn stored(put: TeamPut, id: Self::Id, _: &State, _: UnixMillis) -> Self::Stored {
        put.into_stored(id)
    }

    fn view(_: &State, kept: &Kept<Self::Stored>, _: UnixMillis) -> Team {
        Team::of(&kept.value, kept.revision)
    }

    fn put(stored: Self::Stored) -> Command {
        Command::PutTeam(stored)
    }

    fn remove(id: Self::Id) -> Command {
        Command::RemoveTeam(id)
    }
}

noun_routes!(Teams in teams, tag "teams", one "/teams/{id}", list "/teams", roles ["owner", "admin"],
    put TeamPut, view Team, filters ["organization"]);

struct Projects;

impl Noun for Projects {
    type Id = ProjectId;
    type Stored = stored::Project;
    type Put = ProjectPut;
    type View = Project;
    const NAME: &'static str = "project";
    const FILTERS: &'static [Filter<Self::Stored>] = &[
        ("organization", |project, value| {
            project.organization.as_str() == value
        }),
        ("team", |project, value| {
            project.team.as_ref().is_some_and(|team| team.as_str() == value)
        }),
    ];

    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>> {
        &state.projects
    }

    fn stored(put: ProjectPut, id: Self::Id, _: &State, _: UnixMillis) -> Self::Stored {
        put.into_stored(id)
    }

    fn view(_: &State, kept: &Kept<Self::Stored>, _: UnixMillis) -> Project {
        Project::of(&kept.value, kept.revision)
    }

    fn put(stored: Self::Stored) -> Command {
        Command::PutProject(stored)
    }

    fn remove(id: Self::Id) -> Command {
        Command::RemoveProject(id)
    }
}

noun_routes!(Projects in projects, tag "projects", one "/projects/{id}", list "/projects", roles ["owner", "admin"],
    put ProjectPut, view Project, filters ["organization", "team"]);

struct Budgets;

impl Noun for Budgets {
    type Id = BudgetId;
    type Stored = budget::Budget;
    type Put = BudgetPut;
    type View = Budget;
    const NAME: &'static str = "budget";
    const FILTERS: &'static [Filter<Self::Stored>] = &[
        ("level", |budget, value| budget.scope.level() == value),
        ("of", |budget, value| budget.scope.id() == value),
    ];

    fn records(state: &State) -> &OrdMap<Self::Id, Kept<Self::Stored>> {
        &state.budgets
    }

    fn stored(put: BudgetPut, id: Self::Id, _: &State, _: UnixMillis) -> Self::Stored {
        put.into_stored(id)
    }

    fn view(state: &State, kept: &Kept<Self::Stored>, now: UnixMillis) -> Budget {
        let budget = &kept.value;
        let (start, _) = budget.period.window(now);
        let spent = spend::windows(state, &budget.id)
            .find(|(window, _)| *window == start)
            .map_or(NanoUsd::ZERO, |(_, spent)| spent);
        Budget::of(budget, spent, now, kept.revision)
    }

    fn put(stored: Self::Stored) -> Command {
        Command::PutBudget(stored)
    }

    fn remove(id: Self::Id) -> Command {
        Command::RemoveBudget(id)
    }
}

noun_routes!(Budgets in budgets, tag "budgets", one "/budgets/{id}", list "/budgets", roles ["owner", "admin"],
    put BudgetPut, view Budget, filters ["level", "of"]);

/// The routes of tenants.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(organizations::routes())
        .merge(teams::routes())
        .merge(projects::routes())
        .merge(budgets::routes())
}
