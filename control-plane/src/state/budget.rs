//! Commands on budgets: what they say, their raises, their windows.
//!
//! Windows come in with the entry: the leader works them out ([`stamp`], [`due`]), because replicas of two releases may have two
//! editions of the rules of time zones.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdSet;
use tollway_proto::command::{Command, PutBudget, Refusal, RefusalCode};
use tollway_proto::lease::LeaseCall;
use tollway_shared::budget::terms::{Raise, Terms, TermsFault};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{BudgetId, ModelId, OrganizationId, Revision};
use tollway_shared::lease::grantor::Roll;
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

use super::held::Held;
use super::tally::{self, Recorded, Tally};
use super::view::key;
use super::{Kept, State, Step, credit, must_exist, not_found, refuse, tenant};

/// Most windows that one entry begins. At midnight all daily budgets are due at once.
pub const ROLLS_MAX: usize = 1_000;

/// Which budgets limit a scope. Made from the budgets; not stored.
pub type ScopeIndex = OrdSet<(BudgetScope, BudgetId)>;
/// When current windows end, or raises. Made from the tallies, or the budgets; not stored.
pub type EndIndex = OrdSet<(UnixMillis, BudgetId)>;

/// The index of all budgets by what they limit.
pub(super) fn scopes(state: &State) -> ScopeIndex {
    let budgets = state.budgets.values().map(|kept| &kept.value);
    budgets
        .map(|budget| (budget.scope.clone(), budget.id.clone()))
        .collect()
}

/// The index of all windows that end.
pub(super) fn ends(state: &State) -> EndIndex {
    let windows = state.tallies.iter();
    windows
        .filter_map(|(id, tally)| Some((tally.current.span.end?, id.clone())))
        .collect()
}

/// The index of all raises by their end.
pub(super) fn raise_ends(state: &State) -> EndIndex {
    let budgets = state.budgets.values().map(|kept| &kept.value);
    budgets.flat_map(ends_of_raises).collect()
}

fn ends_of_raises(budget: &Budget) -> impl Iterator<Item = (UnixMillis, BudgetId)> {
    let raises = budget.terms.raises.iter();
    raises.map(|raise| (raise.until, budget.id.clone()))
}

/// For the leader: whether a raise is over, and still counts because nothing has been written since.
pub fn has_expired_raise(state: &State, at: UnixMillis) -> bool {
    let first = state.raise_ends.get_min();
    first.is_some_and(|(end, _)| *end <= at.max(state.now))
}

/// With every entry: takes back what is granted on raises that are over.
pub(super) fn expire_raises(state: &mut State, step: &mut Step<'_>) {
    while let Some((end, id)) = state.raise_ends.get_min().cloned() {
        if end > state.now {
            break;
        }
        let Some(mut kept) = state.budgets.get(&id).cloned() else {
            break; // each is of a budget
        };
        kept.value.terms.raises = in_force(&kept.value.terms, state.now);
        tally::with(state, step, &id, |state, step| {
            let budget = kept.value.clone();
            index_raises(state, &budget);
            state.budgets.insert(id.clone(), kept);
            lease(state, step, &budget);
        });
    }
}

/// Before a budget takes the place of what is kept.
fn index_raises(state: &mut State, budget: &Budget) {
    unindex_raises(state, &budget.id);
    state.raise_ends.extend(ends_of_raises(budget));
}

fn unindex_raises(state: &mut State, id: &BudgetId) {
    let before: Vec<_> = state
        .budgets
        .get(id)
        .map(|kept| ends_of_raises(&kept.value).collect())
        .unwrap_or_default();
    for end in before {
        state.raise_ends.remove(&end);
    }
}

/// The budgets that count a request on this path for this model: a look-up per level, however many budgets there are.
pub(super) fn covering(state: &State, path: &TenantPath, model: &ModelId) -> Vec<Budget> {
    let mut found = Vec::new();
    if state.budget_scopes.is_empty() {
        return found;
    }
    for scope in BudgetScope::of_path(path, tenant::line(state, &path.key)) {
        let of_scope = state
            .budget_scopes
            .range((scope.clone(), BudgetId::trusted(""))..);
        for (_, id) in of_scope.take_while(|(found, _)| *found == scope) {
            let budget = state.budgets.get(id).map(|kept| &kept.value);
            found.extend(budget.filter(|budget| budget.counts(model)).cloned());
        }
    }
    found
}

