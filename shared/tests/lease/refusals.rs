//! What a node takes for a refusal, and what it does not: found by the simulation of budgets.

use std::sync::Arc;

use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::ids::{BudgetId, Incarnation, NodeId};
use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::hold::{Amounts, Claim, Left, Level, Short, hold};
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{Answer, Ask, Effect, Epoch, Grant, Verdict, Want};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

const LIFE: Incarnation = Incarnation(1);
const NOW: UnixMillis = UnixMillis(1_000_000);

fn budget(name: &str) -> BudgetId {
    BudgetId::trusted(name)
}

fn grant(name: &str, granted: i64, short: bool) -> Grant {
    Grant {
        budget: budget(name),
        epoch: Epoch(1),
        ends_at: None,
        granted,
        spent: 0,
        returned: 0,
        reserve: 0,
        open: false,
        short,
        recall: 0,
        recall_amount: 0,
    }
}

fn answer(verdict: Verdict, grants: Vec<Grant>) -> Answer {
    Answer {
        incarnation: LIFE,
        serial: 1,
        verdict,
        grants,
    }
}

fn claim(worst: i64, least: i64) -> Claim {
    let money = |amount| Amounts {
        money: NanoUsd(amount),
        ..Amounts::default()
    };
    Claim {
        worst: money(worst),
        least: money(least),
    }
}

/// What becomes of a claim on these budgets.
fn becomes(holder: &Holder, levels: &[(&str, Mode)], claim: &Claim, now: UnixMillis) -> Result<(), Short> {
    let named: Vec<_> = levels
        .iter()
        .map(|(name, mode)| {
            let terms = Terms {
                mode: *mode,
                ..Terms::money(NanoUsd(1_000))
            };
            (budget(name), terms)
        })
        .collect();
    let levels: Vec<Level<'_>> = named
        .iter()
        .map(|(budget, terms)| Level {
            budget,
            terms,
            slice: holder.slices().get(budget).map(|slice: &Arc<_>| slice),
        })
        .collect();
    hold(&levels, claim, now, Reach::Connected).map(|hold| hold.release())
}

/// A node of which a request was refused that wanted 50; 10 are free on its slice.
fn refused_fifty() -> Holder {
    let mut holder = Holder::new(LIFE);
    let want = Want {
        budget: budget("b"),
        epoch: Epoch(1),
        seen: 10,
        room: 10,
        amount: 50,
        least: 50,
        urgent: true,
        burn: 0,
    };
    let verdict = Verdict::Exhausted(budget("b"));
    holder.take_for(&[want], &answer(verdict, vec![grant("b", 10, false)]), NOW);
    holder
}

#[test]
fn who_wants_less_than_was_refused_asks() {
    let holder = refused_fifty();
    let becomes = |worst| becomes(&holder, &[("b", Mode::Hard)], &claim(worst, worst), NOW);
    assert_eq!(becomes(10), Ok(()));
    assert!(matches!(becomes(49), Err(Short::Lease(_))));
    let left = |found| match found {
        Err(Short::Spent { level: 0, left, .. }) => left,
        other => panic!("{other:?}"),
    };
    assert_eq!(left(becomes(50)), Left::Nothing);
    // With a lower cap the same request was never refused.
    let found = self::becomes(&holder, &[("b", Mode::Hard)], &claim(50, 49), NOW);
    assert_eq!(left(found), Left::Less);
}

#[test]
fn a_refusal_does_not_last_longer_when_the_clock_is_put_back() {
    let holder = refused_fifty();
    let an_hour_ago = NOW.plus_ms(-3_600_000);
    let becomes = becomes(&holder, &[("b", Mode::Hard)], &claim(50, 50), an_hour_ago);
    assert!(matches!(becomes, Err(Short::Lease(_))), "{becomes:?}");
}

