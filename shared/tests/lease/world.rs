//! One grantor, some nodes, the messages between them and the provider's own count; every step from one state to the next.
//!
//! The grantor is the product's [`Books`], a node the product's [`Holder`] and [`hold`]. A message may wait for ever, come in any order,
//! come again, or be lost. The spool is what a node's disk knows: holds are in it whole before they are used.

use std::collections::{BTreeMap, BTreeSet};

use tollway_shared::budget::terms::Terms;
use tollway_shared::ids::{BudgetId, Incarnation, NodeId};
use tollway_shared::lease::grantor::Books;
use tollway_shared::lease::hold::{Amounts, Claim, Level, Short, hold};
use tollway_shared::lease::holder::{Holder, HolderNumbers};
use tollway_shared::lease::member::Standing;
use tollway_shared::lease::message::{
    Answer, Ask, ClosedLine, Closing, Effect, Epoch, Line, Recall, Report, Verdict,
};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::time::{DAY_MS, UnixMillis};

use crate::plant::{self, Planted};
use crate::steps::{Chances, Message, Setup, Step};

/// Asks for one request before its node answers 503.
const TRIES_MAX: u8 = 3;
/// Longer than a node goes by "there is no more", and than a recall is waited for.
pub(crate) const NAP_MS: i64 = 3_000;

/// A window of a budget.
pub(crate) type Place = (BudgetId, Epoch);

/// A request that was sent to the provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Flight(pub(crate) Vec<(Place, i64)>);

#[derive(Debug, Clone, Hash)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) running: Option<HolderNumbers>,
    pub(crate) lives: u8,
    pub(crate) flights: Vec<Flight>,
    /// What each life spent, open holds whole: the truth.
    pub(crate) spool: BTreeMap<Incarnation, BTreeMap<Place, i64>>,
    /// Former lives of which the disk still has it.
    pub(crate) readable: BTreeSet<Incarnation>,
    pub(crate) todo: u8,
    /// Asks of the request that waits; 0 = none waits.
    pub(crate) tries: u8,
    pub(crate) reported: Option<Vec<Line>>,
}

#[derive(Debug, Clone, Hash)]
pub(crate) struct World {
    pub(crate) now: UnixMillis,
    pub(crate) books: Books,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: BTreeSet<Message>,
    /// What the provider counted.
    pub(crate) spent: BTreeMap<Place, i64>,
    /// The highest limit that was in force.
    pub(crate) ceiling: BTreeMap<Place, i64>,
    pub(crate) left: Chances,
    /// Whether nodes hear that a report was applied.
    pub(crate) confirms: bool,
}

