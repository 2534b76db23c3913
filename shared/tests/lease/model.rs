//! Two nodes with a lease of each of two budgets, and every order of everything that can happen to them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::ids::BudgetId;
use tollway_shared::lease::holder::IDLE_MS;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::Period;

use crate::explore::{Broken, Model, explore};
use crate::plant::Planted;
use crate::properties;
use crate::steps::{Chances, Setup, Step};
use crate::world::World;

/// A model, and that healing is tried from one in so many states.
struct Leases(Setup, u64);

impl Model for Leases {
    type State = World;
    type Step = Step;

    fn steps(&self, world: &World) -> Vec<Step> {
        world.steps(&self.0)
    }

    fn after(&self, world: &World, step: &Step) -> Result<World, String> {
        let mut next = world.clone();
        next.step(&self.0, step)?;
        Ok(next)
    }

    fn check(&self, world: &World) -> Result<(), String> {
        properties::holds(world)?;
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        if hasher.finish().is_multiple_of(self.1) {
            properties::heals(world, &self.0)?;
        }
        Ok(())
    }
}

/// An organization with 5, and in it a key with 4; requests hold 2.
fn setup(chances: Chances, plant: Option<Planted>) -> Setup {
    let terms = |limit| Terms {
        cycle: Period::Daily.into(),
        mode: Mode::Hard,
        ..Terms::money(NanoUsd(limit))
    };
    Setup {
        nodes: 2,
        budgets: vec![
            (BudgetId::trusted("org"), terms(5)),
            (BudgetId::trusted("key"), terms(4)),
        ],
        changed_limit: 3,
        worst: 2,
        costs: vec![1],
        requests: 1,
        chances,
        confirms: false,
        plant,
    }
}

fn run(name: &str, setup: Setup, heal_every: u64) -> Result<usize, Broken<Step>> {
    let start = World::new(&setup);
    let explored = explore(&Leases(setup, heal_every), start);
    match &explored {
        Ok(states) => println!("{name}: {states} states"),
        Err(broken) => println!("{name}: {} after {} steps", broken.promise, broken.steps.len()),
    }
    explored
}

fn kept(name: &str, heal_every: u64, chances: Chances) {
    if let Err(broken) = run(name, setup(chances, None), heal_every) {
        let steps: Vec<_> = broken.steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("{name}: {}\n{}", broken.promise, steps.join("\n"));
    }
}

const NONE: Chances = Chances {
    crashes: 0,
    lost_disks: 0,
    repeats: 0,
    losses: 0,
    days: 0,
    limits: 0,
    fences: 0,
    naps: 0,
};

#[test]
fn no_order_of_messages_breaks_a_promise() {
    kept("any order", 1, NONE);
}

#[test]
fn no_repeated_or_lost_message_breaks_a_promise() {
    let chances = Chances {
        repeats: 1,
        losses: 1,
        ..NONE
    };
    kept("repeats and losses", 8, chances);
}

#[test]
fn no_crash_breaks_a_promise() {
    kept("a crash", 8, Chances { crashes: 1, ..NONE });
}

#[test]
fn no_lost_disk_breaks_a_promise() {
    let chances = Chances {
        crashes: 1,
        lost_disks: 1,
        ..NONE
    };
    kept("a lost disk", 16, chances);
}

#[test]
fn no_fencing_of_a_node_that_runs_breaks_a_promise() {
    kept(
        "a fence",
        4,
        Chances {
            fences: 1,
            repeats: 1,
            ..NONE
        },
    );
}

#[test]
fn no_end_of_a_window_breaks_a_promise() {
    kept("a day's end", 1, Chances { days: 1, ..NONE });
}

#[test]
fn no_lowered_limit_breaks_a_promise() {
    kept("a lowered limit", 8, Chances { limits: 1, ..NONE });
}

/// The bug is found, by one of these promises.
fn is_found(bug: Planted, promises: &[&str], chances: Chances) {
    let broken = run(&format!("{bug:?}"), setup(chances, Some(bug)), 1);
    let broken = broken.expect_err("the planted bug was not found");
    let found = promises.iter().any(|promise| broken.promise.starts_with(promise));
    assert!(
        found,
        "{bug:?} was found by another promise than {promises:?}: {}",
        broken.promise
    );
}

