//! Who is a member: making a cluster, adding and removing replicas, handing leadership over, and how everyone is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::error::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tollway_proto::command::Member;
use tollway_shared::ids::{ClusterId, ReplicaId};

use super::message::{Answer, Ask, Call, MembersAsk, Reply};
use super::types::Types;
use super::{Cluster, HANDOVER_WITHIN};

/// How long adding or removing a replica may take; a new one has to receive the whole state in that time.
pub const CHANGE_WITHIN: Duration = Duration::from_secs(120);
/// A new replica may vote once it is this close to the end of the log.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// The wait before a change that another one blocks is tried again.
const BLOCKED_WAIT: Duration = Duration::from_millis(50);

/// Why the members did not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MembersFault {
    /// This disk belongs to a cluster already.
    #[error("this replica is already part of a cluster")]
    AlreadyInitialized,
    /// No leader that can be reached, or leadership moved during the change.
    #[error("no leader could be reached to change the members; look at the cluster's status and try again")]
    NoLeader,
    /// The new replica did not catch up in time; it stays a member without a vote.
    #[error(
        "replica {id} did not catch up in time: it is {behind} entries behind; check that its peer address can be reached"
    )]
    NotCaughtUp {
        /// The replica.
        id: u64,
        /// How far it is behind.
        behind: u64,
    },
    /// Not confirmed in time.
    #[error("the change was not confirmed in time; look at the cluster's status before trying again")]
    Timeout,
    /// A cluster needs a voter.
    #[error("replica {0} is the only voter and cannot be removed")]
    LastVoter(u64),
    /// There is no such member.
    #[error("replica {0} is not a member")]
    NotFound(u64),
    /// The consensus library refused.
    #[error("{0}")]
    Refused(String),
    /// It was removed; its id is not used again.
    #[error("replica {0} was removed from this cluster; empty its data folder and join again")]
    Removed(u64),
    /// Nobody to hand over to.
    #[error("there is no other voter that could take over")]
    NoSuccessor,
}

/// How the cluster is, as this replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// The replica that was asked.
    pub replica: ReplicaId,
    /// Who leads, as far as it knows.
    pub leader: Option<ReplicaId>,
    /// The election term.
    pub term: u64,
    /// The last entry in its log; 0 when there is none.
    pub last_log: u64,
    /// The last entry it applied.
    pub applied: u64,
    /// Every member.
    pub members: Vec<MemberStatus>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: ReplicaId,
    /// `host:port` of Raft and push.
    pub peer_address: String,
    /// Base URL of its admin API.
    pub admin_url: String,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry that it is known to have. Only the leader knows.
    pub matched: Option<u64>,
}

impl Cluster {
    /// Makes a cluster of this replica alone. Once per cluster, on an empty disk.
    pub async fn init(&self, member: Member) -> Result<(), MembersFault> {
        let members = BTreeMap::from([(self.0.id.0, member)]);
        self.0
            .raft
            .initialize(members)
            .await
            .map_err(|fault| match fault {
                RaftError::APIError(InitializeError::NotAllowed(_)) => MembersFault::AlreadyInitialized,
                other => MembersFault::Refused(other.to_string()),
            })
    }

    /// Adds a replica: first without a vote, then, once it has caught up, with one. Forwarded to the leader; may be repeated. For
    /// a member it changes the addresses.
    pub async fn add_replica(&self, id: ReplicaId, member: Member) -> Result<(), MembersFault> {
        self.change(MembersAsk::Add { id: id.0, member }).await
    }

    /// Removes a replica for good; its id is not used again. Forwarded to the leader.
    pub async fn remove_replica(&self, id: ReplicaId) -> Result<(), MembersFault> {
        self.change(MembersAsk::Remove { id: id.0 }).await
    }

    /// Asks to be a voter: whoever leads, or else the members that were known when this replica joined. May be repeated.
    pub async fn enter(&self, seeds: &[(ReplicaId, String)], member: Member) -> Result<(), MembersFault> {
        let id = self.0.id.0;
        if self.known_leader().is_some() {
            return self.add_replica(ReplicaId(id), member).await;
        }
        let mut fault = MembersFault::NoLeader;
        for (seed, address) in seeds.iter().filter(|(seed, _)| seed.0 != id) {
            let ask = MembersAsk::Add {
                id,
                member: member.clone(),
            };
            let call = self
                .0
                .transport
                .call(*seed, address, Call(Ask::Members(ask)), CHANGE_WITHIN);
            match call.await {
                Ok(Reply(Answer::Members(Ok(())))) => return Ok(()),
                Ok(Reply(Answer::Members(Err(refused)))) => fault = refused,
                Ok(_) => fault = MembersFault::Timeout,
                Err(cause) => tracing::debug!(%seed, error = %cause, "a member could not be asked"),
            }
        }
        Err(fault)
    }