impl Node {
    pub(crate) fn holder(&self) -> Option<Holder> {
        self.running.as_ref().map(Holder::at)
    }

    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.holder().map(|holder| holder.incarnation())
    }
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let node = |number: usize| Node {
            id: NodeId::trusted(format!("n{number}")),
            running: None,
            lives: 0,
            flights: Vec::new(),
            spool: BTreeMap::new(),
            readable: BTreeSet::new(),
            todo: setup.requests,
            tries: 0,
            reported: None,
        };
        let mut world = Self {
            now: UnixMillis(DAY_MS / 2),
            books: Books::default(),
            nodes: (0..setup.nodes).map(node).collect(),
            net: BTreeSet::new(),
            spent: BTreeMap::new(),
            ceiling: BTreeMap::new(),
            left: setup.chances.clone(),
            confirms: setup.confirms,
        };
        for (id, terms) in &setup.budgets {
            let span = terms.cycle.span(world.now).unwrap();
            world.books.put(id, terms, span, 0, world.now);
        }
        for node in 0..setup.nodes {
            world.start(setup, node);
        }
        world.note();
        world
    }

    /// The next state, or the promise that the step itself broke.
    pub(crate) fn step(&mut self, setup: &Setup, step: &Step) -> Result<(), String> {
        match step {
            Step::Begin(n) => self.attempt(setup, *n),
            Step::GiveUp(n) => self.give_up(*n),
            Step::Finish(n, flight, cost) => self.finish(*n, *flight, *cost)?,
            Step::Report(n) => self.report(*n),
            Step::Crash { node, disk_lost } => {
                self.left.crashes -= 1;
                self.left.lost_disks -= u8::from(*disk_lost);
                self.crash(*node, *disk_lost);
            }
            Step::Start(n) => self.start(setup, *n),
            Step::Fence(id) => {
                self.left.fences -= 1;
                self.books.fence(*id, self.now);
                if setup.plant == Some(Planted::FenceFrees) {
                    self.books.release(*id, self.now);
                }
            }
            Step::Release(id) => {
                self.books.release(*id, self.now);
            }
            Step::Deliver(message) => {
                self.net.remove(message);
                self.deliver(setup, message)?;
            }
            Step::Repeat(message) => {
                self.left.repeats -= 1;
                self.deliver(setup, message)?;
            }
            Step::Lose(message) => {
                self.left.losses -= 1;
                self.net.remove(message);
            }
            Step::NextDay => {
                self.left.days -= 1;
                self.now = self.now.plus_ms(DAY_MS);
            }
            Step::Limit => {
                self.left.limits -= 1;
                self.change_limit(setup);
            }
            Step::Nap(ms) => {
                self.left.naps -= 1;
                self.now = self.now.plus_ms(*ms);
            }
        }
        self.note();
        self.forget();
        Ok(())
    }

    /// Messages to an incarnation that does not run any more can do nothing: states that differ only in them are one.
    fn forget(&mut self) {
        let running: BTreeSet<_> = self.nodes.iter().filter_map(Node::incarnation).collect();
        self.net.retain(|message| match message {
            Message::Answer(Answer { incarnation, .. })
            | Message::Confirm(Report { incarnation, .. }, _)
            | Message::Recall(Recall { incarnation, .. }) => running.contains(incarnation),
            Message::Ask(_) | Message::Report(_) | Message::Closing(..) => true,
        });
    }

    fn note(&mut self) {
        for (id, account) in &self.books.accounts {
            let most = self.ceiling.entry((id.clone(), account.book.epoch)).or_insert(0);
            *most = (*most).max(account.book.limit);
        }
    }

    fn change_limit(&mut self, setup: &Setup) {
        let (id, terms) = &setup.budgets[0];
        let terms = Terms {
            limit: setup.changed_limit,
            ..terms.clone()
        };
        let span = self.books.accounts.get(id).unwrap().book.span;
        if setup.plant == Some(Planted::LowerForgets) {
            // As if the budget were new: what is out is not subtracted.
            let spent = self.books.accounts.get(id).unwrap().book.settled;
            let mut account = (**self.books.accounts.get(id).unwrap()).clone();
            account.terms = terms;
            account.book.set_limit(setup.changed_limit);
            account.book.free = i128::from(setup.changed_limit) - spent;
            drop(self.books.accounts.insert(id.clone(), account.into()));
            return;
        }
        let effects = self.books.put(id, &terms, span, 0, self.now);
        self.effects(effects);
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if let Effect::Recall(recall) = effect {
                self.net.insert(Message::Recall(recall));
            }
        }
    }

    /// The node's request tries to get its hold.
    pub(crate) fn attempt(&mut self, setup: &Setup, n: usize) {
        let mut holder = self.nodes[n].holder().unwrap();
        let amounts = |amount: i64| Amounts {
            money: NanoUsd(amount),
            tokens: amount,
            requests: 1,
        };
        let mut claim = Claim {
            worst: amounts(setup.worst),
            least: amounts(1),
        };
        let named: Vec<_> = setup
            .budgets
            .iter()
            .map(|(id, _)| (id, self.books.accounts.get(id).unwrap()))
            .collect();
        let levels: Vec<Level<'_>> = named
            .iter()
            .map(|(budget, account)| Level {
                budget,
                terms: &account.terms,
                slice: holder.slices().get(*budget),
            })
            .collect();
        let mut held = hold(&levels, &claim, self.now, Reach::Connected);
        if let Err(Short::Clamp(most)) = &held {
            claim.worst = *most;
            held = hold(&levels, &claim, self.now, Reach::Connected);
        }
        let node = &mut self.nodes[n];
        match held {
            Ok(hold) => {
                let spool = node.spool.entry(holder.incarnation()).or_default();
                let mut flight = Vec::new();
                for part in hold.into_parts() {
                    let place = (part.slice.budget.clone(), part.slice.epoch);
                    *spool.entry(place.clone()).or_default() += part.amount;
                    flight.push((place, part.amount));
                }
                node.flights.push(Flight(flight));
                (node.tries, node.todo) = (0, node.todo.saturating_sub(1));
            }
            Err(Short::Lease(wants)) if node.tries < TRIES_MAX => {
                node.tries += 1;
                self.net.insert(Message::Ask(holder.ask(wants)));
            }
            Err(_) => (node.tries, node.todo) = (0, node.todo.saturating_sub(1)),
        }
        self.nodes[n].running = Some(holder.numbers());
    }

    fn give_up(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.tries, node.todo) = (0, node.todo.saturating_sub(1));
    }

    /// A request ends at this cost, or at its hold if that is less: it is capped.
    pub(crate) fn finish(&mut self, n: usize, flight: usize, cost: i64) -> Result<(), String> {
        let node = &mut self.nodes[n];
        let holder = node.holder().unwrap();
        let Flight(parts) = node.flights.remove(flight);
        for (place, amount) in parts {
            let cost = cost.min(amount);
            let slice = holder.slice(&place.0, place.1);
            slice
                .ok_or("a slice was dropped under a hold")?
                .settle(amount, cost);
            *node
                .spool
                .get_mut(&holder.incarnation())
                .unwrap()
                .get_mut(&place)
                .unwrap() -= amount - cost;
            *self.spent.entry(place).or_default() += cost;
        }
        node.running = Some(holder.numbers());
        Ok(())
    }

    pub(crate) fn report(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let mut holder = node.holder().unwrap();
        let report = holder.report(self.now, usize::MAX);
        node.running = Some(holder.numbers());
        node.reported = Some(report.lines.clone());
        self.net.insert(Message::Report(report));
    }

    /// The process is gone. What it had in flight costs the whole hold: the provider never heard of it.
    fn crash(&mut self, n: usize, disk_lost: bool) {
        let node = &mut self.nodes[n];
        for Flight(parts) in std::mem::take(&mut node.flights) {
            for (place, amount) in parts {
                *self.spent.entry(place).or_default() += amount;
            }
        }
        let incarnation = node.incarnation().unwrap();
        if disk_lost {
            node.readable.clear();
        } else {
            node.readable.insert(incarnation);
        }
        (node.running, node.reported) = (None, None);
        node.tries = 0;
    }

    /// The node runs again, and says what its former lives spent.
    pub(crate) fn start(&mut self, setup: &Setup, n: usize) {
        let node = &mut self.nodes[n];
        node.lives += 1;
        let incarnation = Incarnation((n as u128 + 1) * 100 + u128::from(node.lives));
        assert!(self.books.enlist(incarnation, &node.id, self.now));
        node.running = Some(Holder::new(incarnation).numbers());
        if setup.plant == Some(Planted::NeverCloses) {
            return;
        }
        for former in &node.readable {
            let lines = node.spool.get(former).into_iter().flatten();
            let mut closing = Closing {
                incarnation: *former,
                lines: lines
                    .map(|((budget, epoch), spent)| ClosedLine {
                        budget: budget.clone(),
                        epoch: *epoch,
                        spent: *spent,
                    })
                    .collect(),
                doubtful: false,
            };
            if setup.plant == Some(Planted::ForgetsSpool) {
                plant::forget_spool(&mut closing);
            }
            self.net.insert(Message::Closing(n, closing));
        }
    }

    /// Whether an operator who says that an incarnation spends nothing more than it reported is right.
    pub(crate) fn spends_nothing_more(&self, id: Incarnation) -> bool {
        let running = self.nodes.iter().any(|node| node.incarnation() == Some(id));
        let spool = self.nodes.iter().find_map(|node| node.spool.get(&id));
        let reported = |(place, spent): (&Place, &i64)| {
            let account = self.books.accounts.get(&place.0).unwrap();
            let book = std::iter::once(&account.book)
                .chain(&account.past)
                .find(|book| book.epoch == place.1);
            book.is_none_or(|book| book.leases.get(&id).map_or(0, |lease| lease.spent) == *spent)
        };
        !running && spool.into_iter().flatten().all(reported)
    }

    fn deliver(&mut self, setup: &Setup, message: &Message) -> Result<(), String> {
        match message {
            Message::Ask(ask) => self.asked(setup, ask)?,
            Message::Report(report) => {
                let mut report = report.clone();
                match setup.plant {
                    Some(Planted::ReportsAdd) => plant::add(&self.books, &mut report),
                    Some(Planted::WrongWindow) => plant::wrong_window(&self.books, &mut report),
                    Some(Planted::ForgetsClosed) => {
                        let node = NodeId::trusted("forgotten");
                        let member = self.books.members.get(&report.incarnation);
                        if member.is_some_and(|member| member.standing == Standing::Closed) {
                            drop(self.books.members.remove(&report.incarnation));
                            self.books.enlist(report.incarnation, &node, self.now);
                        }
                    }
                    _ => {}
                }
                let (confirmed, effects) = self.books.settle(&report, self.now);
                self.effects(effects);
                if self.confirms {
                    self.net.insert(Message::Confirm(report, confirmed));
                }
            }
            Message::Closing(n, closing) => {
                let node = self.nodes[*n].id.clone();
                let (closed, effects) = self.books.close(closing, &node, self.now);
                if closed {
                    self.nodes[*n].readable.remove(&closing.incarnation);
                }
                self.effects(effects);
            }
            Message::Answer(answer) => {
                let Some(n) = self.node_of(answer.incarnation) else {
                    return Ok(());
                };
                let mut answer = answer.clone();
                if setup.plant == Some(Planted::AnswersAdd) {
                    plant::add_grants(&self.nodes[n], &mut answer);
                }
                if setup.plant == Some(Planted::RevivesSlice) {
                    answer.serial = u64::MAX;
                }
                let mut holder = self.nodes[n].holder().unwrap();
                holder.take(&answer, self.now);
                self.nodes[n].running = Some(holder.numbers());
                if self.nodes[n].tries > 0 {
                    self.attempt(setup, n);
                }
            }
            Message::Recall(recall) => {
                let Some(n) = self.node_of(recall.incarnation) else {
                    return Ok(());
                };
                let before = self.nodes[n].clone();
                let mut holder = before.holder().unwrap();
                holder.recall(recall);
                self.nodes[n].running = Some(holder.numbers());
                self.report(n);
                if setup.plant == Some(Planted::KeepsRecalled) {
                    self.nodes[n] = before;
                }
            }
            Message::Confirm(report, confirmed) => {
                if let Some(n) = self.node_of(report.incarnation) {
                    let mut holder = self.nodes[n].holder().unwrap();
                    holder.confirmed(report, confirmed, self.now);
                    self.nodes[n].running = Some(holder.numbers());
                }
            }
        }
        Ok(())
    }

    fn node_of(&self, incarnation: Incarnation) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.incarnation() == Some(incarnation))
    }

    fn asked(&mut self, setup: &Setup, ask: &Ask) -> Result<(), String> {
        let rolls = self
            .books
            .due(ask.wants.iter().map(|want| &want.budget), self.now)
            .unwrap();
        for roll in rolls {
            self.books.roll(&roll, self.now);
        }
        let out = |books: &Books| {
            books
                .accounts
                .values()
                .map(|account| account.book.outstanding)
                .collect::<Vec<_>>()
        };
        let before = out(&self.books);
        if setup.plant == Some(Planted::HalfPath) {
            for want in &ask.wants {
                let wants = vec![want.clone()];
                self.books.grant(&Ask { wants, ..ask.clone() }, self.now);
            }
        }
        let (answer, effects) = self.books.grant(ask, self.now);
        let after = out(&self.books);
        if answer.verdict != Verdict::Granted && before != after {
            return Err(format!(
                "half a path: {:?}, and {before:?} is out, then {after:?}",
                answer.verdict
            ));
        }
        for (account, (before, after)) in self.books.accounts.values().zip(before.iter().zip(&after)) {
            if after > before && account.book.free < 0 {
                return Err(format!("overspend: {} is free after a grant", account.book.free));
            }
        }
        self.effects(effects);
        self.net.insert(Message::Answer(answer));
        Ok(())
    }

    /// Delivers until nothing is under way.
    pub(crate) fn deliver_all(&mut self, setup: &Setup) -> Result<(), String> {
        for _ in 0..10_000 {
            let Some(message) = self.net.first().cloned() else {
                return Ok(());
            };
            self.net.remove(&message);
            self.deliver(setup, &message)?;
            self.note();
        }
        Err("messages go on for ever".into())
    }

    pub(crate) fn nap(&mut self, ms: i64) {
        self.now = self.now.plus_ms(ms);
    }
}
