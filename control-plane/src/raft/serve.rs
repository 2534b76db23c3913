//! Answers other replicas' calls.

use std::time::Duration;

use bytes::Bytes;
use openraft::Snapshot;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};

use super::Cluster;
use super::checkpoint::Meta;
use super::message::{Answer, Appended, Ask, Call, MembersAsk, Reply, TransferRefused, VoteAsk};
use super::propose::PROPOSE_WITHIN;
use super::types::{EntryOf, LogEntry, Types};

impl Cluster {
    /// Answers a call of another replica of this cluster. The caller has made sure that it is one.
    pub async fn serve(&self, call: Call) -> Reply {
        Reply(match call.0 {
            Ask::Append {
                ballot,
                previous,
                entries,
                committed,
            } => match entries.into_iter().map(LogEntry::try_into).collect() {
                Ok::<Vec<EntryOf>, _>(entries) => {
                    let request = AppendEntriesRequest {
                        vote: ballot.into(),
                        prev_log_id: previous.map(Into::into),
                        entries,
                        leader_commit: committed.map(Into::into),
                    };
                    appended(self.0.raft.append_entries(request).await)
                }
                Err(fault) => Answer::Failed(fault.to_string()),
            },
            Ask::Vote(ask) => voted(self.0.raft.vote(vote_request(ask)).await),
            Ask::PreVote(ask) => voted(self.0.raft.pre_vote(vote_request(ask)).await),
            Ask::Transfer { ballot, to, last } => {
                let request = TransferLeaderRequest::new(ballot.into(), to, last.map(Into::into));
                match self.0.raft.handle_transfer_leader(request).await {
                    Ok(result) => Answer::Transfer(result.map_err(transfer_refused)),
                    Err(fault) => Answer::Failed(fault.to_string()),
                }
            }
            Ask::Install { .. } => Answer::Failed("an install call without its checkpoint".into()),
            Ask::Propose { proposal, within_ms } => {
                let within = Duration::from_millis(within_ms).min(PROPOSE_WITHIN);
                Answer::Propose(self.propose_here(*proposal, within).await)
            }
            Ask::ReadIndex => Answer::ReadIndex(self.read_index_here().await),
            Ask::Members(MembersAsk::Add { id, member }) => Answer::Members(self.add_here(id, member).await),
            Ask::Members(MembersAsk::Remove { id }) => Answer::Members(self.remove_here(id).await),
            Ask::Members(MembersAsk::HandOver) => Answer::Members(self.hand_over_here().await),
        })
    }

    /// Answers an install call with the checkpoint that came with it.
    pub async fn serve_install(&self, call: Call, checkpoint: Bytes) -> Reply {
        let Ask::Install {
            ballot,
            at,
            members,
            bytes,
        } = call.0
        else {
            return Reply(Answer::Failed("a checkpoint without an install call".into()));
        };
        if bytes != checkpoint.len() as u64 {
            let fault = format!("{} bytes of a checkpoint of {bytes}", checkpoint.len());
            return Reply(Answer::Failed(fault));
        }
        let last_membership = match members.try_into() {
            Ok(members) => members,
            Err(fault) => return Reply(Answer::Failed(format!("{fault}"))),
        };
        let meta = Meta {
            last_log_id: at.map(Into::into),
            last_membership,
        };
        let snapshot = Snapshot {
            meta,
            snapshot: checkpoint,
        };
        Reply(
            match self.0.raft.install_full_snapshot(ballot.into(), snapshot).await {
                Ok(response) => Answer::Install {
                    ballot: response.vote.into(),
                },
                Err(fault) => Answer::Failed(fault.to_string()),
            },
        )
    }
}

fn appended(result: Result<AppendEntriesResponse<Types>, impl std::fmt::Display>) -> Answer {
    match result {
        Ok(AppendEntriesResponse::Success) => Answer::Append(Appended::All),
        Ok(AppendEntriesResponse::PartialSuccess(at)) => Answer::Append(Appended::UpTo(at.map(Into::into))),
        Ok(AppendEntriesResponse::Conflict) => Answer::Append(Appended::Conflict),
        Ok(AppendEntriesResponse::HigherVote(vote)) => Answer::Append(Appended::HigherBallot(vote.into())),
        Err(fault) => Answer::Failed(fault.to_string()),
    }
}

fn vote_request(ask: VoteAsk) -> VoteRequest<Types> {
    VoteRequest {
        vote: ask.ballot.into(),
        last_log_id: ask.last.map(Into::into),
        leadership_transfer: ask.transfer,
    }
}

fn voted(result: Result<VoteResponse<Types>, impl std::fmt::Display>) -> Answer {
    match result {
        Ok(response) => Answer::Vote {
            ballot: response.vote.into(),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        },
        Err(fault) => Answer::Failed(fault.to_string()),
    }
}

fn transfer_refused(fault: TransferLeaderError<Types>) -> TransferRefused {
    match fault {
        TransferLeaderError::VoteChanged { expected, actual } => TransferRefused::BallotChanged {
            expected: expected.into(),
            found: actual.into(),
        },
        TransferLeaderError::LogNotFlushed { expected, actual } => TransferRefused::NotSynced {
            expected: expected.map(Into::into),
            found: actual.map(Into::into),
        },
    }
}
