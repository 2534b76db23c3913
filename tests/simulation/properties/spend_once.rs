//! Usage is counted once, whatever was proposed twice, late, or by two consumers that both believed they lead.

use std::collections::BTreeMap;

use tollway_control::state::State;
use tollway_proto::command::{UsageCell, UsageSums};

use crate::world::World;

/// The sums of `state` are those of the log up to the offsets of `state`.
pub(crate) fn holds(world: &World, state: &State) -> Result<(), String> {
    let expected = world.usage.sums(
        state
            .usage_offsets
            .iter()
            .map(|(partition, to)| (*partition, *to)),
    );
    let found: BTreeMap<UsageCell, UsageSums> = state
        .usage
        .iter()
        .map(|(cell, sums)| (cell.clone(), *sums))
        .collect();
    if expected != found {
        let total = |sums: &BTreeMap<UsageCell, UsageSums>| {
            sums.values()
                .map(|sums| (sums.requests, sums.cost.0))
                .fold((0, 0), |(requests, cost), (more, dearer)| {
                    (requests + more, cost + dearer)
                })
        };
        return Err(format!(
            "after entry {}: {:?} requests and nano-dollars are recorded, the log up to there has {:?}",
            state.applied,
            total(&found),
            total(&expected)
        ));
    }
    for kept in state.budgets.values() {
        let tally = state.tallies.get(&kept.value.id);
        let windows = tally.into_iter().flat_map(|tally| tally.windows());
        let spent: i64 = windows.map(|window| window.amount).sum();
        let costs = found
            .iter()
            .filter(|(cell, _)| kept.value.scope.covers(&cell.path));
        let expected: i64 = costs.map(|(_, sums)| sums.billed.0).sum();
        if spent != expected {
            return Err(format!(
                "budget `{}` has recorded {spent}, its tenants spent {expected}",
                kept.value.id
            ));
        }
    }
    Ok(())
}

/// Nothing of the log is left out.
pub(crate) fn all_counted(world: &World, state: &State) -> Result<(), String> {
    let ends = world.usage.ends();
    let behind = ends
        .into_iter()
        .find(|(partition, end)| state.usage_offsets.get(partition).copied().unwrap_or(0) != *end);
    match behind {
        None => Ok(()),
        Some((partition, end)) => Err(format!("partition {partition} is not counted up to {end}")),
    }
}
