//! The control plane's side: who has how much of which budget.
//!
//! Pure and deterministic: it is part of the replicated state, and each public function that changes it is one command's worth.
//! `now` is the leader's stamp. It decides only how long a silent node is waited for and which raises have expired; no unit of
//! money is ever freed because time has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::account::{Account, COUNTER_MAX, grantable, merge};
use super::book::{Book, Lease};
use super::former::Former;
use super::member::{Member, Standing, holders, live};
use super::message::{
    Answer, Ask, Closing, Confirmed, Effect, Epoch, GRANTS_MAX, Grant, Recall, Report, Verdict, WANTS_MAX,
};
use super::size;
use crate::budget::terms::{Mode, Terms};
use crate::ids::{BudgetId, Incarnation, NodeId};
use crate::time::UnixMillis;
use crate::window::{Span, WindowFault};

/// A window that has begun, for [`Books::roll`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The budget.
    pub budget: BudgetId,
    /// Its new window.
    pub span: Span,
}

/// Every leased budget, and every holder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Books {
    /// Hard and clamping budgets.
    pub accounts: OrdMap<BudgetId, Arc<Account>>,
    /// Budgets that were removed, or are soft now, while nodes may have slices of them.
    pub former: OrdMap<BudgetId, Arc<Former>>,
    /// Incarnations of nodes.
    pub members: OrdMap<Incarnation, Arc<Member>>,
    /// The last epoch that was handed out.
    pub last_epoch: u64,
}

impl Books {
    /// Makes a budget or changes its terms. Another limit holds at once: raised, there is more to grant; lowered under what is
    /// out, nothing is granted until enough has come back, and holders are told to. Another unit or cycle starts a new window.
    ///
    /// Nodes may still spend what they had of a budget of this id that was removed, or had another cycle; the new window is opened as if
    /// they had (see [`super::former`]).
    ///
    /// - `span`: the window around `now` by the terms' cycle; `carried`: what that window has spent before it had leases.
    /// - A soft budget has no account: there is nothing to lease.
    pub fn put(
        &mut self,
        budget: &BudgetId,
        terms: &Terms,
        span: Span,
        carried: i64,
        now: UnixMillis,
    ) -> Vec<Effect> {
        if terms.mode == Mode::Soft {
            self.remove(budget, carried, Vec::new(), now);
            return Vec::new();
        }
        let same = |old: &Arc<Account>| old.terms.unit == terms.unit && old.terms.cycle == terms.cycle;
        match self.accounts.get_mut(budget) {
            Some(account) if same(account) => {
                let account = Arc::make_mut(account);
                account.terms = terms.clone();
                // A limit of its own makes the thresholds news again.
                if account.book.limit != terms.limit_at(now) {
                    account.book.told = 0;
                }
                account.refresh(now);
                return self.mend(budget, now);
            }
            Some(_) => self.remove(budget, carried, Vec::new(), now),
            None => {}
        }
        let former = self.heritage(budget, terms.unit, now);
        self.last_epoch += 1;
        let carried = former.charged.saturating_add(i128::from(carried));
        let mut book = Book::open(
            Epoch(self.last_epoch),
            span,
            terms.limit_at(now),
            i64::try_from(carried).map_or(COUNTER_MAX, |carried| carried.clamp(0, COUNTER_MAX)),
        );
        book.released = former.released;
        let account = Account {
            terms: terms.clone(),
            book,
            past: former.past,
            carries: former.carries,
        };
        drop(self.accounts.insert(budget.clone(), Arc::new(account)));
        self.alert(budget).into_iter().collect()
    }

