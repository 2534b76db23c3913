//! Commands on budgets, and usage folded from the usage log.

use imbl::OrdSet;
use tollway_proto::command::{RecordSpend, Refusal, RefusalCode, UsageCell, UsageSums};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{ApiKeyId, BudgetId, OrganizationId};
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::tenant::{self, TenantPath};
use tollway_shared::time::{Day, UnixMillis};

use super::usage::{self, WriterMark};
use super::view::key;
use super::{State, Step, must_exist, refuse};

/// Which budgets limit a scope. Made from the budgets; not stored.
pub type ScopeIndex = OrdSet<(BudgetScope, BudgetId)>;

/// The index of all budgets.
pub(super) fn index(state: &State) -> ScopeIndex {
    let budgets = state.budgets.values().map(|kept| &kept.value);
    budgets
        .map(|budget| (budget.scope.clone(), budget.id.clone()))
        .collect()
}

/// A new budget, or one with another scope or period, counts what its current window has recorded already: as far back as sums
/// are kept. One that differs in its limit alone keeps what it has counted.
pub(super) fn put_budget(state: &mut State, step: &mut Step<'_>, budget: &Budget) -> Result<(), Refusal> {
    let there = match &budget.scope {
        BudgetScope::Organization(id) => state.organizations.contains_key(id),
        BudgetScope::Team(id) => state.teams.contains_key(id),
        BudgetScope::Project(id) => state.projects.contains_key(id),
        BudgetScope::Key(id) => state.keys.contains_key(id),
    };
    must_exist(there, "scope", budget.scope.level(), budget.scope.id())?;
    if budget.limit <= NanoUsd::ZERO {
        return Err(refuse(RefusalCode::Invalid, "limit", "must be above zero"));
    }
    let before = state.budgets.get(&budget.id).map(|kept| kept.value.clone());
    step.put(&mut state.budgets, budget.id.clone(), budget.clone())?;
    if let Some(before) = &before {
        state
            .budget_scopes
            .remove(&(before.scope.clone(), before.id.clone()));
    }
    state
        .budget_scopes
        .insert((budget.scope.clone(), budget.id.clone()));
    if before.is_none_or(|before| before.scope != budget.scope || before.period != budget.period) {
        forget_spend(state, &budget.id);
        let (start, spent) = spent_so_far(state, budget);
        state.budget_spend.insert((budget.id.clone(), start), spent);
    }
    step.changed.push(key(ResourceKind::Budget, budget.id.text()));
    Ok(())
}

pub(super) fn remove_budget(state: &mut State, step: &mut Step<'_>, id: &BudgetId) -> Result<(), Refusal> {
    let budget = step.take(&mut state.budgets, id, "budget")?;
    state.budget_scopes.remove(&(budget.scope, budget.id));
    forget_spend(state, id);
    step.changed.push(key(ResourceKind::Budget, id.text()));
    Ok(())
}

/// The start of a budget's window, and the spend recorded in it.
fn spent_so_far(state: &State, budget: &Budget) -> (UnixMillis, NanoUsd) {
    let (start, end) = budget.period.window(state.now);
    let last = end.map_or(Day(i32::MAX), |end| end.plus_ms(-1).day());
    let organization = organization_of(state, &budget.scope);
    let mut spent = NanoUsd::ZERO;
    for (cell, sums) in usage::cells(state, start.day(), last, organization) {
        if covers(state, &budget.scope, &cell.path) {
            spent = sum(spent, sums.cost);
        }
    }
    (start, spent)
}

/// Whether spend on a path counts against a scope. A key's scope covers the keys that came from it by rotation, too.
fn covers(state: &State, scope: &BudgetScope, path: &TenantPath) -> bool {
    match scope {
        BudgetScope::Key(id) => line(state, &path.key).any(|key| key == *id),
        scope => scope.covers(path),
    }
}

