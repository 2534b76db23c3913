//! The cell that an event is counted in, named by borrowed text: one look-up per event copies nothing. Pure.

use std::borrow::Cow;

use tollway_proto::command::UsageCell;
use tollway_shared::ids::{ApiKeyId, ModelId, OrganizationId, ProjectId, ProviderId, TeamId};
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::Day;

use super::event::Event;

/// A [`UsageCell`] as an event names it, in the same order. Most events fall into a cell that is there: only the cells' names are
/// copied.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CellOf<'a> {
    day: Day,
    organization: Cow<'a, str>,
    team: Option<Cow<'a, str>>,
    project: Cow<'a, str>,
    key: Cow<'a, str>,
    model: Cow<'a, str>,
    provider: Cow<'a, str>,
}

impl<'a> CellOf<'a> {
    /// The cell of an event.
    pub(super) fn of(event: Event<'a>) -> Self {
        let tenant = event.tenant;
        Self {
            day: event.started_at.0.day(),
            organization: tenant.organization.0,
            team: tenant.team.map(|team| team.0),
            project: tenant.project.0,
            key: tenant.key.0,
            model: event.model.0,
            provider: event.provider.0,
        }
    }

    /// The same, on its own.
    pub(super) fn owned(self) -> UsageCell {
        UsageCell {
            day: self.day,
            path: TenantPath {
                organization: OrganizationId::trusted(self.organization.into_owned()),
                team: self.team.map(|team| TeamId::trusted(team.into_owned())),
                project: ProjectId::trusted(self.project.into_owned()),
                key: ApiKeyId::trusted(self.key.into_owned()),
            },
            model: ModelId::trusted(self.model.into_owned()),
            provider: ProviderId::trusted(self.provider.into_owned()),
        }
    }
}
