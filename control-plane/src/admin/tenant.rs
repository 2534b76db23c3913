//! Organizations, teams, projects.

use std::sync::Arc;

use tollway_proto::admin::tenant::{Organization, OrganizationPut, Project, ProjectPut, Team, TeamPut};
use tollway_shared::ids::{OrganizationId, ProjectId, TeamId};
use tollway_shared::tenant as stored;
use utoipa_axum::router::OpenApiRouter;

use super::Api;
use super::noun::{an_id, replaced};

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

/// The routes of tenants.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(organizations::routes())
        .merge(teams::routes())
        .merge(projects::routes())
}