#[test]
fn what_clamps_a_request_refuses_nobody() {
    let mut holder = Holder::new(LIFE);
    holder.take(&answer(Verdict::Granted, vec![grant("b", 10, true)]), NOW);
    let becomes = |mode, worst, least| becomes(&holder, &[("b", mode)], &claim(worst, least), NOW);
    assert!(matches!(becomes(Mode::Clamp, 50, 10), Err(Short::Clamp(_))));
    // Other nodes may have what they need, and have not been asked.
    assert!(matches!(becomes(Mode::Clamp, 50, 11), Err(Short::Lease(_))));
    assert!(matches!(becomes(Mode::Hard, 11, 11), Err(Short::Lease(_))));
}

#[test]
fn the_level_that_is_spent_is_blamed_and_not_one_that_only_clamps() {
    let mut holder = Holder::new(LIFE);
    let grants = vec![grant("org", 20, true), grant("key", 2, true)];
    holder.take(&answer(Verdict::Granted, grants), NOW);
    let levels = [("org", Mode::Clamp), ("key", Mode::Clamp)];
    let found = becomes(&holder, &levels, &claim(50, 5), NOW);
    assert!(matches!(found, Err(Short::Lease(_))), "{found:?}");
    let verdict = Verdict::Exhausted(budget("key"));
    holder.take(&answer(verdict, Vec::new()), NOW);
    let found = becomes(&holder, &levels, &claim(50, 5), NOW);
    assert!(matches!(found, Err(Short::Spent { level: 1, .. })), "{found:?}");
}

#[test]
fn a_node_spends_its_own_reserve_before_it_refuses() {
    let mut holder = Holder::new(LIFE);
    let mut reserved = grant("b", 10, false);
    reserved.reserve = 6;
    holder.take(&answer(Verdict::Granted, vec![reserved.clone()]), NOW);
    let becomes = |holder: &Holder, worst| becomes(holder, &[("b", Mode::Hard)], &claim(worst, worst), NOW);
    assert!(matches!(becomes(&holder, 9), Err(Short::Lease(_))));
    // Refused, for 3 more are not to be had: the grantor opens the reserve.
    reserved.open = true;
    let refused = answer(Verdict::Exhausted(budget("b")), vec![reserved]);
    holder.take(&refused, NOW);
    assert_eq!(becomes(&holder, 9), Ok(()));
    assert!(
        matches!(becomes(&holder, 11), Err(Short::Lease(_))),
        "one is missing, not five"
    );
    holder.take(&refused, NOW);
    assert!(matches!(becomes(&holder, 11), Err(Short::Spent { .. })));
}

#[test]
fn a_level_that_is_spent_ends_the_asking_for_those_above_it() {
    let mut holder = Holder::new(LIFE);
    let grants = vec![grant("org", 5, false), grant("key", 1, false)];
    let verdict = Verdict::Exhausted(budget("key"));
    holder.take(&answer(verdict, grants), NOW);
    let levels = [("org", Mode::Hard), ("key", Mode::Hard)];
    let found = becomes(&holder, &levels, &claim(9, 9), NOW);
    assert!(matches!(found, Err(Short::Spent { level: 1, .. })), "{found:?}");
}

#[test]
fn who_does_not_answer_a_recall_does_not_keep_others_from_being_asked() {
    let mut books = Books::default();
    let span = Span {
        start: UnixMillis(0),
        end: None,
    };
    drop(books.put(&budget("b"), &Terms::money(NanoUsd(1_000)), span, 0, NOW));
    let lives = [1, 2, 3].map(Incarnation);
    for (life, node) in lives.iter().zip(["n1", "n2", "n3"]) {
        assert!(books.enlist(*life, &NodeId::trusted(node), NOW));
    }
    let mut asks = |life: Incarnation, least: i64, now: UnixMillis| {
        let want = Want {
            budget: budget("b"),
            epoch: Epoch(1),
            seen: 0,
            room: 0,
            amount: least,
            least,
            urgent: true,
            burn: 0,
        };
        let ask = Ask {
            incarnation: life,
            serial: 1,
            wants: vec![want],
        };
        let (answer, effects) = books.grant(&ask, now);
        let recalled = effects.into_iter().filter_map(|effect| match effect {
            Effect::Recall(recall) => Some((recall.incarnation, recall.amount)),
            Effect::Crossed { .. } | Effect::LowBalance { .. } => None,
        });
        (answer.verdict, recalled.collect::<Vec<_>>())
    };
    let granted = (Verdict::Granted, Vec::new());
    assert_eq!(asks(lives[0], 600, NOW), granted);
    assert_eq!(asks(lives[1], 400, NOW), granted);
    let recalling = Verdict::Recalling(budget("b"));
    assert_eq!(
        asks(lives[2], 100, NOW),
        (recalling.clone(), vec![(lives[0], 100)])
    );
    // It is cut off: after a while the other one is asked.
    assert_eq!(
        asks(lives[2], 100, NOW.plus_ms(5_000)),
        (recalling, vec![(lives[1], 100)])
    );
}

