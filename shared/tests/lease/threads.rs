//! Slices under many cores at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tollway_shared::budget::terms::Unit;
use tollway_shared::ids::BudgetId;
use tollway_shared::lease::hold::{Amounts, Hold, Part};
use tollway_shared::lease::message::{Epoch, Grant};
use tollway_shared::lease::slice::{Reach, Slice};
use tollway_shared::money::NanoUsd;

const GRANTED: i64 = 200_000;
const THREADS: i64 = 8;

fn slice() -> Arc<Slice> {
    Arc::new(Slice::of(&Grant {
        budget: BudgetId::trusted("b"),
        epoch: Epoch(1),
        ends_at: None,
        granted: GRANTED,
        spent: 0,
        returned: 0,
        reserve: 0,
        open: false,
        short: false,
        recall: 0,
        recall_amount: 0,
    }))
}

#[test]
fn cores_that_fight_for_a_slice_never_have_more_than_it() {
    let slice = slice();
    let (held, most) = (AtomicI64::new(0), AtomicI64::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|worker| {
                let (slice, held, most) = (&slice, &held, &most);
                scope.spawn(move || {
                    let mut draw = worker as u64 + 1;
                    loop {
                        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let amount = (draw >> 40) as i64 % 20 + 1;
                        if !slice.take(amount, Reach::Connected) {
                            return;
                        }
                        // Spent, returned and held together are never more than was granted.
                        let now = held.fetch_add(amount, Ordering::SeqCst) + amount;
                        most.fetch_max(now, Ordering::SeqCst);
                        let cost = amount - amount % 3;
                        held.fetch_sub(amount - cost, Ordering::SeqCst);
                        slice.settle(amount, cost);
                    }
                })
            })
            .collect();
        let giver = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let given = slice.give_back(7);
                // Money that is given back is somebody else's from now on.
                let now = held.fetch_add(given, Ordering::SeqCst) + given;
                most.fetch_max(now, Ordering::SeqCst);
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        giver.join().unwrap();
    });
    let numbers = slice.numbers();
    assert!(most.into_inner() <= GRANTED, "more was in use than was granted");
    assert_eq!(
        numbers.spent + numbers.returned + numbers.room,
        GRANTED,
        "{numbers:?}"
    );
    assert_eq!(slice.line().held, 0);
}

#[test]
fn a_hold_ends_settled_released_or_dropped_and_each_is_counted_once() {
    let slice = slice();
    let hold = || {
        assert!(slice.take(10, Reach::Connected));
        Hold::of(vec![Part {
            slice: slice.clone(),
            unit: Unit::Money,
            amount: 10,
        }])
    };
    let cost = Amounts {
        money: NanoUsd(4),
        ..Amounts::default()
    };
    let at = |spent: i64| {
        assert_eq!(
            (slice.numbers().spent, slice.numbers().room),
            (spent, GRANTED - spent)
        )
    };
    hold().settle(&cost);
    at(4);
    hold().release();
    at(4);
    drop(hold());
    at(14);
    // Dearer than its hold: what is missing comes out of the room, and the counter tells the truth.
    hold().settle(&Amounts {
        money: NanoUsd(25),
        ..Amounts::default()
    });
    at(39);
}
