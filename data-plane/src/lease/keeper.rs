//! The one task that owns a node's leases: it enlists, asks, reports, obeys recalls, and has what is over closed.
//!
//! Everything that takes time is a `Step` among `steps`, so nothing waits for anything else. Asks of requests that wait for the
//! same budgets go together; when all of them together are refused, the one that wants least asks alone, so that nobody is refused
//! for what others want.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tollway_proto::lease::{LINES_MAX, LeaseAnswer, LeaseCall};
use tollway_shared::ids::{BudgetId, Incarnation};
use tollway_shared::lease::holder::Holder;
use tollway_shared::lease::message::{Answer, Ask, Closing, Confirmed, Recall, Report, Verdict, Want};
use tollway_shared::time::UnixMillis;

use super::desk::{Desk, Inbox, Lines, Waiting};
use super::link::{Call, CallFault};
use super::past::Past;
use super::written::Written;
use super::{inherit, journal};
use crate::metrics::{LEASE_ASKS_TOTAL, LEASE_CONNECTED, LEASE_SLICES};
use crate::plane::Dice;
use crate::usage::Track;

/// How often slices are reported and checkpoints are written.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long a message that no request waits for may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an ask that requests wait for may take.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// When money is on its way back from other nodes: how soon to ask again.
const RECALLED_AFTER: Duration = Duration::from_millis(30);
/// When an ask found nobody: how soon to try again, at least and at most.
const AGAIN_AFTER_MS: (u64, u64) = (50, 150);
/// Time without any answer after which the control plane counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(3);
/// Top-ups of one moment; a slice that is left out is asked for when it is short, or a second later.
const TOP_UPS_AT_ONCE_MAX: usize = 32;
/// Reports of one moment; what does not fit into them comes with the next.
const REPORTS_AT_ONCE_MAX: usize = 32;
/// Budgets that are remembered to be no more.
const GONE_MAX: usize = 1_024;
/// How long the end may take to tell the control plane what was spent.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The journals.
    pub folder: PathBuf,
    /// The usage spool.
    pub spool: PathBuf,
}

/// What earlier lives left: to be read before the usage spool is opened.
#[derive(Debug)]
pub struct Inheritance {
    boot: String,
    closings: Vec<Closing>,
    /// Held for as long as the process keeps leases here.
    lock: File,
}

impl Inheritance {
    /// Reads journals and spool. Errors: the disk, or another process that keeps leases here; then the spool must not be opened,
    /// because recovery removes it.
    pub fn read(places: &Places) -> io::Result<Self> {
        let lock = journal::lock(&places.folder)?;
        let boot = inherit::boot();
        let closings = inherit::closings(&places.folder, &places.spool, &boot)?;
        Ok(Self { boot, closings, lock })
    }
}

type Heard = Result<LeaseAnswer, CallFault>;

/// What came of something that takes time.
enum Step {
    Enlisted(Incarnation, Heard),
    /// For the requests that wait for these budgets; whether it was for several of them.
    Asked(Vec<BudgetId>, bool, Ask, Heard),
    /// Nobody waits for it.
    ToppedUp(Heard),
    Reported(Report, Heard),
    Closed(Incarnation, Heard),
    /// The requests that wait for these budgets may ask again.
    Due(Vec<BudgetId>),
}

/// What is under way for the incarnation in use.
#[derive(Debug, Default)]
struct Busy {
    enlisted: bool,
    enlisting: bool,
    /// Reports under way.
    reporting: usize,
    /// There was something to report while a report was under way.
    report_again: bool,
}

/// The task.
pub struct Keeper {
    call: Call,
    clock: fn() -> UnixMillis,
    desk: Desk,
    inbox: Inbox,
    holder: Holder,
    written: Written,
    past: Past,
    busy: Busy,
    /// Top-ups under way.
    topping_up: usize,
    /// Budgets that are no more: one of them would spoil a top-up for all others in it.
    gone: BTreeSet<BudgetId>,
    lines: Lines,
    heard_at: Instant,
    renewed_at: Instant,
    dice: Dice,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    _lock: File,
}