/// A key and those that it came from by rotation, the newest first.
pub(super) fn line(state: &State, key: &ApiKeyId) -> impl Iterator<Item = ApiKeyId> {
    tenant::line(key.clone(), |key| state.keys.get(key)?.value.rotated_from.clone())
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

/// Offset and sums change together or not at all: a stretch that was counted before has another `from` and is refused.
pub(super) fn record(state: &mut State, step: &mut Step<'_>, stretch: &RecordSpend) -> Result<(), Refusal> {
    let reached = state.usage_offsets.get(&stretch.partition).copied().unwrap_or(0);
    if stretch.from != reached || stretch.to < stretch.from {
        let detail = format!(
            "is {}, but partition {} has been counted up to {reached}",
            stretch.from, stretch.partition
        );
        return Err(refuse(RefusalCode::Conflict, "from", detail));
    }
    for (cell, sums) in &stretch.sums {
        let entry = state.usage.entry(cell.clone()).or_default();
        *entry = added(entry, sums);
        charge_budgets(state, step, cell, sums.cost);
    }
    let at = state.now;
    for (writer, sequence) in &stretch.writers {
        let mark = state
            .usage_writers
            .entry((stretch.partition, *writer))
            .or_default();
        *mark = WriterMark {
            sequence: mark.sequence.max(*sequence),
            at,
        };
    }
    state.usage_offsets.insert(stretch.partition, stretch.to);
    usage::forget_old(state, step);
    Ok(())
}

/// Charges every budget on the cell's tenant path: a look-up per level, however many budgets there are.
fn charge_budgets(state: &mut State, step: &mut Step<'_>, cell: &UsageCell, cost: NanoUsd) {
    if state.budget_scopes.is_empty() {
        return;
    }
    // Persistent, so these are two pointers.
    let (index, budgets) = (state.budget_scopes.clone(), state.budgets.clone());
    for scope in scopes(state, &cell.path) {
        let of_scope = index.range((scope.clone(), BudgetId::trusted(""))..);
        for (_, id) in of_scope.take_while(|(found, _)| *found == scope) {
            if let Some(kept) = budgets.get(id) {
                charge(state, step, &kept.value, cell.day, cost);
            }
        }
    }
}

/// The scopes that cover a path, the widest first.
fn scopes(state: &State, path: &TenantPath) -> Vec<BudgetScope> {
    let wide = [
        Some(BudgetScope::Organization(path.organization.clone())),
        path.team.clone().map(BudgetScope::Team),
        Some(BudgetScope::Project(path.project.clone())),
    ];
    let keys = line(state, &path.key).map(BudgetScope::Key);
    wide.into_iter().flatten().chain(keys).collect()
}

fn charge(state: &mut State, step: &mut Step<'_>, budget: &Budget, day: Day, cost: NanoUsd) {
    let (start, _) = budget.period.window(day.start());
    let spent = state.budget_spend.entry((budget.id.clone(), start)).or_default();
    let before = *spent;
    *spent = sum(before, cost);
    let crossed = (before >= budget.limit) != (*spent >= budget.limit);
    // Nodes see the newest window that is spent: an older one makes no difference to them.
    if crossed && !windows_from(state, &budget.id, start.plus_ms(1)).any(|(_, spent)| spent >= budget.limit) {
        step.changed.push(key(ResourceKind::Budget, budget.id.text()));
    }
}

/// A budget's recorded windows, oldest first.
pub fn windows<'a>(state: &'a State, id: &'a BudgetId) -> impl Iterator<Item = (UnixMillis, NanoUsd)> + 'a {
    windows_from(state, id, UnixMillis(i64::MIN))
}

fn windows_from<'a>(
    state: &'a State,
    id: &'a BudgetId,
    from: UnixMillis,
) -> impl Iterator<Item = (UnixMillis, NanoUsd)> + 'a {
    state
        .budget_spend
        .range((id.clone(), from)..=(id.clone(), UnixMillis(i64::MAX)))
        .map(|((_, start), spent)| (*start, *spent))
}

fn forget_spend(state: &mut State, id: &BudgetId) {
    let starts: Vec<UnixMillis> = windows(state, id).map(|(start, _)| start).collect();
    for start in starts {
        state.budget_spend.remove(&(id.clone(), start));
    }
}