/// Whether spend on a path counts against a scope. A key's scope covers the keys that came from it by rotation, too.
pub(super) fn covers(state: &State, scope: &BudgetScope, path: &TenantPath) -> bool {
    match scope {
        BudgetScope::Key(id) => tenant::line(state, &path.key).any(|key| key == *id),
        scope => scope.covers(path),
    }
}

/// For the leader: puts in what only it may work out.
pub fn stamp(state: &State, command: &mut Command, at: UnixMillis) {
    if let Command::PutBudget(put) = command {
        // One that cannot be worked out is refused when it is applied.
        put.window = put.budget.terms.cycle.span(at.max(state.now)).ok();
    }
}

/// For the leader, before it proposes a command: windows that have to begin first. Those of the budgets that the command counts for, if any
/// is over, and in the same entry as many others as fit; of a command that begins windows itself, whatever is over.
pub fn due(state: &State, command: &Command, at: UnixMillis) -> Vec<Roll> {
    let now = at.max(state.now);
    let over = |end: &UnixMillis| *end <= now;
    if !state.window_ends.get_min().is_some_and(|(end, _)| over(end)) {
        return Vec::new();
    }
    let ended = state.window_ends.iter().take_while(|(end, _)| over(end));
    let mut ids: BTreeSet<BudgetId> = named(state, command);
    ids.retain(|id| {
        let window = state.tallies.get(id).map(|tally| tally.current.span);
        window.is_some_and(|window| window.over(now))
    });
    if ids.is_empty() && !matches!(command, Command::RollBudgets(_)) {
        return Vec::new(); // what nobody waits for begins with the leader's next look
    }
    let room = ROLLS_MAX.saturating_sub(ids.len());
    ids.extend(ended.map(|(_, id)| id.clone()).take(room));
    // A zone that this leader does not know keeps its budget's window open: nothing is freed.
    let next = |budget: BudgetId| {
        let ended = state.tallies.get(&budget)?.current.span.end?;
        let span = state.budgets.get(&budget)?.value.terms.cycle.span(now).ok()?;
        let span = Span {
            start: span.start.max(ended), // windows tile, also where the rules of a zone have changed since
            end: span.end,
        };
        Some(Roll { budget, span })
    };
    let ids = ids.into_iter().take(ROLLS_MAX);
    ids.filter_map(next).collect()
}

/// The budgets that a command counts for.
fn named(state: &State, command: &Command) -> BTreeSet<BudgetId> {
    match command {
        Command::Lease {
            call: LeaseCall::Ask(ask),
            ..
        } => ask.wants.iter().map(|want| want.budget.clone()).collect(),
        Command::RecordSpend(stretch) => {
            let cells = stretch.sums.iter().map(|spent| &spent.cell);
            let budgets = cells.flat_map(|cell| covering(state, &cell.path, &cell.model));
            budgets.map(|budget| budget.id).collect()
        }
        Command::PutBudget(put) => BTreeSet::from([put.budget.id.clone()]),
        _ => BTreeSet::new(),
    }
}

