//! Messages between replicas: the transport seam, the consensus library's view of it, and gRPC.
//!
//! A [`Transport`] carries one [`Call`] to one replica and brings its [`Reply`]. [`GrpcTransport`] is the real one; a simulation
//! brings its own and hands calls to [`super::Cluster::serve`].

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, Snapshot};
use tollway_proto::command::Member;
use tollway_proto::peer::v1::Blob;
use tollway_proto::peer::v1::peer_client::PeerClient;
use tollway_proto::peer::{CHECKPOINT_CHUNK_BYTES, MESSAGE_BYTES_MAX};
use tollway_shared::ids::{ClusterId, ReplicaId};
use tonic::transport::Channel;

use super::message::{Answer, Appended, Ask, Call, Reply, TransferRefused, VoteAsk};
use super::types::{LeaderId, Types, VoteOf};

/// How long a peer may take to store entries. A heartbeat is bounded by its interval; entries wait for a disk.
const APPEND_WITHIN: Duration = Duration::from_secs(2);

/// Opens channels to other replicas: mutual TLS in a real cluster, plain TCP in tests.
pub trait PeerConnector: Send + Sync + 'static {
    /// A channel that connects when it is first used and again whenever it is cut.
    fn channel(&self, id: ReplicaId, address: &str) -> Channel;
}

/// Why a call brought no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportFault {
    /// It was not delivered.
    #[error("the replica cannot be reached: {0}")]
    Unreachable(String),
    /// It was delivered perhaps, or the reply was lost.
    #[error("no reply: {0}")]
    Lost(String),
    /// It was delivered, and not done.
    #[error("the replica refused the call: {0}")]
    Refused(String),
    /// No reply in time; it was delivered perhaps.
    #[error("no reply within {0:?}")]
    Late(Duration),
}

/// Carries calls between replicas.
pub trait Transport: Send + Sync + 'static {
    /// Delivers `call` to replica `to` at `address` and brings its reply within `within`.
    fn call(
        &self,
        to: ReplicaId,
        address: &str,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>>;

    /// Like [`Transport::call`], for an install call and the checkpoint's bytes.
    fn install(
        &self,
        to: ReplicaId,
        address: &str,
        call: Call,
        checkpoint: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>>;
}

/// gRPC (`tollway.peer.v1`) over the channels of a [`PeerConnector`].
pub struct GrpcTransport {
    cluster: ClusterId,
    connector: Arc<dyn PeerConnector>,
    /// One channel per member and address; entries of addresses that changed are replaced.
    channels: Mutex<HashMap<ReplicaId, (String, Channel)>>,
}

impl GrpcTransport {
    /// A transport for members of `cluster`.
    pub fn new(cluster: ClusterId, connector: Arc<dyn PeerConnector>) -> Self {
        Self {
            cluster,
            connector,
            channels: Mutex::default(),
        }
    }

    fn client(&self, to: ReplicaId, address: &str) -> PeerClient<Channel> {
        let mut channels = self
            .channels
            .lock()
            .expect("no code panics while it holds the channels");
        let channel = match channels.get(&to) {
            Some((known, channel)) if known == address => channel.clone(),
            _ => {
                let channel = self.connector.channel(to, address);
                channels.insert(to, (address.to_owned(), channel.clone()));
                channel
            }
        };
        PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn blob(&self, to: ReplicaId, data: Bytes) -> Blob {
        Blob {
            cluster: self.cluster.to_string(),
            target: to.0,
            data,
        }
    }
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        to: ReplicaId,
        address: &str,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>> {
        let mut client = self.client(to, address);
        let blob = self.blob(to, call.encode());
        Box::pin(bounded(within, async move {
            let answer = match &call.0 {
                Ask::Append { .. } => client.append_entries(blob).await,
                Ask::Vote(_) => client.vote(blob).await,
                Ask::PreVote(_) => client.pre_vote(blob).await,
                Ask::Transfer { .. } => client.transfer_leader(blob).await,
                Ask::Propose { .. } => client.propose(blob).await,
                Ask::ReadIndex => client.read_index(blob).await,
                Ask::Members(_) => client.members(blob).await,
                Ask::Install { .. } => {
                    return Err(TransportFault::Refused("a checkpoint travels as a stream".into()));
                }
            };
            reply(answer)
        }))
    }

    fn install(
        &self,
        to: ReplicaId,
        address: &str,
        call: Call,
        checkpoint: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>> {
        let mut client = self.client(to, address);
        let head = self.blob(to, call.encode());
        let cluster = self.cluster.to_string();
        let chunks = (0..checkpoint.len())
            .step_by(CHECKPOINT_CHUNK_BYTES)
            .map(move |from| Blob {
                cluster: cluster.clone(),
                target: to.0,
                data: checkpoint.slice(from..(from + CHECKPOINT_CHUNK_BYTES).min(checkpoint.len())),
            });
        let stream = futures::stream::iter(std::iter::once(head).chain(chunks));
        Box::pin(bounded(within, async move {
            reply(client.install_checkpoint(stream).await)
        }))
    }
}

async fn bounded(
    within: Duration,
    call: impl Future<Output = Result<Reply, TransportFault>>,
) -> Result<Reply, TransportFault> {
    tokio::time::timeout(within, call)
        .await
        .unwrap_or(Err(TransportFault::Late(within)))
}

fn reply(answer: Result<tonic::Response<Blob>, tonic::Status>) -> Result<Reply, TransportFault> {
    match answer {
        Ok(blob) => Reply::decode(&blob.into_inner().data).map_err(|e| TransportFault::Lost(e.to_string())),
        Err(status) => Err(transport_fault(&status)),
    }
}

/// Sorts a failed call by what it says about delivery.
fn transport_fault(status: &tonic::Status) -> TransportFault {
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return TransportFault::Unreachable(error.to_string());
        }
        source = error.source();
    }
    match status.code() {
        tonic::Code::FailedPrecondition
        | tonic::Code::PermissionDenied
        | tonic::Code::Unauthenticated
        | tonic::Code::InvalidArgument
        | tonic::Code::Unimplemented
        | tonic::Code::ResourceExhausted => TransportFault::Refused(status.message().to_owned()),
        _ => TransportFault::Lost(status.message().to_owned()),
    }
}

/// Makes the consensus library's clients.
pub(super) struct Network {
    pub(super) id: u64,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) install_within: Duration,
}

