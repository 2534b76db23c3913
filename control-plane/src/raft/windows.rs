//! Windows of budgets: the leader begins those that are due before it writes anything that counts in them.
//!
//! In an entry of their own, so that every other entry stays as it is. Whoever finds windows due begins a batch of them; writers that
//! come meanwhile wait for that batch and not for one of their own.

use tokio::time::Instant;
use tollway_proto::command::Command;

use super::Cluster;
use super::message::{Declined, Proposal};
use crate::state::budget::{ROLLS_MAX, due};

/// Batches that one look begins at most. The rest waits for the next look.
const BATCHES_MAX: usize = 64;

impl Cluster {
    /// Begins what has to have begun before `command`, and some of the rest.
    pub(super) async fn begin_windows(&self, command: &Command, deadline: Instant) -> Result<(), Declined> {
        if matches!(command, Command::RollBudgets(_)) || !self.is_leader() {
            return Ok(());
        }
        let now = || (self.0.now)();
        if due(&self.state(), command, now()).is_empty() {
            return Ok(());
        }
        let turn = tokio::time::timeout_at(deadline, self.0.windows.lock());
        let late = Declined::NotLeader { leader: None };
        let Ok(_turn) = turn.await else {
            return Err(late);
        };
        // Whoever had the turn before may have begun them.
        let rolls = due(&self.state(), command, now());
        if rolls.is_empty() {
            return Ok(());
        }
        let proposal = Proposal::system(Command::RollBudgets(rolls));
        match self.write_here(proposal, deadline).await {
            Ok(_) => Ok(()),
            // Of the write itself nothing has been tried; windows that have begun twice have begun once.
            Err(Declined::Unknown) => Err(late),
            Err(declined) => Err(declined),
        }
    }

    /// Begins every window that is due, if this replica leads: for budgets of which nobody asks.
    pub async fn begin_due_windows(&self, deadline: Instant) {
        for _ in 0..BATCHES_MAX {
            let idle = Command::RollBudgets(Vec::new());
            let rolls = due(&self.state(), &idle, (self.0.now)());
            if rolls.is_empty() || !self.is_leader() {
                return;
            }
            let full = rolls.len() >= ROLLS_MAX;
            let proposal = Proposal::system(Command::RollBudgets(rolls));
            if self.write_here(proposal, deadline).await.is_err() || !full {
                return;
            }
        }
    }
}
