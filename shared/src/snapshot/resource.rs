//! What a snapshot is made of: resources, each with a kind and an id.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::budget::BudgetView;
use crate::catalog::{Credential, Endpoint, Model, PriceVersion, Provider};
use crate::notice::Notice;
use crate::tenant::{ApiKey, Organization, Project, Team};

/// The kind of a resource. The order is the order in which a full snapshot is sent: what is referred to comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// [`Provider`].
    Provider,
    /// [`Credential`].
    Credential,
    /// [`Model`].
    Model,
    /// [`Endpoint`].
    Endpoint,
    /// [`PriceVersion`].
    Price,
    /// [`Notice`].
    Notice,
    /// [`Organization`].
    Organization,
    /// [`Team`].
    Team,
    /// [`Project`].
    Project,
    /// [`ApiKey`].
    ApiKey,
    /// [`BudgetView`].
    Budget,
}

impl ResourceKind {
    /// Every kind, in order.
    pub const ALL: [Self; 11] = [
        Self::Provider,
        Self::Credential,
        Self::Model,
        Self::Endpoint,
        Self::Price,
        Self::Notice,
        Self::Organization,
        Self::Team,
        Self::Project,
        Self::ApiKey,
        Self::Budget,
    ];

    /// Reads the name that [`ResourceKind::as_str`] gives.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The name used in metrics, refusals and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Credential => "credential",
            Self::Model => "model",
            Self::Endpoint => "endpoint",
            Self::Price => "price",
            Self::Notice => "notice",
            Self::Organization => "organization",
            Self::Team => "team",
            Self::Project => "project",
            Self::ApiKey => "api_key",
            Self::Budget => "budget",
        }
    }
}

/// A resource's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// What it is.
    pub kind: ResourceKind,
    /// Its id within the kind.
    pub id: Arc<str>,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind.as_str(), self.id)
    }
}

/// One object of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// A provider.
    Provider(Provider),
    /// A provider's secret, sealed for the node's region.
    Credential(Credential),
    /// A model.
    Model(Model),
    /// A model at a provider.
    Endpoint(Endpoint),
    /// Prices of an endpoint.
    Price(PriceVersion),
    /// A retirement notice.
    Notice(Notice),
    /// An organization.
    Organization(Organization),
    /// A team.
    Team(Team),
    /// A project.
    Project(Project),
    /// An API key.
    ApiKey(ApiKey),
    /// A budget and whether it is spent.
    Budget(BudgetView),
}

impl Resource {
    /// Its identity.
    pub fn key(&self) -> ResourceKey {
        let (kind, id) = match self {
            Self::Provider(r) => (ResourceKind::Provider, r.id.text()),
            Self::Credential(r) => (ResourceKind::Credential, r.key().text()),
            Self::Model(r) => (ResourceKind::Model, r.id.text()),
            Self::Endpoint(r) => (ResourceKind::Endpoint, r.id.text()),
            Self::Price(r) => (ResourceKind::Price, r.id.text()),
            Self::Notice(r) => (ResourceKind::Notice, r.id.text()),
            Self::Organization(r) => (ResourceKind::Organization, r.id.text()),
            Self::Team(r) => (ResourceKind::Team, r.id.text()),
            Self::Project(r) => (ResourceKind::Project, r.id.text()),
            Self::ApiKey(r) => (ResourceKind::ApiKey, r.id.text()),
            Self::Budget(r) => (ResourceKind::Budget, r.budget.id.text()),
        };
        ResourceKey { kind, id }
    }
}
