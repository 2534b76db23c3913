//! Commands on budgets, and usage folded from the usage log.

use tollway_proto::command::{RecordSpend, Refusal, RefusalCode, UsageCell, UsageSums};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::BudgetId;
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::ResourceKind;
use tollway_shared::time::{DAY_MS, UnixMillis};

use super::view::{self, key};
use super::{State, Step, must_exist, refuse};

/// Spend of a budget's windows is kept until its first instant is this old.
const WINDOW_KEPT_MS: i64 = 70 * DAY_MS;

/// A new or changed budget counts what its current window has recorded already.
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
    step.put(&mut state.budgets, budget.id.clone(), budget.clone())?;
    forget_spend(state, &budget.id);
    let (start, _) = budget.period.window(state.now);
    let mut spent = NanoUsd::ZERO;
    for (cell, sums) in &state.usage {
        if budget.scope.covers(&cell.path) && budget.period.window(cell.day.start()).0 == start {
            spent = sum(spent, sums.cost)?;
        }
    }
    state.budget_spend.insert((budget.id.clone(), start), spent);
    step.changed.push(key(ResourceKind::Budget, budget.id.text()));
    Ok(())
}

pub(super) fn remove_budget(state: &mut State, step: &mut Step<'_>, id: &BudgetId) -> Result<(), Refusal> {
    step.take(&mut state.budgets, id, "budget")?;
    forget_spend(state, id);
    step.changed.push(key(ResourceKind::Budget, id.text()));
    Ok(())
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
        *entry = added(entry, sums)?;
        charge_budgets(state, step, cell, sums.cost)?;
    }
    for (writer, sequence) in &stretch.writers {
        let highest = state
            .usage_writers
            .entry((stretch.partition, *writer))
            .or_default();
        *highest = (*highest).max(*sequence);
    }
    state.usage_offsets.insert(stretch.partition, stretch.to);
    Ok(())
}

fn charge_budgets(
    state: &mut State,
    step: &mut Step<'_>,
    cell: &UsageCell,
    cost: NanoUsd,
) -> Result<(), Refusal> {
    let covering: Vec<Budget> = state
        .budgets
        .values()
        .filter(|kept| kept.value.scope.covers(&cell.path))
        .map(|kept| kept.value.clone())
        .collect();
    for budget in covering {
        let before = view::budget(state, &budget).exhausted_window;
        let (start, _) = budget.period.window(cell.day.start());
        let spent = state.budget_spend.entry((budget.id.clone(), start)).or_default();
        *spent = sum(*spent, cost)?;
        if view::budget(state, &budget).exhausted_window != before {
            step.changed.push(key(ResourceKind::Budget, budget.id.text()));
        }
        let oldest = UnixMillis(state.now.0 - WINDOW_KEPT_MS);
        if budget.period != tollway_shared::time::Period::Lifetime {
            let old: Vec<_> = windows(state, &budget.id)
                .filter(|(start, _)| *start < oldest)
                .map(|(start, _)| start)
                .collect();
            for start in old {
                state.budget_spend.remove(&(budget.id.clone(), start));
            }
        }
    }
    Ok(())
}

/// A budget's recorded windows, oldest first.
pub fn windows<'a>(state: &'a State, id: &'a BudgetId) -> impl Iterator<Item = (UnixMillis, NanoUsd)> + 'a {
    let (from, to) = (
        (id.clone(), UnixMillis(i64::MIN)),
        (id.clone(), UnixMillis(i64::MAX)),
    );
    state
        .budget_spend
        .range(from..=to)
        .map(|((_, start), spent)| (*start, *spent))
}

fn forget_spend(state: &mut State, id: &BudgetId) {
    let starts: Vec<UnixMillis> = windows(state, id).map(|(start, _)| start).collect();
    for start in starts {
        state.budget_spend.remove(&(id.clone(), start));
    }
}

fn added(kept: &UsageSums, more: &UsageSums) -> Result<UsageSums, Refusal> {
    let mut tokens = kept.tokens;
    tokens.add(&more.tokens);
    Ok(UsageSums {
        requests: kept.requests.saturating_add(more.requests),
        estimated: kept.estimated.saturating_add(more.estimated),
        tokens,
        cost: sum(kept.cost, more.cost)?,
    })
}

fn sum(a: NanoUsd, b: NanoUsd) -> Result<NanoUsd, Refusal> {
    a.plus(b)
        .map_err(|fault| refuse(RefusalCode::Invalid, "sums", fault.to_string()))
}

#[cfg(test)]
mod tests {
    use tollway_proto::command::{Command, Outcome};

    use super::*;
    use crate::state::samples;

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
}
