//! What is freed on the word of an operator, and what turns up of it after all.

use std::sync::Arc;

use super::grantor::Books;
use super::member::Standing;
use super::message::Effect;
use crate::ids::{BudgetId, Incarnation};
use crate::time::UnixMillis;

impl Books {
    /// Frees what a fenced incarnation has out, on the word of an operator that it has spent and will spend nothing more than it
    /// reported: its machine is gone, and the provider's own count agrees. If its spool turns up after all, that still counts.
    /// Says whether it was fenced.
    pub fn release(&mut self, incarnation: Incarnation, now: UnixMillis) -> bool {
        let Some(member) = self.members.get(&incarnation).cloned() else {
            return false;
        };
        if member.standing != Standing::Fenced {
            return member.standing == Standing::Released;
        }
        for budget in &member.leases {
            let Some(account) = self.known_mut(budget) else {
                continue;
            };
            account.release(incarnation);
        }
        self.set(incarnation, Standing::Released, now);
        true
    }

    /// The ledger has counted this much of a budget, in all: where something was released, at least that is settled.
    pub fn count(&mut self, budget: &BudgetId, counted: i64, now: UnixMillis) -> Vec<Effect> {
        match self.accounts.get_mut(budget) {
            Some(account) if account.book.released != 0 => {
                Arc::make_mut(account).book.count(counted.into());
                self.mend(budget, now)
            }
            _ => Vec::new(),
        }
    }

    /// Frees what is settled of a budget and was never used, on the word of an operator.
    pub fn free(&mut self, budget: &BudgetId, amount: i64) {
        if let Some(account) = self.accounts.get_mut(budget) {
            Arc::make_mut(account).book.release(amount);
        }
    }
}