/// A new budget, or one that counts something else now, starts with what its window has recorded already, as far back as sums are
/// kept. One that differs in its limit alone keeps what it has counted, and what is leased of it.
pub(super) fn put(state: &mut State, step: &mut Step<'_>, put: &PutBudget) -> Result<(), Refusal> {
    credit::must_be_theirs(&put.budget.id)?;
    let there = match &put.budget.scope {
        BudgetScope::Organization(id) => state.organizations.contains_key(id),
        BudgetScope::Team(id) => state.teams.contains_key(id),
        BudgetScope::Project(id) => state.projects.contains_key(id),
        BudgetScope::Key(id) => state.keys.contains_key(id),
    };
    must_exist(there, "scope", put.budget.scope.level(), put.budget.scope.id())?;
    if let Some(model) = &put.budget.model {
        must_exist(state.models.contains_key(model), "model", "model", model)?;
    }
    let before = state.budgets.get(&put.budget.id).map(|kept| kept.value.clone());
    let unit = before.as_ref().map(|old| old.terms.unit);
    let unit = unit.or_else(|| state.books.former_unit(&put.budget.id, state.now));
    // Nodes know a slice by the id of its budget: one in tokens would be spent as money.
    if unit.is_some_and(|unit| unit != put.budget.terms.unit) {
        let detail = "of a budget does not change, as nodes may have some of it in the old one; make another budget with another id and remove this one";
        return Err(refuse(RefusalCode::Conflict, "unit", detail));
    }
    let same_count = |old: &Budget| old.scope == put.budget.scope && old.model == put.budget.model;
    let same_window = |old: &Budget| old.terms.cycle == put.budget.terms.cycle;
    let kept = before
        .as_ref()
        .is_some_and(|old| same_count(old) && same_window(old));
    let mut budget = put.budget.clone();
    budget.terms.raises = before
        .as_ref()
        .map(|old| in_force(&old.terms, state.now))
        .unwrap_or_default();
    check(&budget.terms)?;
    let Some(window) = put.window else {
        let detail = "names a calendar in which now is in no window";
        return Err(refuse(RefusalCode::Invalid, "time_zone", detail));
    };
    let same_leases = kept && before.as_ref().is_some_and(|old| old.leased() == budget.leased());
    if let Some(old) = before.filter(|_| !same_leases) {
        remove_book(state, step.revision, &old);
    }
    store(state, step, &budget)?;
    let held = Held::begun(
        step.revision,
        state.books.former_held(&budget.id, state.now),
        budget.leased(),
    );
    if !kept {
        let of = organization_of(state, &budget.scope).cloned();
        let amount = tally::so_far(state, &budget, window, of.as_ref());
        set_tally(state, &budget.id, Some(Tally::open(window, amount, held)));
    } else if !same_leases && let Some(tally) = state.tallies.get_mut(&budget.id) {
        Arc::make_mut(tally).held = held;
    }
    lease(state, step, &budget);
    step.changed.push(key(ResourceKind::Budget, budget.id.text()));
    Ok(())
}

/// Keeps the record and its place in the index.
fn store(state: &mut State, step: &mut Step<'_>, budget: &Budget) -> Result<(), Refusal> {
    let before = state.budgets.get(&budget.id).map(|kept| kept.value.scope.clone());
    index_raises(state, budget);
    step.put(&mut state.budgets, budget.id.clone(), budget.clone())?;
    if let Some(scope) = before {
        state.budget_scopes.remove(&(scope, budget.id.clone()));
    }
    state
        .budget_scopes
        .insert((budget.scope.clone(), budget.id.clone()));
    Ok(())
}

/// Takes a budget from the grantor, who remembers what is out of it, who held on it, and what the ledger has not counted yet.
fn remove_book(state: &mut State, at: Revision, budget: &Budget) {
    if let Some(tally) = state.tallies.get(&budget.id) {
        let Recorded { span, amount } = tally.current;
        let held = tally.held.ended(at, budget, span);
        state.books.remove(&budget.id, amount, held, state.now);
    }
}

/// Tells the grantor what a budget says now.
fn lease(state: &mut State, step: &mut Step<'_>, budget: &Budget) {
    let Some(current) = state.tallies.get(&budget.id).map(|tally| tally.current) else {
        return;
    };
    let effects = state
        .books
        .put(&budget.id, &budget.terms, current.span, current.amount, state.now);
    step.effects.extend(effects);
}

fn set_tally(state: &mut State, id: &BudgetId, tally: Option<Tally>) {
    let end = tally.as_ref().and_then(|tally| tally.current.span.end);
    let before = match tally {
        Some(tally) => state.tallies.insert(id.clone(), Arc::new(tally)),
        None => state.tallies.remove(id),
    };
    if let Some(end) = before.and_then(|tally| tally.current.span.end) {
        state.window_ends.remove(&(end, id.clone()));
    }
    if let Some(end) = end {
        state.window_ends.insert((end, id.clone()));
    }
}

/// Keeps a budget of the cluster's own.
///
/// - `counted`: what a new one has counted.
pub(super) fn put_kept(state: &mut State, step: &mut Step<'_>, budget: &Budget, window: Span, counted: i64) {
    let kept = Kept {
        value: budget.clone(),
        revision: step.revision,
    };
    state.budgets.insert(budget.id.clone(), kept);
    state
        .budget_scopes
        .insert((budget.scope.clone(), budget.id.clone()));
    if !state.tallies.contains_key(&budget.id) {
        let held = state.books.former_held(&budget.id, state.now);
        let held = Held::begun(step.revision, held, true);
        set_tally(state, &budget.id, Some(Tally::open(window, counted, held)));
    }
    lease(state, step, budget);
    step.changed.push(key(ResourceKind::Budget, budget.id.text()));
}

