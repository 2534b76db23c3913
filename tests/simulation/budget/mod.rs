//! Leased budgets under one printed seed: five nodes, three levels of budgets, faults first, then none.
//!
//! Real: `state::apply` on three replicas with the leader's stamps and windows; the nodes' keeper, desk, slices, journals, usage spool
//! and their recovery; the claim; prices. Simulated: the log's consensus, the network, disks (in memory), clocks, callers, providers.
//!
//! `TOLLWAY_SEEDS=10000` runs that many seeds, `TOLLWAY_SEED=7` that one alone; `TOLLWAY_SIM_TRACE=1` tells what happens.
//!
//! | file | what |
//! |---|---|
//! | [`run`] | a run from the first message to the last check |
//! | [`truth`] | what really happened, and what must agree with it |
//! | [`control`], [`wire`] | the control plane, and the way to it |
//! | [`node`], [`request`] | nodes with their disks, and the life of a request |
//! | [`faults`], [`plant`] | what goes wrong, and bugs put in on purpose |
//! | [`plan`], [`catalog`] | what a seed decides, and what there is at first |

mod catalog;
mod control;
mod faults;
mod node;
mod plan;
mod plant;
mod request;
mod run;
mod truth;
mod wire;

use std::sync::Mutex;

use self::plant::Planted;
use crate::number;

/// Seeds that are run when nobody says otherwise: about half a minute on two cores.
const SEEDS: u64 = 200;
/// A planted bug has to be found within this many seeds.
const SEEDS_TO_FIND: u64 = 60;

/// Runs a seed in a process of its own.
fn process(seed: u64, plant: Option<Planted>) -> crate::Report {
    crate::process("budget::one_seed", seed, plant.map(|bug| format!("{bug:?}")))
}

fn replay(seed: u64) -> String {
    format!(
        "TOLLWAY_SEED={seed} cargo test -p tollway-tests --test simulation budget::one_seed -- --exact --ignored --nocapture"
    )
}

#[test]
#[ignore = "one process per seed; the other tests start it"]
fn one_seed() {
    let seed = number("TOLLWAY_SEED").unwrap_or(1);
    let plant = std::env::var("TOLLWAY_SIM_PLANT").ok().map(|name| {
        Planted::named(&name)
            .unwrap_or_else(|| panic!("TOLLWAY_SIM_PLANT=`{name}` is none of {:?}", Planted::ALL))
    });
    println!("seed {seed}");
    match run::run(seed, plant) {
        Ok(run) => println!(
            "verdict: kept trace={:016x} served={} refused={} unavailable={} interrupted={} faults={} entries={} rolls={}",
            run.trace,
            run.served,
            run.refused,
            run.unavailable,
            run.interrupted,
            run.faults,
            run.entries,
            run.rolls
        ),
        Err((property, text)) => {
            println!("verdict: broken property={property} {text}");
            panic!(
                "seed {seed}: {property}: {text}\nto see it again: {}",
                replay(seed)
            );
        }
    }
}

#[test]
fn no_fault_breaks_a_promise_about_budgets() {
    let first = number("TOLLWAY_SEED").unwrap_or(1);
    let count = number("TOLLWAY_SEEDS").unwrap_or(if first == 1 { SEEDS } else { 1 });
    let names = [
        "served",
        "refused",
        "unavailable",
        "interrupted",
        "faults",
        "entries",
        "rolls",
    ];
    let sums = Mutex::new(names.map(|name| (name, 0)));
    let failed = crate::seeds(first..first + count, |seed| {
        let report = process(seed, None);
        for (name, sum) in &mut *sums.lock().unwrap() {
            *sum += report.figure(name);
        }
        report
    });
    let sums = sums.into_inner().unwrap();
    println!(
        "budget seeds {first}..{}: {} failed; {sums:?}",
        first + count,
        failed.len()
    );
    for (seed, report) in failed.iter().take(20) {
        println!("seed {seed}: {}", report.verdict);
    }
    if let Some((seed, report)) = failed.first() {
        panic!(
            "seed {seed}: {}\nto see it again: {}",
            report.verdict,
            replay(*seed)
        );
    }
    assert!(count < SEEDS || sums.iter().all(|(_, sum)| *sum > 0), "{sums:?}");
}

#[test]
fn a_budget_seed_runs_the_same_way_every_time() {
    let first = process(3, None);
    assert!(first.verdict.starts_with("kept "), "{}", first.output);
    assert_eq!(first.verdict, process(3, None).verdict);
    assert_ne!(first.verdict, process(4, None).verdict);
}

#[test]
fn every_bug_planted_in_budgets_is_found() {
    for bug in Planted::ALL {
        is_found(bug);
    }
}

/// The bug is found, and without it the same seed is clean.
fn is_found(bug: Planted) {
    for seed in 1..=SEEDS_TO_FIND {
        let report = process(seed, Some(bug));
        if report.verdict.starts_with("kept ") {
            continue;
        }
        let property = report
            .broken()
            .unwrap_or_else(|| panic!("seed {seed} gave no verdict:\n{}", report.output));
        println!("{bug:?}: seed {seed}: {}", report.verdict);
        assert!(
            bug.caught_by().contains(&property),
            "{bug:?} was found by `{property}`, not by one of {:?}",
            bug.caught_by()
        );
        let clean = process(seed, None);
        assert!(clean.verdict.starts_with("kept "), "{}", clean.output);
        return;
    }
    panic!("{bug:?} was not found by any of {SEEDS_TO_FIND} seeds");
}
