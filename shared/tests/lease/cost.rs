//! What a hold and its settlement cost with a million keys.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollway_shared::budget::terms::Terms;
use tollway_shared::ids::BudgetId;
use tollway_shared::lease::hold::{Amounts, Claim, Level, hold};
use tollway_shared::lease::holder::Slices;
use tollway_shared::lease::message::{Epoch, Grant};
use tollway_shared::lease::slice::{Reach, Slice};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;

const KEYS: usize = 1_000_000;
const HOLDS: usize = 200_000;
/// The promise: half of the holds take at most this long, ...
const HALF_WITHIN: Duration = Duration::from_micros(10);
/// ... and 99 of 100 this long.
const MOST_WITHIN: Duration = Duration::from_micros(50);

fn id(level: &str, number: usize) -> BudgetId {
    BudgetId::trusted(format!("{level}-{number}-monthly"))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
fn a_hold_on_four_levels_with_a_million_keys_is_within_ten_microseconds() {
    let mut slices = Slices::default();
    let levels = [
        ("org", 2_000),
        ("team", 10_000),
        ("project", 50_000),
        ("key", KEYS),
    ];
    for (level, count) in levels {
        for number in 0..count {
            let grant = Grant {
                budget: id(level, number),
                epoch: Epoch(1),
                ends_at: None,
                granted: i64::MAX / 8,
                spent: 0,
                returned: 0,
                reserve: 0,
                open: false,
                short: false,
                recall: 0,
                recall_amount: 0,
            };
            drop(slices.insert(grant.budget.clone(), Arc::new(Slice::of(&grant))));
        }
    }
    let terms = Terms::money(NanoUsd(1));
    let amounts = |nano| Amounts {
        money: NanoUsd(nano),
        tokens: 1_000,
        requests: 1,
    };
    let claim = Claim {
        worst: amounts(2_000_000),
        least: amounts(1_000),
    };
    let mut took = Vec::with_capacity(HOLDS);
    let mut draw = 1_u64;
    for _ in 0..HOLDS {
        draw = draw
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let key = (draw >> 33) as usize % KEYS;
        let ids = levels.map(|(level, count)| id(level, key % count));
        let began = Instant::now();
        let path = ids.each_ref().map(|budget| Level {
            budget,
            terms: &terms,
            slice: slices.get(budget),
        });
        let held = hold(black_box(&path), &claim, UnixMillis(0), Reach::Connected).unwrap();
        black_box(held).settle(&amounts(1_500_000));
        took.push(began.elapsed());
    }
    took.sort();
    let (half, most) = (took[HOLDS / 2], took[HOLDS / 100 * 99]);
    println!("lookup, hold and settle on 4 levels, {KEYS} keys: p50 {half:?}, p99 {most:?}");
    assert!(half <= HALF_WITHIN, "p50 is {half:?}");
    assert!(most <= MOST_WITHIN, "p99 is {most:?}");
}