impl Keeper {
    /// Begins a new incarnation, on disk.
    pub fn new(
        places: Places,
        inheritance: Inheritance,
        track: Track,
        call: Call,
        clock: fn() -> UnixMillis,
    ) -> io::Result<(Self, Desk)> {
        let holder = Holder::new(mint());
        let (desk, inbox) = Desk::new(holder.incarnation());
        let folder = places.folder;
        let written = Written::begin(folder.clone(), inheritance.boot, track, desk.clone(), &holder)?;
        let keeper = Self {
            past: Past::new(folder, call.clone(), inheritance.closings),
            call,
            clock,
            desk: desk.clone(),
            inbox,
            holder,
            written,
            busy: Busy::default(),
            topping_up: 0,
            gone: BTreeSet::new(),
            lines: Lines::new(),
            heard_at: Instant::now(),
            renewed_at: Instant::now(),
            dice: Dice::seeded(),
            steps: FuturesUnordered::new(),
            _lock: inheritance.lock,
        };
        Ok((keeper, desk))
    }

    /// Runs until `stop`, which must come after the last request has ended; then tells what was spent.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(waiting) = self.inbox.waiting.recv() => self.waits(waiting),
                Some(recall) = self.inbox.recalls.recv() => self.recalled(&recall),
                _ = ticks.tick() => self.tick(),
                Some(step) = self.steps.next() => self.step(step),
            }
        }
        let until = Instant::now() + END_PATIENCE;
        let written = self.written;
        self.past.end(&self.holder, until, || written.release()).await;
    }

    fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    fn send(&self, call: LeaseCall, patience: Duration, then: impl FnOnce(Heard) -> Step + Send + 'static) {
        self.steps.push((self.call)(call, patience).map(then).boxed());
    }

    fn tick(&mut self) {
        if self.holder.fenced() {
            self.renew();
        }
        self.written.checkpoint(&self.holder, self.past.is_settled());
        self.enlist();
        self.report();
        self.top_up();
        self.past.close();
        for (incarnation, call) in self.past.tell() {
            let told = call.map(move |answer| Step::Closed(incarnation, answer));
            self.steps.push(told.boxed());
        }
        gauge!(LEASE_SLICES).set(self.holder.slices().len() as f64);
    }

    fn enlist(&mut self) {
        if self.busy.enlisted || self.busy.enlisting {
            return;
        }
        self.busy.enlisting = true;
        let incarnation = self.holder.incarnation();
        let call = LeaseCall::Enlist(incarnation);
        self.send(call, PATIENCE, move |answer| Step::Enlisted(incarnation, answer));
    }

    /// This incarnation gets nothing any more: another one begins, but not more often than once a tick.
    fn renew(&mut self) {
        if self.renewed_at.elapsed() < REPORT_EVERY / 2 {
            return;
        }
        self.renewed_at = Instant::now();
        let holder = Holder::new(mint());
        match self.written.renew(&holder) {
            Ok(()) => {
                tracing::warn!(incarnation = %self.holder.incarnation(), "these leases are fenced; the node goes on under another incarnation");
                self.past.push(std::mem::replace(&mut self.holder, holder));
                self.busy = Busy::default();
            }
            Err(fault) => tracing::error!(error = %fault, "another incarnation cannot be written down"),
        }
    }

    fn waits(&mut self, waiting: Waiting) {
        let budgets: Vec<_> = waiting.wants.iter().map(|want| want.budget.clone()).collect();
        let line = self.lines.entry(budgets.clone()).or_default();
        line.push(waiting);
        if !line.busy {
            self.ask(budgets);
        }
    }

    fn ask(&mut self, budgets: Vec<BudgetId>) {
        let Some(line) = self.lines.get_mut(&budgets) else {
            return;
        };
        let Some((wants, several)) = line.wants() else {
            self.lines.remove(&budgets);
            return;
        };
        line.busy = true;
        if !self.busy.enlisted {
            return self.again(budgets);
        }
        let wants = wants.into_iter().map(|want| self.holder.renewed(want)).collect();
        let ask = self.holder.ask(wants);
        counter!(LEASE_ASKS_TOTAL).increment(1);
        let call = LeaseCall::Ask(ask.clone());
        self.send(call, ASK_PATIENCE, move |answer| {
            Step::Asked(budgets, several, ask, answer)
        });
    }

    /// Later, because nobody can be asked now.
    fn again(&self, budgets: Vec<BudgetId>) {
        let (least, most) = AGAIN_AFTER_MS;
        let wait = least + self.dice.bits() % (most - least);
        self.due(budgets, Duration::from_millis(wait));
    }

    fn due(&self, budgets: Vec<BudgetId>, after: Duration) {
        self.steps.push(sleep(after).map(|()| Step::Due(budgets)).boxed());
    }

    fn recalled(&mut self, recall: &Recall) {
        self.holder.recall(recall);
        self.report();
    }

    fn report(&mut self) {
        if self.busy.reporting > 0 || !self.busy.enlisted {
            self.busy.report_again = self.busy.reporting > 0;
            return;
        }
        let all = self.holder.report(self.now(), LINES_MAX * REPORTS_AT_ONCE_MAX);
        // One without lines has an answer too, which may bring what was lost.
        let count = all.lines.len().div_ceil(LINES_MAX).max(1);
        (self.busy.reporting, self.busy.report_again) = (count, false);
        let mut lines = all.lines.into_iter();
        for _ in 0..count {
            let report = Report {
                incarnation: all.incarnation,
                serial: all.serial,
                lines: lines.by_ref().take(LINES_MAX).collect(),
            };
            let call = LeaseCall::Report(report.clone());
            self.send(call, PATIENCE, move |answer| Step::Reported(report, answer));
        }
    }

    fn top_up(&mut self) {
        if self.topping_up > 0 || !self.busy.enlisted {
            return;
        }
        for mut ask in self.holder.top_ups().into_iter().take(TOP_UPS_AT_ONCE_MAX) {
            ask.wants.retain(|want| !self.gone.contains(&want.budget));
            if !ask.wants.is_empty() {
                self.topping_up += 1;
                self.send(LeaseCall::Ask(ask), PATIENCE, Step::ToppedUp);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enlisted(incarnation, answer) => self.enlisted(incarnation, answer),
            Step::Asked(budgets, several, ask, answer) => self.asked(budgets, several, &ask, answer),
            Step::ToppedUp(answer) => {
                self.topping_up = self.topping_up.saturating_sub(1);
                if let Some(LeaseAnswer::Answer(answer)) = self.heard(answer) {
                    self.take(&[], &answer);
                }
            }
            Step::Reported(report, answer) => {
                let confirmed = self.heard(answer);
                if report.incarnation == self.holder.incarnation() {
                    self.reported(&report, confirmed);
                }
            }
            Step::Closed(incarnation, answer) => {
                let foreign = answer == Err(CallFault::Foreign);
                let closed = matches!(self.heard(answer), Some(LeaseAnswer::Closed { .. }));
                self.past.told(incarnation, closed || foreign);
            }
            Step::Due(budgets) => self.ask(budgets),
        }
    }

    fn enlisted(&mut self, incarnation: Incarnation, answer: Heard) {
        let foreign = answer == Err(CallFault::Foreign);
        let answer = self.heard(answer);
        if incarnation != self.holder.incarnation() {
            return;
        }
        self.busy.enlisting = false;
        if let Some(LeaseAnswer::Enlisted { live: true, .. }) = answer {
            tracing::info!(%incarnation, "enlisted for leases");
            self.busy.enlisted = true;
        } else if foreign || answer.is_some() {
            self.renew();
        }
    }

    fn reported(&mut self, report: &Report, answer: Option<LeaseAnswer>) {
        self.busy.reporting = self.busy.reporting.saturating_sub(1);
        let Some(LeaseAnswer::Confirmed(confirmed)) = answer else {
            return;
        };
        let obeyed = self.brings_recall(&confirmed);
        self.holder.confirmed(report, &confirmed, self.now());
        self.written.publish_new(&self.holder, &confirmed.grants);
        if obeyed || self.busy.report_again {
            self.report(); // there is more to say
        }
    }

    /// Whether there is a recall that has not been obeyed: the next report says that it is.
    fn brings_recall(&self, confirmed: &Confirmed) -> bool {
        confirmed.grants.iter().any(|grant| {
            let slice = self.holder.slice(&grant.budget, grant.epoch);
            slice.is_some_and(|slice| slice.numbers().recall < grant.recall)
        })
    }

    fn asked(&mut self, budgets: Vec<BudgetId>, several: bool, ask: &Ask, answer: Heard) {
        let answer = self.heard(answer);
        let Some(line) = self.lines.get_mut(&budgets) else {
            return;
        };
        if ask.incarnation != self.holder.incarnation() {
            return self.ask(budgets);
        }
        let Some(LeaseAnswer::Answer(mut answer)) = answer else {
            return self.again(budgets);
        };
        let verdict = answer.verdict.clone();
        let split = several && matches!(verdict, Verdict::Exhausted(_));
        // While money is on its way to one of them, the others do not ask in between.
        line.alone = split || (line.alone && matches!(verdict, Verdict::Recalling(_)));
        if let (true, Some(want)) = (split, ask.wants.first()) {
            // True of all of them together; what one of them may have is asked next.
            answer.verdict = Verdict::Recalling(want.budget.clone());
        }
        self.take(&ask.wants, &answer);
        let gone = match verdict {
            _ if split => return self.ask(budgets),
            Verdict::Granted | Verdict::Exhausted(_) => None,
            Verdict::Unknown(budget) => Some(budget),
            Verdict::Recalling(_) => return self.due(budgets, RECALLED_AFTER),
            Verdict::Fenced => {
                self.renew();
                self.enlist();
                return self.again(budgets);
            }
        };
        // Whoever came in the meantime is told as well, and holds or asks again.
        if let Some(mut line) = self.lines.remove(&budgets) {
            match gone {
                Some(budget) => line.tell_gone(&budget),
                None => line.tell_again(self.holder.slices()),
            }
        }
    }

    /// - `wants`: what was asked for, if a request waits for it.
    fn take(&mut self, wants: &[Want], answer: &Answer) {
        if let Verdict::Unknown(budget) = &answer.verdict {
            if self.gone.len() >= GONE_MAX {
                self.gone.clear();
            }
            self.gone.insert(budget.clone());
        }
        for grant in &answer.grants {
            self.gone.remove(&grant.budget);
        }
        self.holder.take_for(wants, answer, self.now());
        self.written.publish_new(&self.holder, &answer.grants);
    }

    /// What an answer says about the control plane itself.
    fn heard(&mut self, answer: Heard) -> Option<LeaseAnswer> {
        if !matches!(answer, Err(CallFault::Unanswered(_))) {
            self.heard_at = Instant::now();
        }
        let lost = self.heard_at.elapsed() >= LOST_AFTER;
        self.desk.set_lost(lost);
        gauge!(LEASE_CONNECTED).set(f64::from(u8::from(!lost)));
        match answer {
            Ok(answer) => Some(answer),
            Err(CallFault::Unanswered(reason)) => {
                tracing::debug!(%reason, "a message about leases has no answer");
                None
            }
            Err(fault) => {
                tracing::error!(%fault, "a message about leases was refused");
                None
            }
        }
    }
}

fn mint() -> Incarnation {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    Incarnation(u128::from_be_bytes(bytes))
}
