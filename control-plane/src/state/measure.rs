//! Measurements, not tests: `cargo test -p tollway-control --release --lib measures_ -- --ignored --nocapture`.

use std::time::Instant;

use tollway_proto::command::{Command, Outcome, RecordSpend};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{ApiKeyId, BudgetId};

use super::State;
use super::samples;

/// API keys, each with a budget.
const KEYS: usize = 2_000;
/// Cells of one stretch, each of another key.
const CELLS: usize = 1_000;
/// Stretches.
const STRETCHES: i64 = 20;

/// Applying `RecordSpend` costs per cell what its tenant path is deep, however many budgets there are.
#[test]
#[ignore = "a measurement"]
fn measures_applying_recorded_spend() {
    for budgets in [0, 1, KEYS] {
        let mut state = samples::catalog();
        for n in 0..KEYS {
            let mut key = samples::api_key(&format!("key-{n}"), 0);
            key.digest[..8].copy_from_slice(&n.to_le_bytes());
            assert!(matches!(
                samples::run(&mut state, Command::CreateKey(key)),
                Outcome::Done(_)
            ));
        }
        for n in 0..budgets {
            let budget = Budget {
                id: BudgetId::trusted(format!("budget-{n}")),
                scope: BudgetScope::Key(ApiKeyId::trusted(format!("key-{n}"))),
                ..samples::budget(1 << 50).budget
            };
            let budget = samples::put_budget(budget);
            assert!(matches!(
                samples::run(&mut state, Command::PutBudget(budget)),
                Outcome::Done(_)
            ));
        }
        let took = apply_all(&mut state);
        let cells = STRETCHES as f64 * CELLS as f64;
        println!("{budgets} budgets: {:.1} µs per cell", took * 1e6 / cells);
    }
}

fn apply_all(state: &mut State) -> f64 {
    let spent = samples::spend(0, 1, 5).sums.remove(0);
    let stretch = |n: i64| {
        let mut sums = vec![spent.clone(); CELLS];
        for (place, spent) in sums.iter_mut().enumerate() {
            spent.cell.path.key = ApiKeyId::trusted(format!("key-{}", place * KEYS / CELLS));
        }
        RecordSpend {
            sums,
            ..samples::spend(n, n + 1, 5)
        }
    };
    let stretches: Vec<_> = (0..STRETCHES).map(stretch).collect();
    let begun = Instant::now();
    for stretch in stretches {
        assert!(matches!(
            samples::run(state, Command::RecordSpend(stretch)),
            Outcome::Done(_)
        ));
    }
    begun.elapsed().as_secs_f64()
}