    async fn change(&self, ask: MembersAsk) -> Result<(), MembersFault> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        let leader = loop {
            match self.known_leader() {
                Some(leader) => break leader,
                None if Instant::now() >= deadline => return Err(MembersFault::NoLeader),
                None => tokio::time::sleep(BLOCKED_WAIT).await,
            }
        };
        let (id, member) = leader;
        if id == self.0.id {
            return match ask {
                MembersAsk::Add { id, member } => self.add_here(id, member).await,
                MembersAsk::Remove { id } => self.remove_here(id).await,
                MembersAsk::HandOver => self.hand_over_here().await,
            };
        }
        let within = deadline.saturating_duration_since(Instant::now());
        let call = self
            .0
            .transport
            .call(id, &member.peer_address, Call(Ask::Members(ask)), within);
        match call.await {
            Ok(Reply(Answer::Members(result))) => result,
            Ok(_) => Err(MembersFault::Timeout),
            Err(fault) => {
                tracing::info!(leader = %id, error = %fault, "a change of members could not be forwarded");
                Err(MembersFault::NoLeader)
            }
        }
    }

    /// Adds a replica, if this one leads.
    pub(super) async fn add_here(&self, id: u64, member: Member) -> Result<(), MembersFault> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        if !self.lets_in(ReplicaId(id)) {
            return Err(MembersFault::Removed(id));
        }
        if self.voters().contains(&id) {
            let members = BTreeMap::from([(id, member)]);
            return self
                .apply_change(ChangeMembers::SetNodes(members), true, deadline)
                .await;
        }
        let members = BTreeMap::from([(id, member)]);
        self.apply_change(ChangeMembers::AddNodes(members), true, deadline)
            .await?;
        self.wait_caught_up(id, deadline).await?;
        self.apply_change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true, deadline)
            .await
    }

    /// Removes a replica, if this one leads.
    pub(super) async fn remove_here(&self, id: u64) -> Result<(), MembersFault> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        let voters = self.voters();
        if voters.contains(&id) {
            if voters.len() == 1 {
                return Err(MembersFault::LastVoter(id));
            }
            let remove = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
            return self.apply_change(remove, false, deadline).await;
        }
        if self.member(id).is_none() {
            return Err(MembersFault::NotFound(id));
        }
        self.apply_change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false, deadline)
            .await
    }

    /// Whether a replica's certificate counts: it is a member, or may still become one. One that is being removed is a member until
    /// the change of members is committed.
    pub fn lets_in(&self, id: ReplicaId) -> bool {
        self.member(id.0).is_some() || !self.state().removed_replicas.contains(&id)
    }

    /// Has whoever leads hand over, and returns who leads then. The caller bounds the wait.
    pub async fn hand_over(&self) -> Result<ReplicaId, MembersFault> {
        let (from, _) = self.known_leader().ok_or(MembersFault::NoLeader)?;
        self.change(MembersAsk::HandOver).await?;
        let mut metrics = self.0.raft.metrics();
        loop {
            let leader = metrics.borrow_watched().current_leader;
            match leader {
                Some(id) if id != from.0 => return Ok(ReplicaId(id)),
                _ if metrics.changed().await.is_err() => return Err(MembersFault::NoLeader),
                _ => {}
            }
        }
    }

    /// Hands over, if this replica leads.
    pub(super) async fn hand_over_here(&self) -> Result<(), MembersFault> {
        if !self.is_leader() {
            return Err(MembersFault::NoLeader);
        }
        if self.successor().is_none() {
            return Err(MembersFault::NoSuccessor);
        }
        tokio::time::timeout(HANDOVER_WITHIN, self.transfer_leader())
            .await
            .map_err(|_| MembersFault::Timeout)
    }

    /// Hands leadership to the voter that is closest, if this replica leads and there is one; returns once another one leads.
    /// The caller bounds the wait.
    pub async fn transfer_leader(&self) {
        let Some(to) = self.successor() else { return };
        let mut metrics = self.0.raft.metrics();
        if self.0.raft.trigger().transfer_leader(to).await.is_err() {
            return;
        }
        loop {
            let leader = metrics.borrow_watched().current_leader;
            if leader.is_some_and(|leader| leader != self.0.id.0) || metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// How the cluster is, as this replica sees it.
    pub fn status(&self) -> ClusterStatus {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let matched = |id: u64| match &metrics.replication {
            Some(_) if id == self.0.id.0 => metrics.last_log_index,
            Some(followers) => followers.get(&id).copied().flatten().map(|at| at.index),
            None => None,
        };
        ClusterStatus {
            cluster: self.0.cluster.clone(),
            replica: self.0.id,
            leader: metrics.current_leader.map(ReplicaId),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |at| at.index),
            members: metrics
                .membership_config
                .nodes()
                .map(|(id, member)| MemberStatus {
                    id: ReplicaId(*id),
                    peer_address: member.peer_address.clone(),
                    admin_url: member.admin_url.clone(),
                    voter: voters.contains(id),
                    matched: matched(*id),
                })
                .collect(),
        }
    }

    /// Who leads and where, as far as this replica knows.
    pub fn known_leader(&self) -> Option<(ReplicaId, Member)> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        Some((ReplicaId(id), metrics.membership_config.get_node(&id)?.clone()))
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.0.raft.voter_ids().collect()
    }

    fn member(&self, id: u64) -> Option<Member> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&id).cloned()
    }

    /// The other voter that has most of the log, among those that answered lately.
    fn successor(&self) -> Option<u64> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let followers = metrics.replication.as_ref()?;
        let lately = Duration::from_millis(self.0.timings.election_timeout_ms);
        let heard = |id: &u64| {
            let acknowledged = metrics
                .heartbeat
                .as_ref()
                .and_then(|all| all.get(id).copied().flatten());
            acknowledged.is_some_and(|at| at.elapsed() < lately)
        };
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        followers
            .iter()
            .filter(|(id, _)| **id != self.0.id.0 && voters.contains(id) && heard(id))
            .max_by_key(|(_, matched)| **matched)
            .map(|(id, _)| *id)
    }

    /// Waits until a member without a vote has nearly the whole log. The library's own blocking add returns much earlier.
    async fn wait_caught_up(&self, id: u64, deadline: Instant) -> Result<(), MembersFault> {
        let mut metrics = self.0.raft.metrics();
        loop {
            let behind = {
                let now = metrics.borrow_watched();
                let Some(followers) = &now.replication else {
                    return Err(MembersFault::NoLeader);
                };
                let last = now.last_log_index.unwrap_or(0);
                let matched = followers.get(&id).copied().flatten().map(|at| at.index);
                let behind = matched.map_or(last + 1, |matched| last.saturating_sub(matched));
                if matched.is_some() && behind <= CAUGHT_UP_ENTRIES {
                    return Ok(());
                }
                behind
            };
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(MembersFault::NoLeader),
                Err(_) => return Err(MembersFault::NotCaughtUp { id, behind }),
            }
        }
    }

    async fn apply_change(
        &self,
        change: ChangeMembers<u64, Member>,
        retain: bool,
        deadline: Instant,
    ) -> Result<(), MembersFault> {
        loop {
            let applied = self.0.raft.change_membership(change.clone(), retain);
            let fault = match tokio::time::timeout_at(deadline, applied).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(fault)) => fault,
                Err(_) => return Err(MembersFault::Timeout),
            };
            if !blocked(&fault) {
                return Err(refused(fault));
            }
            if Instant::now() + BLOCKED_WAIT >= deadline {
                return Err(MembersFault::Timeout);
            }
            tokio::time::sleep(BLOCKED_WAIT).await;
        }
    }
}

type ChangeFault = RaftError<Types, ClientWriteError<Types>>;

/// Whether another change, or a term that has just begun, is in the way for a moment.
fn blocked(fault: &ChangeFault) -> bool {
    match fault {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(fault)) => matches!(
            fault,
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)
        ),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forward.leader_id.is_none(),
        _ => false,
    }
}

fn refused(fault: ChangeFault) -> MembersFault {
    match fault {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => MembersFault::NoLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembersFault::Timeout,
        other => MembersFault::Refused(other.to_string()),
    }
}
