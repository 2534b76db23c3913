//! What must hold after every entry. Debug builds assert it, the simulation checks it on every replica.

use super::State;

/// The first property that does not hold, in words.
///
/// Only properties that are cheap to check on every entry: nothing here walks usage or audit records.
pub fn broken(state: &State) -> Option<String> {
    if state.revision.0 > state.applied {
        return Some(format!(
            "revision {} is ahead of the applied index {}",
            state.revision, state.applied
        ));
    }
    if state.version > super::VERSION {
        return Some(format!(
            "version {} is newer than this binary's {}",
            state.version,
            super::VERSION
        ));
    }
    if state.usage_offsets.values().any(|offset| *offset < 0) {
        return Some("a usage offset is negative".into());
    }
    None
}

/// The first dangling reference, in words. Walks everything: for tests, the simulation and start-up.
pub fn dangling(state: &State) -> Option<String> {
    for kept in state.endpoints.values() {
        let endpoint = &kept.value;
        if !state.providers.contains_key(&endpoint.provider) || !state.models.contains_key(&endpoint.model) {
            return Some(format!("endpoint `{}` refers to nothing", endpoint.id));
        }
    }
    if state.budget_scopes != super::spend::index(state) {
        return Some("the budgets by scope are not the budgets".into());
    }
    for kept in state.prices.values() {
        if !state.endpoints.contains_key(&kept.value.endpoint) {
            return Some(format!("price `{}` refers to nothing", kept.value.id));
        }
    }
    for kept in state.projects.values() {
        if !state.organizations.contains_key(&kept.value.organization) {
            return Some(format!("project `{}` refers to nothing", kept.value.id));
        }
    }
    for kept in state.keys.values() {
        if !state.projects.contains_key(&kept.value.project) {
            return Some(format!("API key `{}` refers to nothing", kept.value.id));
        }
    }
    None
}
