//! Writes and linearizable reads, from any replica.
//!
//! A call is bounded as a whole. It is tried again only while it is certain that nothing was proposed; a write that may have been
//! is [`ProposeFault::Timeout`], and its caller repeats it with the same idempotency key.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver as _;
use openraft::error::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use tokio::time::Instant;
use tollway_proto::codec::{self, Kind};
use tollway_proto::command::{Entry, Outcome, StoredEntry};
use tollway_shared::ids::ReplicaId;

use super::Cluster;
use super::message::{Answer, Ask, Call, Declined, Proposal, Proposed, Reply};
use super::network::TransportFault;
use super::types::Types;
use crate::state::budget;

/// How long a write or a barrier may take. Below the 5 s that the admin API promises, to leave room for its answer.
pub const PROPOSE_WITHIN: Duration = Duration::from_millis(4_000);
/// Largest command, in its stored form.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;
/// Waits between attempts that are known to have done nothing.
const BACKOFF_MS: [u64; 4] = [20, 30, 40, 50];
/// How long a follower that forwarded a write waits until it has applied it too.
const APPLIED_WAIT: Duration = Duration::from_millis(500);
/// How long the other replicas have to show that they live, once there was no leader for all of [`PROPOSE_WITHIN`].
const PROBE_WITHIN: Duration = Duration::from_millis(400);
/// How long a follower waits for the leader's read index before it asks again.
const READ_INDEX_WITHIN: Duration = Duration::from_millis(1_500);

/// Why a write or a barrier did not happen, or may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeFault {
    /// The leader cannot reach a majority. Nothing was written.
    #[error("the control plane has no majority of its replicas right now; nothing was written, try again")]
    NoQuorum,
    /// No leader is known, or it cannot be reached. Nothing was written.
    #[error("the control plane has no leader that can be reached right now; nothing was written, try again")]
    NoLeader,
    /// Proposed, and not confirmed in time: it may still take effect.
    #[error(
        "the write was not confirmed in time and may still take effect; repeat it with the same idempotency key"
    )]
    Timeout,
    /// This replica is stopping. Nothing was written.
    #[error("this replica is stopping; ask another one")]
    Stopping,
    /// Nothing was written, and trying again will not help.
    #[error("the command is larger than {ENTRY_BYTES_MAX} bytes")]
    TooLarge,
}

impl ProposeFault {
    /// Whether it is certain that nothing was written.
    pub fn nothing_written(self) -> bool {
        match self {
            Self::Timeout => false,
            Self::NoQuorum | Self::NoLeader | Self::Stopping | Self::TooLarge => true,
        }
    }
}

/// Whom to ask: another replica at its address, or `None` for this one.
type Leader = Option<(ReplicaId, String)>;