fn added(kept: &UsageSums, more: &UsageSums) -> UsageSums {
    let mut tokens = kept.tokens;
    tokens.add(&more.tokens);
    UsageSums {
        requests: kept.requests.saturating_add(more.requests),
        estimated: kept.estimated.saturating_add(more.estimated),
        tokens,
        cost: sum(kept.cost, more.cost),
    }
}

/// A sum that has reached the end of its range stays there: whatever budget it is compared with is spent, and a refusal would stop the
/// partition's count for good.
fn sum(a: NanoUsd, b: NanoUsd) -> NanoUsd {
    a.plus(b).unwrap_or(NanoUsd(i64::MAX))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, Outcome};
    use tollway_shared::ids::{ApiKeyId, ProjectId};

    use super::*;
    use crate::state::{samples, view};

    #[test]
    fn a_sum_at_the_end_of_its_range_stops_its_budget_and_not_the_count() {
        let mut state = samples::catalog();
        for (from, to) in [(0, 10), (10, 20), (20, 30)] {
            let stretch = samples::spend(from, to, i64::MAX / 2 + 2);
            assert!(matches!(
                samples::run(&mut state, Command::RecordSpend(stretch)),
                Outcome::Done(_)
            ));
        }
        assert_eq!(state.usage_offsets.get(&0), Some(&30));
        let costs: Vec<_> = state.usage.values().map(|sums| sums.cost).collect();
        assert_eq!(costs, [NanoUsd(i64::MAX)]);
    }

    #[test]
    fn a_stretch_that_comes_twice_is_counted_once() {
        let mut state = samples::catalog();
        let stretch = samples::spend(0, 10, 5);
        assert!(matches!(
            samples::run(&mut state, Command::RecordSpend(stretch.clone())),
            Outcome::Done(_)
        ));
        let after = state.usage.clone();
        assert!(matches!(
            samples::run(&mut state, Command::RecordSpend(stretch)),
            Outcome::Refused(_)
        ));
        assert_eq!(state.usage, after);
        assert_eq!(state.usage_offsets.get(&0), Some(&10));
    }

    #[test]
    fn only_the_budgets_of_the_path_are_charged() {
        let mut state = samples::catalog();
        let scopes = [
            ("org", BudgetScope::Organization(OrganizationId::trusted("o"))),
            ("project", BudgetScope::Project(ProjectId::trusted("j"))),
            ("key", BudgetScope::Key(ApiKeyId::trusted("k"))),
            ("other", BudgetScope::Key(ApiKeyId::trusted("k2"))),
        ];
        samples::run(&mut state, Command::CreateKey(samples::api_key("k2", 2)));
        for (id, scope) in scopes {
            let budget = Budget {
                id: BudgetId::trusted(id),
                scope,
                ..samples::budget(100)
            };
            assert!(matches!(
                samples::run(&mut state, Command::PutBudget(budget)),
                Outcome::Done(_)
            ));
        }
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 11)));
        let spent = |state: &State, id: &str| {
            windows(state, &BudgetId::trusted(id))
                .map(|(_, spent)| spent.0)
                .sum::<i64>()
        };
        for (id, expected) in [("org", 11), ("project", 11), ("key", 11), ("other", 0)] {
            assert_eq!(spent(&state, id), expected, "{id}");
        }
        // One that moves to another scope counts what was recorded there, and no longer what comes where it was.
        let moved = Budget {
            id: BudgetId::trusted("other"),
            ..samples::budget(100)
        };
        samples::run(&mut state, Command::PutBudget(moved));
        assert_eq!(spent(&state, "other"), 11);
        samples::run(&mut state, Command::RemoveBudget(BudgetId::trusted("org")));
        samples::run(&mut state, Command::RecordSpend(samples::spend(10, 20, 1)));
        assert_eq!((spent(&state, "other"), spent(&state, "org")), (12, 0));
        let again = State::decode(&state.encode()).unwrap();
        assert_eq!(again, state, "the index is made anew");
        assert_eq!(crate::state::invariant::dangling(&again), None);
    }

    #[test]
    fn a_budget_is_spent_once_its_window_has_recorded_the_limit() {
        let mut state = samples::catalog();
        samples::run(&mut state, Command::PutBudget(samples::budget(12)));
        let id = samples::budget(12).id;
        let spent = |state: &State| {
            view::budget(state, &state.budgets.get(&id).unwrap().value)
                .exhausted_window
                .is_some()
        };
        let before = state.revision;
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 11)));
        assert!(!spent(&state));
        assert_eq!(state.revision, before, "nodes see no difference");
        samples::run(&mut state, Command::RecordSpend(samples::spend(10, 20, 1)));
        assert!(spent(&state));
        assert!(state.revision > before, "nodes must hear of it");
        samples::run(&mut state, Command::PutBudget(samples::budget(13)));
        assert!(
            !spent(&state),
            "a raised limit lets requests through again, and the 12 already spent still count"
        );
        samples::run(&mut state, Command::RecordSpend(samples::spend(20, 30, 1)));
        assert!(spent(&state));
    }

    /// A key `k` with a budget of 100 is rotated, then its successor. What all three spend counts, in the window that has begun.
    #[test]
    fn the_budget_of_a_key_holds_for_those_that_replace_it() {
        let mut state = samples::catalog();
        let of_key = |id: &str| Budget {
            scope: BudgetScope::Key(ApiKeyId::trusted(id)),
            ..samples::budget(100)
        };
        samples::run(&mut state, Command::PutBudget(of_key("k")));
        samples::run(&mut state, Command::RecordSpend(samples::spend(0, 10, 40)));
        for (old, new, digest) in [("k", "k2", 2), ("k2", "k3", 3)] {
            let rotate = Command::RotateKey {
                old: ApiKeyId::trusted(old),
                old_expires_at: samples::NOON.plus_ms(1_000),
                new: samples::api_key(new, digest),
            };
            assert!(matches!(samples::run(&mut state, rotate), Outcome::Done(_)));
        }
        for (from, key, cost) in [(10, "k2", 20), (20, "k3", 39), (30, "k", 1)] {
            let mut stretch = samples::spend(from, from + 10, cost);
            stretch.sums[0].0.path.key = ApiKeyId::trusted(key);
            samples::run(&mut state, Command::RecordSpend(stretch));
        }
        let spent = |state: &State| windows(state, &of_key("k").id).next().unwrap().1.0;
        let stops = |state: &State| {
            let view = view::budget(state, &state.budgets.get(&of_key("k").id).unwrap().value);
            view.stops(state.now).is_some()
        };
        assert_eq!((spent(&state), stops(&state)), (100, true));
        // One that is put on a successor counts that one and what came after it, as far back as its window goes.
        samples::run(&mut state, Command::PutBudget(of_key("k2")));
        assert_eq!((spent(&state), stops(&state)), (59, false));
    }

    #[test]
    fn a_key_is_rotated_so_often_and_no_more() {
        let mut state = samples::catalog();
        let mut outcome = None;
        for n in 0..=tenant::ROTATIONS_MAX {
            let old = if n == 0 { "k".to_owned() } else { format!("k{n}") };
            let mut new = samples::api_key(&format!("k{}", n + 1), 2);
            new.digest[..8].copy_from_slice(&n.to_be_bytes());
            let rotate = Command::RotateKey {
                old: ApiKeyId::trusted(old),
                old_expires_at: samples::NOON,
                new,
            };
            assert!(!matches!(outcome, Some(Outcome::Refused(_))), "after {n}");
            outcome = Some(samples::run(&mut state, rotate));
        }
        let Some(Outcome::Refused(refusal)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(refusal.code, RefusalCode::Conflict);
        let last = ApiKeyId::trusted(format!("k{}", tenant::ROTATIONS_MAX));
        assert_eq!(
            line(&state, &last).last(),
            Some(ApiKeyId::trusted("k")),
            "the first one is reached"
        );
    }
}
