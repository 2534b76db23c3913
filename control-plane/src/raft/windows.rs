//! Windows of budgets: the leader begins those that are due before it writes anything that counts in them.
//!
//! In entries of their own, so that every other entry stays as it is. Whoever finds a window due that it counts in begins a batch of them;
//! writers that come meanwhile find theirs begun, or begin the next batch.

use tokio::time::Instant;
use tollway_proto::command::Command;

use super::Cluster;
use super::message::{Declined, Proposal};
use crate::state::budget::{ROLLS_MAX, due, has_expired_raise};

/// Batches that one look begins at most. The rest waits for the next look, or for the next try of the write.
const BATCHES_MAX: usize = 64;

impl Cluster {
    /// Begins what has to have begun before `command`.
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
        for _ in 0..BATCHES_MAX {
            // Whoever had the turn before may have begun them.
            let rolls = due(&self.state(), command, now());
            if rolls.is_empty() {
                return Ok(());
            }
            let proposal = Proposal::system(Command::RollBudgets(rolls));
            match self.write_here(proposal, deadline).await {
                Ok(_) => {}
                // Of the write itself nothing has been tried; windows that have begun twice have begun once.
                Err(Declined::Unknown) => return Err(late),
                Err(declined) => return Err(declined),
            }
        }
        Err(late)
    }

    /// Begins every window that is due and ends every raise that is over, if this replica leads: for budgets of which nobody asks.
    pub async fn begin_due_windows(&self, deadline: Instant) {
        for _ in 0..BATCHES_MAX {
            let idle = Command::RollBudgets(Vec::new());
            let (state, now) = (self.state(), (self.0.now)());
            let rolls = due(&state, &idle, now);
            // Raises end with any entry.
            if (rolls.is_empty() && !has_expired_raise(&state, now)) || !self.is_leader() {
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
