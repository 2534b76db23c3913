//! Usage folded from the usage log.

use tollway_proto::command::{RecordSpend, Refusal, RefusalCode, UsageSums};
use tollway_shared::money::NanoUsd;

use super::usage::{self, WriterMark};
use super::{State, Step, account, budget, refuse, tally};

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
    for spent in &stretch.sums {
        let entry = state.usage.entry(spent.cell.clone()).or_default();
        *entry = added(entry, &spent.sums);
        for budget in budget::covering(state, &spent.cell.path, &spent.cell.model) {
            tally::charge(state, step, &budget, spent);
        }
    }
    account::record(state, step, stretch);
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
    usage::forget_old(state);
    Ok(())
}

fn added(kept: &UsageSums, more: &UsageSums) -> UsageSums {
    let mut tokens = kept.tokens;
    tokens.add(&more.tokens);
    UsageSums {
        requests: kept.requests.saturating_add(more.requests),
        served: kept.served.saturating_add(more.served),
        estimated: kept.estimated.saturating_add(more.estimated),
        tokens,
        cost: sum(kept.cost, more.cost),
        billed: sum(kept.billed, more.billed),
        byok_requests: kept.byok_requests.saturating_add(more.byok_requests),
        byok_cost: sum(kept.byok_cost, more.byok_cost),
        fee: sum(kept.fee, more.fee),
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

    use super::*;
    use crate::state::samples;

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
}
