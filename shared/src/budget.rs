//! Budgets: money per period at one level of a tenant path; [`terms`] says all that a budget can say.

pub mod terms;

use serde::{Deserialize, Serialize};

use crate::ids::{ApiKeyId, BudgetId, OrganizationId, ProjectId, TeamId};
use crate::money::NanoUsd;
use crate::tenant::TenantPath;
use crate::time::{Period, UnixMillis};

/// The level of the tenant path that a budget limits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetScope {
    /// Everything of an organization.
    Organization(OrganizationId),
    /// Everything of a team.
    Team(TeamId),
    /// Everything of a project.
    Project(ProjectId),
    /// One API key, and the keys that replace it by rotation.
    Key(ApiKeyId),
}

impl BudgetScope {
    /// Whether spend on this path counts against the scope. For a key that is the path's own key alone: which others it comes from
    /// by rotation ([`crate::tenant::line`]), a path does not say.
    pub fn covers(&self, path: &TenantPath) -> bool {
        match self {
            Self::Organization(id) => *id == path.organization,
            Self::Team(id) => Some(id) == path.team.as_ref(),
            Self::Project(id) => *id == path.project,
            Self::Key(id) => *id == path.key,
        }
    }

    /// `organization`, `team`, `project` or `key`.
    pub fn level(&self) -> &'static str {
        match self {
            Self::Organization(_) => "organization",
            Self::Team(_) => "team",
            Self::Project(_) => "project",
            Self::Key(_) => "key",
        }
    }

    /// The id of the limited thing.
    pub fn id(&self) -> &str {
        match self {
            Self::Organization(id) => id.as_str(),
            Self::Team(id) => id.as_str(),
            Self::Project(id) => id.as_str(),
            Self::Key(id) => id.as_str(),
        }
    }
}

/// What happens when the money is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetMode {
    /// Refuse until the period ends.
    Hard,
    /// Count and show.
    Soft,
}

/// A limit on money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Its id.
    pub id: BudgetId,
    /// What it limits.
    pub scope: BudgetScope,
    /// The most that may be spent in one period.
    pub limit: NanoUsd,
    /// When it starts again.
    pub period: Period,
    /// What happens at the limit.
    pub mode: BudgetMode,
}

/// A budget as nodes see it: the definition, and whether its recorded spend has reached the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// The definition.
    pub budget: Budget,
    /// The start of the window whose recorded spend reached the limit, if the current one did.
    pub exhausted_window: Option<UnixMillis>,
}

impl BudgetView {
    /// Whether requests must be refused at `now`; then also when the next window starts, if it ever does.
    pub fn stops(&self, now: UnixMillis) -> Option<Option<UnixMillis>> {
        let (start, end) = self.budget.period.window(now);
        (self.budget.mode == BudgetMode::Hard && self.exhausted_window == Some(start)).then_some(end)
    }
}