/// A node and the books that leased it 10 of 10: what it holds and its report goes through both.
fn leased_ten() -> (Books, Holder) {
    let mut books = Books::default();
    let span = Span {
        start: UnixMillis(0),
        end: None,
    };
    drop(books.put(&budget("b"), &Terms::money(NanoUsd(10)), span, 0, NOW));
    assert!(books.enlist(LIFE, &NodeId::trusted("n1"), NOW));
    let mut holder = Holder::new(LIFE);
    let want = Want {
        budget: budget("b"),
        epoch: Epoch(1),
        seen: 0,
        room: 0,
        amount: 10,
        least: 10,
        urgent: true,
        burn: 0,
    };
    let ask = holder.ask(vec![want]);
    let (answer, _) = books.grant(&ask, NOW);
    holder.take(&answer, NOW);
    (books, holder)
}

#[test]
fn a_late_report_does_not_bring_a_hold_back() {
    let (mut books, mut holder) = leased_ten();
    let slice = holder.slices().get(&budget("b")).unwrap().clone();
    assert!(slice.take(10, Reach::Connected));
    let holding = holder.report(NOW, usize::MAX);
    slice.untake(10);
    let free = holder.report(NOW, usize::MAX);
    for report in [&free, &holding] {
        drop(books.settle(report, NOW));
    }
    let lease = |books: &Books| books.accounts.get(&budget("b")).unwrap().book.leases[&LIFE].clone();
    assert_eq!(lease(&books).idle(), 10);
}

#[test]
fn a_late_confirmation_does_not_keep_a_hold_from_being_reported() {
    let (mut books, mut holder) = leased_ten();
    let slice = holder.slices().get(&budget("b")).unwrap().clone();
    let free = holder.report(NOW, usize::MAX);
    assert!(slice.take(10, Reach::Connected));
    let holding = holder.report(NOW, usize::MAX);
    for report in [&holding, &free] {
        let (confirmed, _) = books.settle(report, NOW);
        holder.confirmed(report, &confirmed, NOW);
    }
    slice.untake(10);
    let lines = holder.report(NOW, usize::MAX).lines;
    assert_eq!(lines.iter().map(|line| line.held).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_ceiling_below_the_least_is_blamed_and_not_a_level_that_only_clamps() {
    let mut holder = Holder::new(LIFE);
    let grants = vec![grant("org", 20, true), grant("key", 20, true)];
    holder.take(&answer(Verdict::Granted, grants), NOW);
    let terms = |per_request_max| Terms {
        mode: Mode::Clamp,
        per_request_max,
        ..Terms::money(NanoUsd(1_000))
    };
    let (org, key) = ((budget("org"), terms(None)), (budget("key"), terms(Some(4))));
    let levels: Vec<Level<'_>> = [&org, &key]
        .into_iter()
        .map(|(budget, terms)| Level {
            budget,
            terms,
            slice: holder.slices().get(budget),
        })
        .collect();
    let found = hold(&levels, &claim(50, 5), NOW, Reach::Connected).map(|hold| hold.release());
    assert_eq!(found, Err(Short::PerRequest { level: 1, most: 4 }));
}