impl Cluster {
    /// Proposes a change and waits until it is applied. Bounded by [`PROPOSE_WITHIN`].
    ///
    /// The leader stamps the time; a follower forwards. An answer means that a majority has it on disk, and unless this replica
    /// lags by more than half a second, [`Cluster::state`] shows it.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeFault> {
        if codec::encode(Kind::Peer, &proposal).len() > ENTRY_BYTES_MAX {
            return Err(ProposeFault::TooLarge);
        }
        let attempt = |leader, within| self.propose_at(leader, proposal.clone(), within);
        let Proposed { outcome, index } = self.at_leader(attempt).await?;
        let mut applied = self.applied();
        // Whoever was answered wants to read it here; but a replica that lags must not hold up the answer for long.
        let _ = tokio::time::timeout(APPLIED_WAIT, applied.wait_for(|applied| *applied >= index)).await;
        Ok(outcome)
    }

    /// Waits until this replica has applied every write that was answered anywhere before the call: a linearizable read of
    /// [`Cluster::state`] may follow. Bounded by [`PROPOSE_WITHIN`].
    pub async fn barrier(&self) -> Result<(), ProposeFault> {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        // Weak: what waits for its turn must not keep a replica that has stopped.
        let replica = Arc::downgrade(&self.0);
        let reading = self.0.reads.next(async move {
            let replica = Self(replica.upgrade().ok_or(ProposeFault::Stopping)?);
            replica
                .at_leader(|leader, within| replica.read_index_at(leader, within))
                .await
        });
        let index = match tokio::time::timeout(PROPOSE_WITHIN + PROBE_WITHIN, reading).await {
            Ok(read) => read?,
            // The round before this one took its whole time too.
            Err(_) => return Err(ProposeFault::NoQuorum),
        };
        let mut applied = self.applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeFault::Stopping),
            Err(_) => Err(ProposeFault::NoLeader),
        }
    }

    /// Proposes at the replica that is said to lead.
    async fn propose_at(
        &self,
        leader: Leader,
        proposal: Proposal,
        within: Duration,
    ) -> Result<Proposed, Declined> {
        let Some((id, address)) = leader else {
            return self.propose_here(proposal, within).await;
        };
        let call = Call(Ask::Propose {
            proposal: Box::new(proposal),
            within_ms: within.as_millis() as u64,
        });
        match self.0.transport.call(id, &address, call, within).await {
            Ok(Reply(Answer::Propose(result))) => result,
            Ok(Reply(_)) | Err(TransportFault::Lost(_) | TransportFault::Late(_)) => Err(Declined::Unknown),
            Err(TransportFault::Unreachable(_) | TransportFault::Refused(_)) => {
                Err(Declined::NotLeader { leader: None })
            }
        }
    }

    /// Proposes at this replica only.
    pub(super) async fn propose_here(
        &self,
        proposal: Proposal,
        within: Duration,
    ) -> Result<Proposed, Declined> {
        let deadline = Instant::now() + within;
        self.begin_windows(&proposal.command, deadline).await?;
        self.write_here(proposal, deadline).await
    }

    /// Stamps and writes, if this replica leads.
    pub(super) async fn write_here(
        &self,
        mut proposal: Proposal,
        deadline: Instant,
    ) -> Result<Proposed, Declined> {
        if self.is_stopping() {
            return Err(Declined::Stopping);
        }
        let at = (self.0.now)();
        budget::stamp(&self.state(), &mut proposal.command, at);
        let entry = StoredEntry::V1(Entry {
            at,
            actor: proposal.actor,
            idempotency: proposal.idempotency,
            if_revision: proposal.if_revision,
            command: proposal.command,
        });
        match tokio::time::timeout_at(deadline, self.0.raft.client_write(entry)).await {
            Ok(Ok(response)) => {
                let index = response.log_id.index;
                let outcome = response.data.ok_or(Declined::Unknown)?;
                Ok(Proposed { outcome, index })
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(declined(&forward))
            }
            // Late, discarded by a new leader, or stopped underway: it may be in someone's log.
            Ok(Err(_)) | Err(_) => Err(Declined::Unknown),
        }
    }

    /// Asks the replica that is said to lead for the index that a linearizable read has to wait for.
    async fn read_index_at(&self, leader: Leader, within: Duration) -> Result<u64, Declined> {
        let within = within.min(READ_INDEX_WITHIN);
        let Some((id, address)) = leader else {
            let read = tokio::time::timeout(within, self.read_index_here());
            return read.await.unwrap_or(Err(Declined::NoQuorum));
        };
        match self
            .0
            .transport
            .call(id, &address, Call(Ask::ReadIndex), within)
            .await
        {
            Ok(Reply(Answer::ReadIndex(result))) => result,
            // A read may be repeated whatever became of it.
            Ok(_) | Err(_) => Err(Declined::NotLeader { leader: None }),
        }
    }

    /// The index that a linearizable read has to wait for, if this replica leads.
    pub(super) async fn read_index_here(&self) -> Result<u64, Declined> {
        if self.is_stopping() {
            return Err(Declined::Stopping);
        }
        match self.0.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _applied)) => Ok(read.log_id().index),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(declined(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(Declined::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(Declined::Stopping),
        }
    }

    /// Tries `attempt` at whoever leads (`None`: this replica) until it is done, may be done, or time is up.
    async fn at_leader<T, F>(&self, attempt: impl Fn(Leader, Duration) -> F) -> Result<T, ProposeFault>
    where
        F: Future<Output = Result<T, Declined>>,
    {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        let mut hint = None;
        let mut fault = ProposeFault::NoLeader;
        let mut backoff = BACKOFF_MS
            .into_iter()
            .chain(std::iter::repeat(BACKOFF_MS[BACKOFF_MS.len() - 1]));
        loop {
            if self.is_stopping() {
                return Err(ProposeFault::Stopping);
            }
            let within = deadline.saturating_duration_since(Instant::now());
            if within.is_zero() {
                return Err(match fault {
                    ProposeFault::NoLeader if !self.majority_answers().await => ProposeFault::NoQuorum,
                    other => other,
                });
            }
            if let Some(leader) = self.leader(hint.take()) {
                match attempt(leader, within).await {
                    Ok(done) => return Ok(done),
                    Err(Declined::Unknown) => return Err(ProposeFault::Timeout),
                    Err(Declined::NoQuorum) => fault = ProposeFault::NoQuorum,
                    // It knows better than we do: ask that one at once, the first time.
                    Err(Declined::NotLeader { leader }) => hint = leader,
                    Err(Declined::Stopping) => {}
                }
            }
            let wait = Duration::from_millis(backoff.next().unwrap_or(BACKOFF_MS[0]));
            tokio::time::sleep(wait.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Whether a majority of the voters, this replica among them, can be talked to right now: without one there is no leader to wait for.
    async fn majority_answers(&self) -> bool {
        let status = self.status();
        let voters: Vec<_> = status.members.into_iter().filter(|member| member.voter).collect();
        let asked = voters.iter().map(|voter| async move {
            if voter.id == self.0.id {
                return true;
            }
            let call =
                self.0
                    .transport
                    .call(voter.id, &voter.peer_address, Call(Ask::ReadIndex), PROBE_WITHIN);
            // Any answer will do: a refusal comes from a replica that lives.
            matches!(tokio::time::timeout(PROBE_WITHIN, call).await, Ok(Ok(_)))
        });
        let answered = join_all(asked).await.into_iter().filter(|alive| *alive).count();
        answered * 2 > voters.len()
    }

    /// Who leads, if anyone. A hint of another replica goes before what is known here.
    fn leader(&self, hint: Option<u64>) -> Option<Leader> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = hint.or(metrics.current_leader)?;
        if id == self.0.id.0 {
            return Some(None);
        }
        let member = metrics.membership_config.get_node(&id)?;
        Some(Some((ReplicaId(id), member.peer_address.clone())))
    }
}

/// Why the library wants someone else to do it. It says so only before it wrote anything.
pub(super) fn declined(forward: &ForwardToLeader<Types>) -> Declined {
    match forward.reason {
        ForwardReason::LeaseExpired => Declined::NoQuorum,
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => Declined::NotLeader {
            leader: forward.leader_id,
        },
    }
}
