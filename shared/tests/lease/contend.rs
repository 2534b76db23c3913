//! Many nodes want the last of a budget at once, each with several requests waiting: what is left is spent, not passed around.

use std::collections::BTreeMap;

use tollway_shared::budget::terms::Terms;
use tollway_shared::ids::{BudgetId, Incarnation, NodeId};
use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::hold::{Amounts, Claim, Level, Short, hold};
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{Answer, Ask, Confirmed, Effect, Epoch, Recall, Report, Verdict, Want};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;
use tollway_shared::window::Span;

/// What a request holds, and what it costs.
const HOLD: i64 = 1_000;
const COST: i64 = 500;
/// How long a request takes, and when one that was refused comes again.
const LASTS_MS: i64 = 400;
const AGAIN_MS: i64 = 200;
/// When a node asks again after [`Verdict::Recalling`].
const RECALLED_MS: i64 = 30;
const REPORT_MS: i64 = 1_000;

enum Event {
    Ask(usize),
    AskAt(usize, bool, Ask),
    Answered(usize, bool, Answer),
    Recalled(usize, Recall),
    ReportAt(usize, Report),
    Confirmed(usize, Report, Confirmed),
    Tick(usize),
    TopUp(usize, Ask),
    ToppedUp(usize, Answer),
    Ended(usize),
    Back(usize),
}

struct Node {
    holder: Holder,
    /// Requests that wait, and whether they ask.
    waiting: usize,
    asking: bool,
    alone: bool,
    reporting: bool,
    again: bool,
}

struct World {
    books: Books,
    budget: BudgetId,
    terms: Terms,
    nodes: Vec<Node>,
    now: i64,
    queue: BTreeMap<(i64, u64), Event>,
    count: u64,
    state: u64,
    /// The longest that a message takes.
    slow_ms: i64,
    served: i64,
    served_at: i64,
    refused: u64,
    asks: u64,
}

impl World {
    fn new(nodes: usize, waiting: usize, limit: i64, slow_ms: i64, seed: u64) -> Self {
        let (mut books, budget, terms) = (
            Books::default(),
            BudgetId::trusted("b"),
            Terms::money(NanoUsd(limit)),
        );
        let span = Span {
            start: UnixMillis(0),
            end: None,
        };
        books.put(&budget, &terms, span, 0, UnixMillis(0));
        let mut world = Self {
            books,
            budget,
            terms,
            nodes: Vec::new(),
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            state: seed,
            slow_ms,
            served: 0,
            served_at: 0,
            refused: 0,
            asks: 0,
        };
        for number in 0..nodes {
            let incarnation = Incarnation(number as u128 + 1);
            assert!(
                world
                    .books
                    .enlist(incarnation, &NodeId::trusted(format!("n{number}")), UnixMillis(0))
            );
            world.nodes.push(Node {
                holder: Holder::new(incarnation),
                waiting: 0,
                asking: false,
                alone: false,
                reporting: false,
                again: false,
            });
            for _ in 0..waiting {
                world.later(1, Event::Back(number));
            }
            world.later(REPORT_MS, Event::Tick(number));
        }
        world
    }

    fn later(&mut self, ms: i64, event: Event) {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let more = (self.state >> 33) as i64 % self.slow_ms;
        self.count += 1;
        self.queue.insert((self.now + ms + more, self.count), event);
    }