/// Removes it, if it is there.
pub(super) fn remove_kept(state: &mut State, step: &mut Step<'_>, id: &BudgetId) {
    if let Some(kept) = state.budgets.remove(id) {
        forget(state, step, &kept.value);
    }
}

pub(super) fn remove(state: &mut State, step: &mut Step<'_>, id: &BudgetId) -> Result<(), Refusal> {
    credit::must_be_theirs(id)?;
    unindex_raises(state, id);
    let budget = step.take(&mut state.budgets, id, "budget")?;
    forget(state, step, &budget);
    Ok(())
}

/// What follows from a budget goes with it.
fn forget(state: &mut State, step: &mut Step<'_>, budget: &Budget) {
    let id = &budget.id;
    state.budget_scopes.remove(&(budget.scope.clone(), id.clone()));
    remove_book(state, step.revision, budget);
    set_tally(state, id, None);
    step.changed.push(key(ResourceKind::Budget, id.text()));
}

/// Raises a limit for a while. Expired raises go.
pub(super) fn raise(
    state: &mut State,
    step: &mut Step<'_>,
    id: &BudgetId,
    raise: &Raise,
) -> Result<(), Refusal> {
    if raise.until <= state.now {
        return Err(refuse(RefusalCode::Invalid, "until", "must be in the future"));
    }
    let now = state.now;
    with_raises(state, step, id, |terms| {
        let mut raises = in_force(terms, now);
        raises.push(raise.clone());
        raises
    })
}

/// Takes all raises back.
pub(super) fn clear_raises(state: &mut State, step: &mut Step<'_>, id: &BudgetId) -> Result<(), Refusal> {
    with_raises(state, step, id, |_| Vec::new())
}

fn with_raises(
    state: &mut State,
    step: &mut Step<'_>,
    id: &BudgetId,
    raises: impl FnOnce(&Terms) -> Vec<Raise>,
) -> Result<(), Refusal> {
    credit::must_be_theirs(id)?;
    let Some(Kept { value, .. }) = state.budgets.get(id) else {
        return Err(not_found("budget", id));
    };
    let mut budget = value.clone();
    budget.terms.raises = raises(&budget.terms);
    check(&budget.terms)?;
    tally::with(state, step, id, |state, step| {
        store(state, step, &budget)?;
        lease(state, step, &budget);
        Ok(())
    })
}

fn in_force(terms: &Terms, now: UnixMillis) -> Vec<Raise> {
    let raises = terms.raises.iter();
    raises.filter(|raise| now < raise.until).cloned().collect()
}

fn check(terms: &Terms) -> Result<(), Refusal> {
    let Err(fault) = terms.check_numbers() else {
        return Ok(());
    };
    let field = match fault {
        TermsFault::Limit => "limit",
        TermsFault::Cycle(_) => "period",
        TermsFault::PerRequest | TermsFault::PerRequestSoft => "per_request_max",
        TermsFault::Thresholds => "thresholds_percent",
        TermsFault::Raises => "raises",
        TermsFault::Standby => "standby_ppm",
    };
    let text = fault.to_string();
    let detail = text.strip_prefix(&format!("`{field}` ")).unwrap_or(&text);
    Err(refuse(RefusalCode::Invalid, field, detail))
}

/// Begins windows. One that has begun already, or is of a budget that is gone, changes nothing.
pub(super) fn roll(state: &mut State, step: &mut Step<'_>, rolls: &[Roll]) {
    for roll in rolls {
        let Some(tally) = state.tallies.get(&roll.budget) else {
            continue;
        };
        if !tally.current.span.over(roll.span.start) {
            continue;
        }
        let mut next = Tally::clone(tally);
        next.roll(roll.span);
        tally::with(state, step, &roll.budget, |state, _| {
            set_tally(state, &roll.budget, Some(next));
            state.books.roll(roll, state.now);
        });
    }
}

/// Where a scope belongs, as far as it still exists.
fn organization_of<'a>(state: &'a State, scope: &'a BudgetScope) -> Option<&'a OrganizationId> {
    let project = match scope {
        BudgetScope::Organization(id) => return Some(id),
        BudgetScope::Team(id) => return state.teams.get(id).map(|kept| &kept.value.organization),
        BudgetScope::Project(id) => id,
        BudgetScope::Key(id) => &state.keys.get(id)?.value.project,
    };
    state.projects.get(project).map(|kept| &kept.value.organization)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