#[test]
fn a_planted_settlement_that_is_added_is_found() {
    is_found(Planted::ReportsAdd, &["counted"], Chances { repeats: 1, ..NONE });
}

#[test]
fn a_planted_grant_that_is_added_is_found() {
    is_found(
        Planted::AnswersAdd,
        &["overspend"],
        Chances { repeats: 1, ..NONE },
    );
}

#[test]
fn a_planted_grant_of_half_a_path_is_found() {
    is_found(Planted::HalfPath, &["half a path"], NONE);
}

#[test]
fn a_planted_fence_that_frees_is_found() {
    // More requests than the limit is good for: else what was freed by mistake is never missed.
    let thirsty = Setup {
        requests: 2,
        ..setup(Chances { fences: 1, ..NONE }, Some(Planted::FenceFrees))
    };
    let broken = run("FenceFrees", thirsty, 8).expect_err("the bug was not found");
    assert!(broken.promise.starts_with("overspend"), "{}", broken.promise);
}

#[test]
fn a_planted_successor_that_does_not_read_its_spool_is_found() {
    is_found(
        Planted::ForgetsSpool,
        &["counted", "overspend"],
        Chances { crashes: 1, ..NONE },
    );
}

#[test]
fn a_planted_node_that_keeps_what_it_gave_back_is_found() {
    is_found(Planted::KeepsRecalled, &["overspend"], NONE);
}

#[test]
fn a_planted_charge_to_the_wrong_window_is_found() {
    is_found(Planted::WrongWindow, &["counted"], Chances { days: 1, ..NONE });
}

#[test]
fn a_planted_limit_that_forgets_what_is_out_is_found() {
    is_found(
        Planted::LowerForgets,
        &["conservation"],
        Chances { limits: 1, ..NONE },
    );
}

#[test]
fn a_planted_loss_of_closed_incarnations_is_found() {
    let chances = Chances {
        crashes: 1,
        repeats: 1,
        ..NONE
    };
    is_found(Planted::ForgetsClosed, &["counted"], chances);
}

#[test]
fn a_planted_lease_that_is_never_closed_is_found() {
    is_found(
        Planted::NeverCloses,
        &["lost money"],
        Chances { crashes: 1, ..NONE },
    );
}

#[test]
fn a_planted_revival_of_a_dropped_slice_is_found() {
    old_answer(None).expect("without the bug every promise is kept");
    let promise = old_answer(Some(Planted::RevivesSlice)).expect_err("the bug was not found");
    assert!(
        promise.starts_with("counted") || promise.starts_with("overspend"),
        "{promise}"
    );
}

/// A node uses its slice, leaves it idle until it is dropped, gets the answer to its first ask once more, and uses it again.
fn old_answer(plant: Option<Planted>) -> Result<(), String> {
    let setup = Setup {
        confirms: true,
        requests: 2,
        ..setup(NONE, plant)
    };
    let mut world = World::new(&setup);
    world.step(&setup, &Step::Begin(0))?;
    let ask = world.net.first().cloned().ok_or("no ask")?;
    world.step(&setup, &Step::Deliver(ask))?;
    let answer = world.net.first().cloned().ok_or("no answer")?;
    world.deliver_all(&setup)?;
    world.step(&setup, &Step::Finish(0, 0, 1))?;
    for _ in 0..2 {
        world.step(&setup, &Step::Report(0))?;
        world.deliver_all(&setup)?;
        world.nap(IDLE_MS);
    }
    if !world.nodes[0].holder().ok_or("not running")?.slices().is_empty() {
        return Err("the idle slices are not dropped".into());
    }
    world.step(&setup, &Step::Deliver(answer))?;
    properties::holds(&world)?;
    world.step(&setup, &Step::Begin(0))?;
    world.deliver_all(&setup)?;
    world.step(&setup, &Step::Finish(0, 0, 1))?;
    properties::holds(&world)?;
    properties::heals(&world, &setup)
}
