//! The consensus library's types for our entries, and their stored form.
//!
//! What is on disk and between replicas is spelled out here as our own structs: a new version of the library may change its types,
//! never our bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, LogId, Membership, StoredMembership, Vote};
use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, Kind};
use tollway_proto::command::{Member, Outcome, StoredEntry};

openraft::declare_raft_types!(
    /// What the consensus library is told about us. A membership or blank entry has no outcome.
    pub Types:
        D = StoredEntry,
        R = Option<Outcome>,
        NodeId = u64,
        Node = Member,
);

pub(super) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(super) type LogIdOf = LogId<LeaderId>;
pub(super) type VoteOf = Vote<LeaderId>;
pub(super) type EntryOf = openraft::Entry<LeaderId, EntryPayload<StoredEntry, u64, Member>>;
pub(super) type MembershipOf = Membership<u64, Member>;
pub(super) type StoredMembershipOf = StoredMembership<LeaderId, u64, Member>;

/// Where an entry is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) term: u64,
    pub(super) leader: u64,
    pub(super) index: u64,
}

impl From<LogIdOf> for Position {
    fn from(id: LogIdOf) -> Self {
        Self {
            term: id.leader_id.term,
            leader: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<Position> for LogIdOf {
    fn from(at: Position) -> Self {
        LogId::new(LeaderId::new(at.term, at.leader), at.index)
    }
}

/// Whom a replica voted for, or follows once it is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ballot {
    pub(super) term: u64,
    pub(super) leader: u64,
    pub(super) elected: bool,
}

impl From<VoteOf> for Ballot {
    fn from(vote: VoteOf) -> Self {
        Self {
            term: vote.leader_id.term,
            leader: vote.leader_id.node_id,
            elected: vote.committed,
        }
    }
}

impl From<Ballot> for VoteOf {
    fn from(ballot: Ballot) -> Self {
        Vote {
            leader_id: LeaderId::new(ballot.term, ballot.leader),
            committed: ballot.elected,
        }
    }
}

/// Who votes (one set, or two during a change) and where everyone is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Members {
    pub(super) voters: Vec<BTreeSet<u64>>,
    pub(super) members: BTreeMap<u64, Member>,
}

impl From<&MembershipOf> for Members {
    fn from(membership: &MembershipOf) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }
}

impl TryFrom<Members> for MembershipOf {
    type Error = io::Error;

    fn try_from(stored: Members) -> Result<Self, io::Error> {
        if stored.voters.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(stored.voters, stored.members).map_err(damaged)
    }
}

/// A membership and the entry that brought it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembersAt {
    pub(super) at: Option<Position>,
    pub(super) members: Members,
}

impl From<&StoredMembershipOf> for MembersAt {
    fn from(stored: &StoredMembershipOf) -> Self {
        Self {
            at: stored.log_id().map(Into::into),
            members: stored.membership().into(),
        }
    }
}

impl TryFrom<MembersAt> for StoredMembershipOf {
    type Error = io::Error;

    fn try_from(stored: MembersAt) -> Result<Self, io::Error> {
        Ok(StoredMembership::new(
            stored.at.map(Into::into),
            stored.members.try_into()?,
        ))
    }
}

/// What an entry carries.
#[expect(clippy::large_enum_variant, reason = "nearly every entry is a command")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Payload {
    /// A new leader's first entry.
    Blank,
    /// A change of the replicated state.
    Command(StoredEntry),
    /// A change of who is a member.
    Members(Members),
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogEntry {
    pub(super) at: Position,
    pub(super) payload: Payload,
}

impl From<&EntryOf> for LogEntry {
    fn from(entry: &EntryOf) -> Self {
        Self {
            at: entry.log_id.into(),
            payload: match &entry.payload {
                EntryPayload::Blank => Payload::Blank,
                EntryPayload::Normal(command) => Payload::Command(command.clone()),
                EntryPayload::Membership(membership) => Payload::Members(membership.into()),
            },
        }
    }
}

impl TryFrom<LogEntry> for EntryOf {
    type Error = io::Error;

    fn try_from(entry: LogEntry) -> Result<Self, io::Error> {
        Ok(EntryOf {
            log_id: entry.at.into(),
            payload: match entry.payload {
                Payload::Blank => EntryPayload::Blank,
                Payload::Command(command) => EntryPayload::Normal(command),
                Payload::Members(members) => EntryPayload::Membership(members.try_into()?),
            },
        })
    }
}

/// A log entry on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StoredLogEntry {
    V1(LogEntry),
}

/// The log's own values on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StoredMeta {
    Vote(Ballot),
    Committed(Option<Position>),
    Purged(Position),
}

pub(super) fn encode_entry(entry: &EntryOf) -> Vec<u8> {
    codec::encode(Kind::LogEntry, &StoredLogEntry::V1(entry.into()))
}

pub(super) fn decode_entry(bytes: &[u8]) -> io::Result<EntryOf> {
    let StoredLogEntry::V1(entry) = codec::decode(Kind::LogEntry, bytes).map_err(damaged)?;
    entry.try_into()
}

/// The stored form of a log entry with a command; without one, of a leader's first.
pub fn log_entry_bytes(term: u64, leader: u64, index: u64, command: Option<StoredEntry>) -> Vec<u8> {
    let at = Position { term, leader, index };
    let payload = command.map_or(Payload::Blank, Payload::Command);
    codec::encode(Kind::LogEntry, &StoredLogEntry::V1(LogEntry { at, payload }))
}

/// A stored log entry in words: for people who look into a log, and for the suite that keeps old bytes readable.
pub fn log_entry_text(bytes: &[u8]) -> io::Result<String> {
    let stored: StoredLogEntry = codec::decode(Kind::LogEntry, bytes).map_err(damaged)?;
    Ok(format!("{stored:#?}"))
}

pub(super) fn encode_meta(meta: &StoredMeta) -> Vec<u8> {
    codec::encode(Kind::RaftMeta, meta)
}

pub(super) fn decode_meta(bytes: &[u8]) -> io::Result<StoredMeta> {
    codec::decode(Kind::RaftMeta, bytes).map_err(damaged)
}

/// An error about bytes that are not what was written.
pub(super) fn damaged(fault: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault.to_string())
}
