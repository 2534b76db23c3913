//! The replicated log as the ledger sees it.

use std::sync::Arc;

use tollway_proto::command::{Command, Outcome, RecordSpend};

use super::consume::SpendLog;
use crate::raft::{Cluster, Proposal};
use crate::state::State;

impl SpendLog for Cluster {
    fn is_leader(&self) -> bool {
        Cluster::is_leader(self)
    }

    fn state(&self) -> Arc<State> {
        Cluster::state(self)
    }

    async fn propose(&self, spend: RecordSpend) -> Result<Outcome, String> {
        let proposal = Proposal::system(Command::RecordSpend(spend));
        Cluster::propose(self, proposal)
            .await
            .map_err(|fault| fault.to_string())
    }
}