    fn run(&mut self, until: i64) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                return;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.step(event);
            assert_eq!(self.books.broken(), None);
        }
    }

    fn hold(&self, node: usize) -> Result<(), Short> {
        let amounts = |money| Amounts {
            money: NanoUsd(money),
            tokens: 1,
            requests: 1,
        };
        let level = Level {
            budget: &self.budget,
            terms: &self.terms,
            slice: self.nodes[node].holder.slices().get(&self.budget),
        };
        let claim = Claim {
            worst: amounts(HOLD),
            least: amounts(1),
        };
        hold(&[level], &claim, UnixMillis(self.now), Reach::Connected).map(|hold| {
            drop(hold.into_parts()); // settled when the request ends
        })
    }

    /// A request comes, or comes back.
    fn tries(&mut self, node: usize) {
        match self.hold(node) {
            Ok(()) => {
                (self.served, self.served_at) = (self.served + 1, self.now);
                self.later(LASTS_MS, Event::Ended(node));
            }
            Err(Short::Spent { .. }) => {
                self.refused += 1;
                self.later(AGAIN_MS, Event::Back(node));
            }
            Err(_) => {
                self.nodes[node].waiting += 1;
                if !std::mem::replace(&mut self.nodes[node].asking, true) {
                    self.later(0, Event::Ask(node));
                }
            }
        }
    }

    fn report(&mut self, node: usize) {
        let one = &mut self.nodes[node];
        if one.reporting {
            one.again = true;
            return;
        }
        (one.reporting, one.again) = (true, false);
        let report = one.holder.report(UnixMillis(self.now), 100);
        self.later(1, Event::ReportAt(node, report));
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Recall(recall) = effect {
                let node = recall.incarnation.0 as usize - 1;
                self.later(1, Event::Recalled(node, recall));
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now = UnixMillis(self.now);
        match event {
            Event::Ask(node) => {
                let waiting = self.nodes[node].waiting as i64;
                if waiting == 0 {
                    self.nodes[node].asking = false;
                    return;
                }
                let several = !self.nodes[node].alone && waiting > 1;
                let least = if several { waiting * HOLD } else { HOLD };
                let want = self.nodes[node].holder.slices().get(&self.budget).map_or_else(
                    || Want {
                        budget: self.budget.clone(),
                        epoch: Epoch(0),
                        seen: 0,
                        room: 0,
                        amount: 0,
                        least: 0,
                        urgent: true,
                        burn: 0,
                    },
                    |slice| {
                        let numbers = slice.numbers();
                        Want {
                            budget: numbers.budget,
                            epoch: numbers.epoch,
                            seen: numbers.granted,
                            room: numbers.room,
                            amount: 0,
                            least: 0,
                            urgent: true,
                            burn: numbers.burn,
                        }
                    },
                );
                let want = Want {
                    amount: least,
                    least,
                    ..want
                };
                self.asks += 1;
                let ask = self.nodes[node].holder.ask(vec![want]);
                self.later(1, Event::AskAt(node, several, ask));
            }
            Event::AskAt(node, several, ask) => {
                let (answer, effects) = self.books.grant(&ask, now);
                self.effects(effects);
                self.later(1, Event::Answered(node, several, answer));
            }
            Event::Answered(node, several, mut answer) => {
                let verdict = answer.verdict.clone();
                let split = several && matches!(verdict, Verdict::Exhausted(_));
                let one = &mut self.nodes[node];
                one.alone = split || (one.alone && matches!(verdict, Verdict::Recalling(_)));
                if split {
                    answer.verdict = Verdict::Recalling(self.budget.clone());
                }
                one.holder.take(&answer, now);
                match verdict {
                    _ if split => self.later(0, Event::Ask(node)),
                    Verdict::Granted | Verdict::Exhausted(_) => {
                        one.asking = false;
                        for _ in 0..std::mem::take(&mut one.waiting) {
                            self.tries(node);
                        }
                    }
                    Verdict::Recalling(_) => self.later(RECALLED_MS, Event::Ask(node)),
                    other => panic!("{other:?}"),
                }
            }
            Event::Recalled(node, recall) => {
                self.nodes[node].holder.recall(&recall);
                self.report(node);
            }
            Event::ReportAt(node, report) => {
                let (confirmed, effects) = self.books.settle(&report, now);
                self.effects(effects);
                self.later(1, Event::Confirmed(node, report, confirmed));
            }
            Event::Confirmed(node, report, confirmed) => {
                let one = &mut self.nodes[node];
                one.reporting = false;
                let brings = confirmed.grants.iter().any(|grant| {
                    let slice = one.holder.slice(&grant.budget, grant.epoch);
                    slice.is_some_and(|slice| slice.numbers().recall < grant.recall)
                });
                one.holder.confirmed(&report, &confirmed, now);
                if brings || one.again {
                    self.report(node);
                }
            }
            Event::Tick(node) => {
                self.report(node);
                for ask in self.nodes[node].holder.top_ups() {
                    self.later(1, Event::TopUp(node, ask));
                }
                self.later(REPORT_MS, Event::Tick(node));
            }
            Event::TopUp(node, ask) => {
                let (answer, effects) = self.books.grant(&ask, now);
                self.effects(effects);
                self.later(1, Event::ToppedUp(node, answer));
            }
            Event::ToppedUp(node, answer) => self.nodes[node].holder.take(&answer, now),
            Event::Ended(node) => {
                let slice = self.nodes[node]
                    .holder
                    .slices()
                    .get(&self.budget)
                    .unwrap()
                    .clone();
                slice.settle(HOLD, COST);
                self.tries(node);
            }
            Event::Back(node) => self.tries(node),
        }
    }
}

#[test]
fn the_last_of_a_budget_is_spent_however_many_nodes_want_it() {
    let limit = 400 * COST;
    for slow_ms in [2, 20, 200] {
        for seed in 0..8 {
            let mut world = World::new(8, 8, limit, slow_ms, seed);
            world.run(30_000);
            let left = limit - world.served * COST;
            println!(
                "messages take up to {slow_ms} ms, seed {seed}: {} served, the last after {} ms; {} asks, {} refusals",
                world.served, world.served_at, world.asks, world.refused
            );
            assert!(
                left < HOLD,
                "seed {seed}: {left} are left, and a request holds {HOLD}"
            );
        }
    }
}