    /// For the leader, before it proposes: the windows of these budgets that are over at `now`. They go into the same command.
    pub fn due<'a>(
        &self,
        budgets: impl IntoIterator<Item = &'a BudgetId>,
        now: UnixMillis,
    ) -> Result<Vec<Roll>, WindowFault> {
        let accounts = budgets
            .into_iter()
            .filter_map(|id| Some((id, self.accounts.get(id)?)));
        let over = accounts.filter(|(_, account)| account.book.span.over(now));
        over.map(|(budget, account)| {
            let (budget, span) = (budget.clone(), account.terms.cycle.span(now)?);
            Ok(Roll { budget, span })
        })
        .collect()
    }

    /// Starts the next window, with the whole limit free; a lease of the old one stays with the old one. One that has begun
    /// before the current one ends is not the next.
    pub fn roll(&mut self, roll: &Roll, now: UnixMillis) {
        let Some(account) = self.accounts.get_mut(&roll.budget) else {
            return;
        };
        if !account.book.span.over(roll.span.start) {
            return;
        }
        self.last_epoch += 1;
        let account = Arc::make_mut(account);
        account.roll(Epoch(self.last_epoch), roll.span, now);
    }

    /// A node has started. Its former incarnations get nothing any more. Says whether this one may ask.
    pub fn enlist(&mut self, incarnation: Incarnation, node: &NodeId, now: UnixMillis) -> bool {
        if let Some(known) = self.members.get(&incarnation) {
            return known.standing == Standing::Live && known.node == *node;
        }
        let former = |member: &Member| member.node == *node && member.standing == Standing::Live;
        self.stand(former, Standing::Superseded, now);
        let member = Member {
            node: node.clone(),
            standing: Standing::Live,
            since: now,
            leases: BTreeSet::new(),
            untold: BTreeSet::new(),
        };
        drop(self.members.insert(incarnation, Arc::new(member)));
        true
    }

    /// Grants every level of an ask, or none.
    pub fn grant(&mut self, ask: &Ask, now: UnixMillis) -> (Answer, Vec<Effect>) {
        let mut effects = Vec::new();
        let verdict = self.verdict(ask, now, &mut effects);
        let mut grants = Vec::new();
        for want in ask.wants.iter().take(WANTS_MAX) {
            if verdict == Verdict::Fenced {
                break;
            }
            let Some(account) = self.accounts.get_mut(&want.budget) else {
                continue;
            };
            let nodes = holders(&self.members, &account.book, ask.incarnation);
            let mut short = false;
            if verdict == Verdict::Granted {
                short = Arc::make_mut(account).lease_out(ask.incarnation, want, nodes);
                if let Some(member) = self.members.get_mut(&ask.incarnation).map(Arc::make_mut) {
                    member.leases.insert(want.budget.clone());
                    member.untold.insert(want.budget.clone());
                }
            }
            let mut shown = account.shown(&want.budget, ask.incarnation, short);
            // Before it is refused a node spends its own reserve: what is free may be too little without it.
            shown.open |= verdict == Verdict::Exhausted(want.budget.clone());
            grants.push(shown);
        }
        let answer = Answer {
            incarnation: ask.incarnation,
            serial: ask.serial,
            verdict,
            grants,
        };
        (answer, effects)
    }

    fn verdict(&mut self, ask: &Ask, now: UnixMillis, effects: &mut Vec<Effect>) -> Verdict {
        let member = self.members.get(&ask.incarnation);
        if member.is_none_or(|member| member.standing != Standing::Live) {
            return Verdict::Fenced;
        }
        for want in ask.wants.iter().take(WANTS_MAX) {
            let Some(account) = self.accounts.get_mut(&want.budget) else {
                return Verdict::Unknown(want.budget.clone());
            };
            Arc::make_mut(account).refresh(now);
            let book = &account.book;
            let lease = book.leases.get(&ask.incarnation).cloned().unwrap_or_default();
            let least = i128::from(size::lack(book, &lease, want).least);
            let missing = least - grantable(book, &lease);
            if least == 0 || missing <= 0 {
                continue;
            }
            if size::recallable(book, ask.incarnation, live(&self.members), now) < missing {
                return Verdict::Exhausted(want.budget.clone());
            }
            effects.extend(self.recall(&want.budget, ask.incarnation, missing, now));
            return Verdict::Recalling(want.budget.clone());
        }
        Verdict::Granted
    }

    /// Tells the holders with most to spare to give back.
    fn recall(
        &mut self,
        budget: &BudgetId,
        asker: Incarnation,
        missing: i128,
        now: UnixMillis,
    ) -> Vec<Effect> {
        let Some(account) = self.accounts.get_mut(budget) else {
            return Vec::new();
        };
        let book = &mut Arc::make_mut(account).book;
        let amounts = size::recalls(book, asker, live(&self.members), missing, now);
        let mut effects = Vec::new();
        for (incarnation, amount) in amounts {
            let mut recall = 0;
            book.line(incarnation, |lease| {
                if lease.obeyed >= lease.recall {
                    lease.recalled_at = now;
                }
                (lease.recall, lease.recall_amount) = (lease.recall + 1, amount);
                recall = lease.recall;
            });
            if let Some(member) = self.members.get_mut(&incarnation) {
                Arc::make_mut(member).untold.insert(budget.clone());
            }
            effects.push(Effect::Recall(Recall {
                incarnation,
                budget: budget.clone(),
                epoch: book.epoch,
                recall,
                amount,
            }));
        }
        effects
    }

    /// After money has moved or a limit changed: recalls what is out above the limit, and tells who has to know.
    pub(super) fn mend(&mut self, budget: &BudgetId, now: UnixMillis) -> Vec<Effect> {
        let short = self.accounts.get(budget).map_or(0, |account| -account.book.free);
        let nobody = Incarnation(0);
        let mut effects = if short > 0 {
            self.recall(budget, nobody, short, now)
        } else {
            Vec::new()
        };
        effects.extend(self.alert(budget));
        effects
    }

    fn alert(&mut self, budget: &BudgetId) -> Option<Effect> {
        let account = self.accounts.get_mut(budget)?;
        let percent = account
            .terms
            .threshold(account.book.settled, account.book.limit)?;
        if percent <= account.book.told {
            return None;
        }
        Arc::make_mut(account).book.told = percent;
        Some(Effect::Crossed {
            budget: budget.clone(),
            span: account.book.span,
            percent,
        })
    }

    /// Merges a report. Old ones, repeated ones and those of closed incarnations change nothing.
    pub fn settle(&mut self, report: &Report, now: UnixMillis) -> (Confirmed, Vec<Effect>) {
        let mut effects = Vec::new();
        let mut confirmed = Confirmed {
            incarnation: report.incarnation,
            serial: report.serial,
            live: false,
            grants: Vec::new(),
        };
        let known = self.members.get(&report.incarnation);
        let Some(member) = known.filter(|member| member.standing != Standing::Closed) else {
            return (confirmed, effects);
        };
        confirmed.live = member.standing == Standing::Live;
        let released = member.standing == Standing::Released;
        for line in &report.lines {
            let counters = [line.spent, line.returned, line.seen, line.held, line.recall];
            if counters
                .iter()
                .any(|counter| !(0..=COUNTER_MAX).contains(counter))
            {
                continue;
            }
            let Some(account) = self.known_mut(&line.budget) else {
                continue;
            };
            account.refresh(now);
            let merged = account.change(line.epoch, |book| {
                // Who was granted nothing has nothing to report.
                let has_lease = book.leases.contains_key(&report.incarnation);
                if has_lease {
                    let before = book.settled;
                    book.line(report.incarnation, |lease| merge(lease, line, report.serial, now));
                    if released {
                        book.overtake(book.settled - before);
                    }
                }
                has_lease
            });
            if merged == Some(true) {
                effects.extend(self.mend(&line.budget, now));
            }
        }
        confirmed.grants = self.untold(report.incarnation);
        (confirmed, effects)
    }

    /// Charges what was used of a budget by requests that held nothing on its leases.
    pub fn charge(&mut self, budget: &BudgetId, amount: i64, now: UnixMillis) -> Vec<Effect> {
        let Some(account) = self.accounts.get_mut(budget).filter(|_| amount > 0) else {
            return Vec::new();
        };
        let account = Arc::make_mut(account);
        account.refresh(now);
        account.book.uncarry(-i128::from(amount));
        self.mend(budget, now)
    }

    /// Leases of which a holder has not heard everything.
    fn untold(&mut self, incarnation: Incarnation) -> Vec<Grant> {
        let Some(member) = self.members.get_mut(&incarnation) else {
            return Vec::new();
        };
        let mut grants = Vec::new();
        let mut told = Vec::new();
        for budget in member.untold.iter().take(GRANTS_MAX) {
            let account = self.accounts.get(budget);
            let lease = account.and_then(|account| account.book.leases.get(&incarnation));
            match account.filter(|_| lease.is_some_and(Lease::untold)) {
                Some(account) => grants.push(account.shown(budget, incarnation, false)),
                None => told.push(budget.clone()),
            }
        }
        if !told.is_empty() {
            let member = Arc::make_mut(member);
            member.untold.retain(|budget| !told.contains(budget));
        }
        grants
    }

    /// Ends an incarnation whose whole spend is known; only its own node may say so. Says whether it is closed now.
    pub fn close(&mut self, closing: &Closing, by: &NodeId, now: UnixMillis) -> (bool, Vec<Effect>) {
        let incarnation = closing.incarnation;
        let Some(member) = self.members.get(&incarnation).filter(|member| member.node == *by) else {
            return (false, Vec::new());
        };
        if member.standing == Standing::Closed {
            return (true, Vec::new());
        }
        let released = member.standing == Standing::Released;
        let mut spent = BTreeMap::new();
        for line in &closing.lines {
            let known: &mut i64 = spent.entry((&line.budget, line.epoch)).or_default();
            *known = (*known).max(line.spent.clamp(0, COUNTER_MAX));
        }
        let named = closing.lines.iter().map(|line| line.budget.clone());
        let budgets: BTreeSet<BudgetId> = member.leases.iter().cloned().chain(named).collect();
        let mut effects = Vec::new();
        for budget in &budgets {
            let Some(account) = self.known_mut(budget) else {
                continue;
            };
            account.refresh(now);
            for epoch in account.epochs() {
                let spent = spent.get(&(budget, epoch)).copied().unwrap_or(0);
                account.change(epoch, |book| {
                    let before = book.settled;
                    book.fold(incarnation, spent, closing.doubtful);
                    if released {
                        book.overtake(book.settled - before);
                    }
                });
            }
            effects.extend(self.alert(budget));
        }
        self.set(incarnation, Standing::Closed, now);
        (true, effects)
    }

    /// Declares an incarnation dead: it gets nothing any more. What it has out stays charged. Says whether there is one.
    pub fn fence(&mut self, incarnation: Incarnation, now: UnixMillis) -> bool {
        let standing = self.members.get(&incarnation).map(|member| member.standing);
        if let Some(Standing::Live | Standing::Superseded) = standing {
            self.set(incarnation, Standing::Fenced, now);
        }
        standing.is_some()
    }

    /// A node is taken out of the cluster: all its incarnations are fenced.
    pub fn remove_node(&mut self, node: &NodeId, now: UnixMillis) {
        let running = |member: &Member| {
            member.node == *node && matches!(member.standing, Standing::Live | Standing::Superseded)
        };
        self.stand(running, Standing::Fenced, now);
    }

    /// Forgets incarnations that were closed or released before `before`. Messages of theirs must not be on their way any more: days, not
    /// minutes. What a released one reported stays settled; a spool of it that turns up later still is what the ledger counts, and changes
    /// no lease.
    pub fn forget(&mut self, before: UnixMillis) {
        let gone: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.is_over(before))
            .map(|(id, member)| (*id, member.leases.clone()))
            .collect();
        for (incarnation, leases) in gone {
            for budget in &leases {
                let Some(account) = self.known_mut(budget) else {
                    continue;
                };
                for epoch in account.epochs() {
                    account.change(epoch, |book| book.fold(incarnation, 0, false));
                }
            }
            drop(self.members.remove(&incarnation));
        }
        self.forget_former(before);
    }

    fn stand(&mut self, which: impl Fn(&Member) -> bool, standing: Standing, now: UnixMillis) {
        let found: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| which(member))
            .map(|(id, _)| *id)
            .collect();
        for incarnation in found {
            self.set(incarnation, standing, now);
        }
    }

    pub(super) fn set(&mut self, incarnation: Incarnation, standing: Standing, now: UnixMillis) {
        if let Some(member) = self.members.get_mut(&incarnation) {
            let member = Arc::make_mut(member);
            (member.standing, member.since) = (standing, now);
            if standing == Standing::Closed {
                member.leases.clear();
                member.untold.clear();
            }
        }
    }

    /// What does not hold, if anything: conservation in every window, and no lease without a holder.
    pub fn broken(&self) -> Option<String> {
        let accounts = self.accounts.iter().map(|(id, account)| (id, &**account));
        let former = self.former.iter().map(|(id, former)| (id, &former.account));
        for (budget, account) in accounts.chain(former) {
            for book in std::iter::once(&account.book).chain(&account.past) {
                let known = |id: &Incarnation| {
                    self.members
                        .get(id)
                        .is_some_and(|member| member.standing != Standing::Closed)
                };
                let orphan = book.leases.keys().find(|id| !known(id));
                let orphan = orphan.map(|id| format!("{id} has a lease and is not a member"));
                if let Some(text) = book.broken().or(orphan) {
                    return Some(format!("{budget}, epoch {}: {text}", book.epoch.0));
                }
            }
        }
        None
    }
}
