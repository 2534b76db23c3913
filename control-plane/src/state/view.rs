//! State → what nodes see, at the grain of the admin API.

use std::sync::Arc;

use tollway_shared::budget::{Budget, BudgetView};
use tollway_shared::ids::{
    ApiKeyId, BudgetId, CredentialId, EndpointId, ModelId, NoticeId, OrganizationId, PriceId, ProjectId,
    ProviderId, TeamId,
};
use tollway_shared::snapshot::{Resource, ResourceKey, ResourceKind};
use tollway_shared::tenant::{ApiKey, Project};

use super::{State, tally};

/// A resource's identity.
pub(crate) fn key(kind: ResourceKind, id: Arc<str>) -> ResourceKey {
    ResourceKey { kind, id }
}

/// One resource as nodes see it, or `None` when it does not exist. Credentials are still sealed under the cluster's key.
pub fn resource(state: &State, key: &ResourceKey) -> Option<Resource> {
    let id = || key.id.clone();
    match key.kind {
        ResourceKind::Provider => state
            .providers
            .get(&ProviderId::trusted(id()))
            .map(|k| Resource::Provider(k.value.clone())),
        ResourceKind::Credential => state
            .credentials
            .get(&CredentialId::trusted(id()))
            .map(|k| Resource::Credential(k.value.clone())),
        ResourceKind::Model => state
            .models
            .get(&ModelId::trusted(id()))
            .map(|k| Resource::Model(k.value.clone())),
        ResourceKind::Endpoint => state
            .endpoints
            .get(&EndpointId::trusted(id()))
            .map(|k| Resource::Endpoint(k.value.clone())),
        ResourceKind::Price => state
            .prices
            .get(&PriceId::trusted(id()))
            .map(|k| Resource::Price(k.value.clone())),
        ResourceKind::Notice => state
            .notices
            .get(&NoticeId::trusted(id()))
            .map(|k| Resource::Notice(k.value.clone())),
        ResourceKind::Organization => state
            .organizations
            .get(&OrganizationId::trusted(id()))
            .map(|k| Resource::Organization(k.value.clone())),
        ResourceKind::Team => state
            .teams
            .get(&TeamId::trusted(id()))
            .map(|k| Resource::Team(k.value.clone())),
        ResourceKind::Project => state
            .projects
            .get(&ProjectId::trusted(id()))
            .map(|k| Resource::Project(project(&k.value))),
        ResourceKind::ApiKey => state
            .keys
            .get(&ApiKeyId::trusted(id()))
            .map(|k| Resource::ApiKey(api_key(&k.value))),
        ResourceKind::Budget => state
            .budgets
            .get(&BudgetId::trusted(id()))
            .map(|k| Resource::Budget(budget(state, &k.value))),
    }
}

/// Every resource, what is referred to before what refers to it.
pub fn all(state: &State) -> impl Iterator<Item = Resource> + '_ {
    let catalog = (state
        .providers
        .values()
        .map(|k| Resource::Provider(k.value.clone())))
    .chain(
        state
            .credentials
            .values()
            .map(|k| Resource::Credential(k.value.clone())),
    )
    .chain(state.models.values().map(|k| Resource::Model(k.value.clone())))
    .chain(
        state
            .endpoints
            .values()
            .map(|k| Resource::Endpoint(k.value.clone())),
    )
    .chain(state.prices.values().map(|k| Resource::Price(k.value.clone())))
    .chain(state.notices.values().map(|k| Resource::Notice(k.value.clone())));
    let tenants = (state
        .organizations
        .values()
        .map(|k| Resource::Organization(k.value.clone())))
    .chain(state.teams.values().map(|k| Resource::Team(k.value.clone())))
    .chain(
        state
            .projects
            .values()
            .map(|k| Resource::Project(project(&k.value))),
    )
    .chain(state.keys.values().map(|k| Resource::ApiKey(api_key(&k.value))))
    .chain(
        state
            .budgets
            .values()
            .map(|k| Resource::Budget(budget(state, &k.value))),
    );
    catalog.chain(tenants)
}

/// A project as nodes see it: labels are for reports.
fn project(project: &Project) -> Project {
    let mut shown = project.clone();
    shown.labels.clear();
    shown
}

/// The same of a key.
fn api_key(key: &ApiKey) -> ApiKey {
    let mut shown = key.clone();
    shown.labels.clear();
    shown
}

/// A budget as nodes see it. Raises and who made them are the control plane's: nodes spend what they are granted.
pub fn budget(state: &State, budget: &Budget) -> BudgetView {
    let mut shown = budget.clone();
    shown.terms.raises.clear();
    let tally = state.tallies.get(&budget.id);
    BudgetView {
        exhausted_window: tally.and_then(|tally| tally::exhausted(budget, tally)),
        budget: shown,
    }
}
