//! What a world is made of, what may happen in it, and how often.

use tollway_shared::budget::terms::Terms;
use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::holder::IDLE_MS;
use tollway_shared::lease::member::Standing;
use tollway_shared::lease::message::{Answer, Ask, Closing, Confirmed, Recall, Report};

use crate::plant::Planted;
use crate::world::{NAP_MS, World};

/// What is fixed.
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) budgets: Vec<(BudgetId, Terms)>,
    /// What the first budget's limit is changed to.
    pub(crate) changed_limit: i64,
    /// The worst case of a request, and what it costs in the end.
    pub(crate) worst: i64,
    pub(crate) costs: Vec<i64>,
    /// Requests of each node.
    pub(crate) requests: u8,
    pub(crate) chances: Chances,
    /// Whether nodes hear that a report was applied.
    pub(crate) confirms: bool,
    pub(crate) plant: Option<Planted>,
}

/// How often each thing may still happen.
#[derive(Debug, Clone, Default, Hash)]
pub(crate) struct Chances {
    pub(crate) crashes: u8,
    pub(crate) lost_disks: u8,
    pub(crate) repeats: u8,
    pub(crate) losses: u8,
    pub(crate) days: u8,
    pub(crate) limits: u8,
    pub(crate) fences: u8,
    pub(crate) naps: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Message {
    Ask(Ask),
    Answer(Answer),
    Report(Report),
    Confirm(Report, Confirmed),
    Recall(Recall),
    Closing(usize, Closing),
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Begin(usize),
    GiveUp(usize),
    Finish(usize, usize, i64),
    Report(usize),
    Crash { node: usize, disk_lost: bool },
    Start(usize),
    Fence(Incarnation),
    Release(Incarnation),
    Deliver(Message),
    Repeat(Message),
    Lose(Message),
    NextDay,
    Limit,
    Nap(i64),
}

impl World {
    /// Everything that may happen next.
    pub(crate) fn steps(&self, setup: &Setup) -> Vec<Step> {
        let mut steps = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            if node.running.is_none() {
                steps.push(Step::Start(n));
                continue;
            }
            if node.todo > 0 && node.tries == 0 {
                steps.push(Step::Begin(n));
            }
            let incarnation = node.incarnation().unwrap();
            let waits = |message: &Message| match message {
                Message::Ask(ask) => ask.incarnation == incarnation,
                Message::Answer(answer) => answer.incarnation == incarnation,
                _ => false,
            };
            if node.tries > 0 && !self.net.iter().any(waits) {
                steps.push(Step::GiveUp(n));
            }
            for (flight, _) in node.flights.iter().enumerate() {
                steps.extend(setup.costs.iter().map(|cost| Step::Finish(n, flight, *cost)));
            }
            let report = node.holder().unwrap().report(self.now, usize::MAX);
            if !report.lines.is_empty() && node.reported.as_ref() != Some(&report.lines) {
                steps.push(Step::Report(n));
            }
            if self.left.crashes > 0 {
                steps.push(Step::Crash {
                    node: n,
                    disk_lost: false,
                });
                if self.left.lost_disks > 0 {
                    steps.push(Step::Crash {
                        node: n,
                        disk_lost: true,
                    });
                }
            }
        }
        for message in &self.net {
            steps.push(Step::Deliver(message.clone()));
            if self.left.repeats > 0 {
                steps.push(Step::Repeat(message.clone()));
            }
            if self.left.losses > 0 {
                steps.push(Step::Lose(message.clone()));
            }
        }
        for (id, member) in &self.books.members {
            match member.standing {
                Standing::Live | Standing::Superseded if self.left.fences > 0 => steps.push(Step::Fence(*id)),
                Standing::Fenced if self.spends_nothing_more(*id) => steps.push(Step::Release(*id)),
                _ => {}
            }
        }
        if self.left.days > 0 {
            steps.push(Step::NextDay);
        }
        if self.left.limits > 0 {
            steps.push(Step::Limit);
        }
        if self.left.naps > 0 {
            steps.extend([Step::Nap(NAP_MS), Step::Nap(IDLE_MS)]);
        }
        steps
    }
}
