//! What replicas say to each other, and its stored form.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tollway_proto::codec::{self, CodecFault, Kind};
use tollway_proto::command::{Command, Idempotency, Member, Outcome};
use tollway_shared::ids::Revision;

use super::members::MembersFault;
use super::types::{Ballot, LogEntry, MembersAt, Position};

/// A change that someone wants, before the leader stamps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Who asks: an admin's id, or `system`.
    pub actor: String,
    /// The caller's idempotency key, if it sent one.
    pub idempotency: Option<Idempotency>,
    /// Apply only if the touched resource was last changed at this revision.
    pub if_revision: Option<Revision>,
    /// What to do.
    pub command: Command,
}

impl Proposal {
    /// What the cluster does on its own: no idempotency key, no precondition.
    pub fn system(command: Command) -> Self {
        Self {
            actor: "system".into(),
            idempotency: None,
            if_revision: None,
            command,
        }
    }
}

/// A message to one replica. Opaque outside: a network carries it, [`super::Cluster::serve`] answers it.
#[derive(Debug, Clone)]
pub struct Call(pub(super) Ask);

/// The answer to a [`Call`].
#[derive(Debug, Clone)]
pub struct Reply(pub(super) Answer);

impl Call {
    /// A stable name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match &self.0 {
            Ask::Append { .. } => "append",
            Ask::Vote { .. } => "vote",
            Ask::PreVote { .. } => "pre_vote",
            Ask::Transfer { .. } => "transfer",
            Ask::Install { .. } => "install",
            Ask::Propose { .. } => "propose",
            Ask::ReadIndex => "read_index",
            Ask::Members(_) => "members",
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        codec::encode(Kind::Peer, &StoredAskRef::V1(&self.0)).into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecFault> {
        let StoredAsk::V1(ask) = codec::decode(Kind::Peer, bytes)?;
        Ok(Self(ask))
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Bytes {
        codec::encode(Kind::Peer, &StoredAnswerRef::V1(&self.0)).into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecFault> {
        let StoredAnswer::V1(answer) = codec::decode(Kind::Peer, bytes)?;
        Ok(Self(answer))
    }
}

/// The questions. The order of variants is on the wire: append only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Ask {
    Append {
        ballot: Ballot,
        previous: Option<Position>,
        entries: Vec<LogEntry>,
        committed: Option<Position>,
    },
    Vote(VoteAsk),
    PreVote(VoteAsk),
    Transfer {
        ballot: Ballot,
        to: u64,
        last: Option<Position>,
    },
    /// A checkpoint of `bytes` bytes, which travel beside this.
    Install {
        ballot: Ballot,
        at: Option<Position>,
        members: MembersAt,
        bytes: u64,
    },
    Propose {
        proposal: Box<Proposal>,
        within_ms: u64,
    },
    ReadIndex,
    Members(MembersAsk),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct VoteAsk {
    pub(super) ballot: Ballot,
    pub(super) last: Option<Position>,
    pub(super) transfer: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum MembersAsk {
    Add { id: u64, member: Member },
    Remove { id: u64 },
    HandOver,
}

/// The answers. The order of variants is on the wire: append only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    Append(Appended),
    Vote {
        ballot: Ballot,
        granted: bool,
        last: Option<Position>,
    },
    Transfer(Result<(), TransferRefused>),
    Install {
        ballot: Ballot,
    },
    Propose(Result<Proposed, Declined>),
    ReadIndex(Result<u64, Declined>),
    Members(Result<(), MembersFault>),
    /// The replica has stopped, or the message made no sense to it.
    Failed(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Appended {
    All,
    UpTo(Option<Position>),
    Conflict,
    HigherBallot(Ballot),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum TransferRefused {
    BallotChanged {
        expected: Ballot,
        found: Ballot,
    },
    NotSynced {
        expected: Option<Position>,
        found: Option<Position>,
    },
}

/// What came of a proposal, and where it is in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Proposed {
    pub(super) outcome: Outcome,
    pub(super) index: u64,
}

/// Why a replica did not do what only a leader can.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Declined {
    /// Not proposed; perhaps that one leads.
    NotLeader { leader: Option<u64> },
    /// It leads, but has not heard from a majority lately. Not proposed.
    NoQuorum,
    /// Proposed, and then neither confirmed nor refuted.
    Unknown,
    /// It is stopping. Not proposed.
    Stopping,
}

#[derive(Serialize)]
enum StoredAskRef<'a> {
    V1(&'a Ask),
}

#[derive(Deserialize)]
enum StoredAsk {
    V1(Ask),
}

#[derive(Serialize)]
enum StoredAnswerRef<'a> {
    V1(&'a Answer),
}

#[derive(Deserialize)]
enum StoredAnswer {
    V1(Answer),
}
