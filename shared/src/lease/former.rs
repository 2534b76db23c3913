//! Budgets that are leased no more, or no more in the same way, while nodes may still spend of their slices.
//!
//! A budget that is made again under the same id must not grant what is still out: its first window is opened as if that were spent,
//! together with what nodes have reported and nobody has counted yet. What nodes give back of it is free again then.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::book::Book;
use super::grantor::Books;
use super::message::Epoch;
use crate::budget::BudgetScope;
use crate::budget::terms::Unit;
use crate::ids::{BudgetId, ModelId, Revision};
use crate::time::{Day, UnixMillis};

/// A budget as it was when it was removed, with what its leases have done since.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Former {
    /// Its windows.
    pub account: Account,
    /// What the ledger had counted in the current one.
    pub counted: i64,
    /// Since when.
    pub since: UnixMillis,
    /// Which requests held on it, newest first.
    pub held: Vec<HeldBefore>,
}

/// Requests that held what they cost on a budget as it was until it changed or went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldBefore {
    /// Admitted under this snapshot revision and later ones,
    pub since: Revision,
    /// but before this one,
    pub until: Revision,
    /// and recorded on this UTC day or a later one: what is older was of a window before that of these leases.
    pub from: Day,
    /// What the budget limited.
    pub scope: BudgetScope,
    /// The model that it was about, if not all.
    pub model: Option<ModelId>,
}

/// What a new budget takes over from a former one of its id.
#[derive(Debug, Default)]
pub(super) struct Heritage {
    /// Windows that still take reports.
    pub(super) past: Vec<Book>,
    /// Those among them that are charged to the new one.
    pub(super) carries: BTreeSet<Epoch>,
    /// How much that is.
    pub(super) charged: i128,
    /// What was released and the ledger has not counted.
    pub(super) released: i128,
}

impl Former {
    /// What nodes have used of the current window and the ledger had not counted, or may still use.
    fn uncounted(&self) -> i128 {
        let book = &self.account.book;
        (book.settled - i128::from(self.counted)).max(0) + book.outstanding
    }

    /// Whether its window was over before `before`, or nothing has been out since then.
    pub fn is_over(&self, before: UnixMillis) -> bool {
        let book = &self.account.book;
        book.span.over(before) || (self.since < before && book.outstanding == 0)
    }
}

impl Books {
    /// Removes a budget. Nothing more is granted of it; what is out is remembered, in case it is made again.
    ///
    /// - `counted`: what the ledger has counted in its current window; `held`: which requests held on it.
    pub fn remove(&mut self, budget: &BudgetId, counted: i64, held: Vec<HeldBefore>, now: UnixMillis) {
        let Some(account) = self.accounts.remove(budget) else {
            return;
        };
        let former = Former {
            account: Account::clone(&account),
            counted,
            since: now,
            held,
        };
        if !former.account.book.leases.is_empty() || former.uncounted() > 0 {
            drop(self.former.insert(budget.clone(), Arc::new(former)));
        }
    }

    /// The unit of a budget that was removed and of which nodes may have slices: it cannot be made again in another.
    pub fn former_unit(&self, budget: &BudgetId, now: UnixMillis) -> Option<Unit> {
        let former = self.former.get(budget)?;
        (!former.account.book.span.over(now)).then_some(former.account.terms.unit)
    }

    /// Which requests held on a budget that was removed, while its window lasts.
    pub fn former_held(&self, budget: &BudgetId, now: UnixMillis) -> Vec<HeldBefore> {
        let former = self.former.get(budget);
        let former = former.filter(|former| !former.account.book.span.over(now));
        former.map(|former| former.held.clone()).unwrap_or_default()
    }

    /// What there is of a former budget, for the one that takes its place.
    pub(super) fn heritage(&mut self, budget: &BudgetId, unit: Unit, now: UnixMillis) -> Heritage {
        let Some(former) = self.former.remove(budget) else {
            return Heritage::default();
        };
        let account = &former.account;
        let past = account.rolled(now);
        // Slices of a window that is over are worth nothing any more.
        if account.terms.unit != unit || account.book.span.over(now) {
            return Heritage {
                past,
                ..Heritage::default()
            };
        }
        let is_kept = |epoch: &Epoch| past.iter().any(|book| book.epoch == *epoch);
        let epochs = std::iter::once(account.book.epoch).chain(account.carries.iter().copied());
        Heritage {
            carries: epochs.filter(is_kept).collect(),
            charged: former.uncounted(),
            released: account.book.released - account.book.ahead,
            past,
        }
    }

    /// A budget that takes reports.
    pub(super) fn known_mut(&mut self, budget: &BudgetId) -> Option<&mut Account> {
        if let Some(account) = self.accounts.get_mut(budget) {
            return Some(Arc::make_mut(account));
        }
        let former = self.former.get_mut(budget)?;
        Some(&mut Arc::make_mut(former).account)
    }

    /// Forgets former budgets that are over.
    pub(super) fn forget_former(&mut self, before: UnixMillis) {
        let gone: Vec<BudgetId> = self
            .former
            .iter()
            .filter(|(_, former)| former.is_over(before))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            drop(self.former.remove(&id));
        }
    }
}
