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
    super::account::broken(state)
}

/// The first dangling reference, in words. Walks everything: for tests, the simulation and start-up.
pub fn dangling(state: &State) -> Option<String> {
    for kept in state.endpoints.values() {
        let endpoint = &kept.value;
        if !state.providers.contains_key(&endpoint.provider) || !state.models.contains_key(&endpoint.model) {
            return Some(format!("endpoint `{}` refers to nothing", endpoint.id));
        }
    }
    if let Some(text) = budgets(state)
        .or_else(|| state.books.broken())
        .or_else(|| super::credit::broken(state))
    {
        return Some(text);
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

/// What does not hold between budgets, their tallies, their indexes and their leases.
fn budgets(state: &State) -> Option<String> {
    if state.budget_scopes != super::budget::scopes(state) {
        return Some("the budgets by scope are not the budgets".into());
    }
    if state.window_ends != super::budget::ends(state) {
        return Some("the ends of windows are not those of the tallies".into());
    }
    if state.raise_ends != super::budget::raise_ends(state) {
        return Some("the ends of raises are not those of the budgets".into());
    }
    if !state.tallies.keys().eq(state.budgets.keys()) {
        return Some("there is not one tally for each budget".into());
    }
    let leased = state.budgets.values().filter(|kept| kept.value.leased());
    if !leased.map(|kept| &kept.value.id).eq(state.books.accounts.keys()) {
        return Some("there is not one account for each leased budget".into());
    }
    let apart = state.books.accounts.iter().find(|(id, account)| {
        let tally = state.tallies.get(*id);
        tally.is_none_or(|tally| tally.current.span != account.book.span)
    });
    apart.map(|(id, _)| format!("the tally of budget `{id}` is in another window than its leases"))
}