/// The consensus library's client of one peer.
pub(super) struct Client {
    id: u64,
    target: u64,
    address: String,
    transport: Arc<dyn Transport>,
    install_within: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, member: &Member) -> Client {
        Client {
            id: self.id,
            target,
            address: member.peer_address.clone(),
            transport: self.transport.clone(),
            install_within: self.install_within,
        }
    }
}

type RpcFault = RPCError<Types>;

impl Client {
    async fn call(&self, ask: Ask, kind: RPCTypes, within: Duration) -> Result<Answer, RpcFault> {
        let call = self
            .transport
            .call(ReplicaId(self.target), &self.address, Call(ask), within);
        match call.await {
            Ok(Reply(answer)) => Ok(answer),
            Err(fault) => Err(self.fault(fault, kind)),
        }
    }

    fn fault(&self, fault: TransportFault, action: RPCTypes) -> RpcFault {
        match fault {
            // Only this one makes the library back off; the others are tried again at once.
            TransportFault::Unreachable(_) | TransportFault::Refused(_) => Unreachable::new(&fault).into(),
            TransportFault::Lost(_) => NetworkError::new(&fault).into(),
            TransportFault::Late(timeout) => Timeout {
                action,
                id: self.id,
                target: self.target,
                timeout,
            }
            .into(),
        }
    }
}

fn unexpected(answer: &Answer) -> RpcFault {
    let text = match answer {
        Answer::Failed(text) => text.clone(),
        other => format!("an answer to another question: {other:?}"),
    };
    NetworkError::from_string(text).into()
}

fn vote_ask(rpc: VoteRequest<Types>) -> VoteAsk {
    VoteAsk {
        ballot: rpc.vote.into(),
        last: rpc.last_log_id.map(Into::into),
        transfer: rpc.leadership_transfer,
    }
}

fn vote_answer(answer: Answer) -> Result<VoteResponse<Types>, RpcFault> {
    match answer {
        Answer::Vote {
            ballot,
            granted,
            last,
        } => Ok(VoteResponse {
            vote: ballot.into(),
            vote_granted: granted,
            last_log_id: last.map(Into::into),
        }),
        other => Err(unexpected(&other)),
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RpcFault> {
        let within = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(APPEND_WITHIN)
        };
        let ask = Ask::Append {
            ballot: rpc.vote.into(),
            previous: rpc.prev_log_id.map(Into::into),
            entries: rpc.entries.iter().map(Into::into).collect(),
            committed: rpc.leader_commit.map(Into::into),
        };
        match self.call(ask, RPCTypes::AppendEntries, within).await? {
            Answer::Append(Appended::All) => Ok(AppendEntriesResponse::Success),
            Answer::Append(Appended::UpTo(at)) => {
                Ok(AppendEntriesResponse::PartialSuccess(at.map(Into::into)))
            }
            Answer::Append(Appended::Conflict) => Ok(AppendEntriesResponse::Conflict),
            Answer::Append(Appended::HigherBallot(ballot)) => {
                Ok(AppendEntriesResponse::HigherVote(ballot.into()))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcFault> {
        let ask = Ask::Vote(vote_ask(rpc));
        vote_answer(self.call(ask, RPCTypes::Vote, option.soft_ttl()).await?)
    }

    // The library's default grants every pre-vote, which is the same as none.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RpcFault> {
        let ask = Ask::PreVote(vote_ask(rpc));
        vote_answer(self.call(ask, RPCTypes::Vote, option.soft_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf,
        snapshot: Snapshot<LeaderId, u64, Member, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let call = Call(Ask::Install {
            ballot: vote.into(),
            at: snapshot.meta.last_log_id.map(Into::into),
            members: (&snapshot.meta.last_membership).into(),
            bytes: snapshot.snapshot.len() as u64,
        });
        let within = self.install_within;
        let to = ReplicaId(self.target);
        let install = self
            .transport
            .install(to, &self.address, call, snapshot.snapshot, within);
        let answer = tokio::select! {
            answer = install => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        match answer {
            Ok(Reply(Answer::Install { ballot })) => Ok(SnapshotResponse::new(ballot.into())),
            Ok(Reply(other)) => Err(unexpected(&other).into()),
            Err(fault) => Err(self.fault(fault, RPCTypes::InstallSnapshot).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RpcFault> {
        let ask = Ask::Transfer {
            ballot: (*rpc.from_leader()).into(),
            to: *rpc.to_node_id(),
            last: rpc.last_log_id().copied().map(Into::into),
        };
        match self
            .call(ask, RPCTypes::TransferLeader, option.soft_ttl())
            .await?
        {
            Answer::Transfer(Ok(())) => Ok(Ok(())),
            Answer::Transfer(Err(TransferRefused::BallotChanged { expected, found })) => {
                Ok(Err(TransferLeaderError::VoteChanged {
                    expected: expected.into(),
                    actual: found.into(),
                }))
            }
            Answer::Transfer(Err(TransferRefused::NotSynced { expected, found })) => {
                Ok(Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: found.map(Into::into),
                }))
            }
            other => Err(unexpected(&other)),
        }
    }
}
