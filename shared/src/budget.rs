//! Budgets: so much per window at one level of a tenant path, perhaps for one model only; [`terms`] says what one can say.

pub mod terms;

use serde::{Deserialize, Serialize};

use self::terms::{Mode, Terms};
use crate::ids::{ApiKeyId, BudgetId, ModelId, OrganizationId, ProjectId, TeamId};
use crate::tenant::TenantPath;
use crate::time::UnixMillis;
use crate::window::Span;

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
    /// The scopes that cover a path, the widest first: the order in which the budgets of a path are asked for.
    ///
    /// - `keys`: the path's key and those that it came from by rotation: [`crate::tenant::line`].
    pub fn of_path(path: &TenantPath, keys: impl Iterator<Item = ApiKeyId>) -> impl Iterator<Item = Self> {
        let wide = [
            Some(Self::Organization(path.organization.clone())),
            path.team.clone().map(Self::Team),
            Some(Self::Project(path.project.clone())),
        ];
        wide.into_iter().flatten().chain(keys.map(Self::Key))
    }

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

/// A limit on what is spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Its id.
    pub id: BudgetId,
    /// What it limits.
    pub scope: BudgetScope,
    /// Counts only requests for this model; none = all.
    pub model: Option<ModelId>,
    /// How much, how often, and what happens then.
    pub terms: Terms,
}

impl Budget {
    /// Whether a request for this model counts, if its path does.
    pub fn counts(&self, model: &ModelId) -> bool {
        self.model.as_ref().is_none_or(|only| only.includes(model))
    }

    /// Whether a node needs a lease of it.
    pub fn leased(&self) -> bool {
        self.terms.mode != Mode::Soft
    }

    /// When the window around `now` ends, if ever.
    pub fn resets_at(&self, now: UnixMillis) -> Option<UnixMillis> {
        self.terms.cycle.span(now).ok()?.end
    }
}

/// A budget as nodes see it: the definition, and whether what the ledger has recorded has reached the limit.
///
/// Leases are what holds a budget. The record is a second, slower line that also stops a node that holds none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// The definition.
    pub budget: Budget,
    /// The newest window whose recorded spend reached the limit, raises included.
    pub exhausted_window: Option<Span>,
}

impl BudgetView {
    /// Whether requests must be refused at `now`; then also when the next window starts, if it ever does.
    pub fn stops(&self, now: UnixMillis) -> Option<Option<UnixMillis>> {
        let window = self.exhausted_window.filter(|window| window.covers(now))?;
        self.budget.leased().then_some(window.end)
    }
}
