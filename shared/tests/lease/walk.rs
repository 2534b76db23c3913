//! Larger worlds by random walks, against the provider's own count: three nodes, three levels, limits that change, days that
//! end, disks that are lost, slices that are dropped when idle.

use proptest::prelude::*;

use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::ids::BudgetId;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::Period;

use crate::properties;
use crate::steps::{Chances, Setup};
use crate::world::World;

fn setup(mode: Mode, standby_ppm: u32) -> Setup {
    let terms = |limit, period: Period| Terms {
        cycle: period.into(),
        mode,
        standby_ppm,
        thresholds_percent: vec![50, 100],
        ..Terms::money(NanoUsd(limit))
    };
    Setup {
        nodes: 3,
        budgets: vec![
            (BudgetId::trusted("org"), terms(90, Period::Monthly)),
            (BudgetId::trusted("team"), terms(70, Period::Daily)),
            (BudgetId::trusted("key"), terms(50, Period::Lifetime)),
        ],
        changed_limit: 60,
        worst: 5,
        costs: vec![0, 2, 5],
        requests: 20,
        chances: Chances {
            crashes: 4,
            lost_disks: 1,
            repeats: 20,
            losses: 20,
            days: 2,
            limits: 1,
            fences: 2,
            naps: 8,
        },
        confirms: true,
        plant: None,
    }
}

/// Takes the steps that the numbers choose; the promise that broke, and how many steps that took.
pub(crate) fn walk(setup: &Setup, choices: &[u16]) -> Result<World, String> {
    let mut world = World::new(setup);
    for (count, choice) in choices.iter().enumerate() {
        let steps = world.steps(setup);
        let Some(step) = steps.get(usize::from(*choice) % steps.len().max(1)) else {
            break;
        };
        let at = |text| format!("step {count}, {step:?}: {text}");
        world.step(setup, step).map_err(at)?;
        properties::holds(&world).map_err(at)?;
    }
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hard_budgets_agree_with_the_provider_after_any_walk(choices in prop::collection::vec(any::<u16>(), 0..400)) {
        let setup = setup(Mode::Hard, 0);
        let world = walk(&setup, &choices).map_err(TestCaseError::fail)?;
        properties::heals(&world, &setup).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn clamping_budgets_with_standby_agree_with_the_provider(choices in prop::collection::vec(any::<u16>(), 0..400)) {
        let setup = setup(Mode::Clamp, 50_000);
        let world = walk(&setup, &choices).map_err(TestCaseError::fail)?;
        properties::heals(&world, &setup).map_err(TestCaseError::fail)?;
    }
}
