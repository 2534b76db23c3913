//! A node's messages about leases: one unary call each, to whichever control peer answers.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_proto::push::v1::push_client::PushClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::catalog::subscribe::Dial;
use crate::peers::{self, Peers};

/// Why a message has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFault {
    /// Nobody answered in time, or nobody can decide now. It may have been applied: the same message may be sent again.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The incarnation belongs to another node.
    #[error("this incarnation belongs to another node")]
    Foreign,
    /// The message makes no sense to the control plane.
    #[error("the control plane refused: {0}")]
    Refused(String),
}

impl peers::CallFault for CallFault {
    fn unanswered(why: String) -> Self {
        Self::Unanswered(why)
    }

    fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unanswered(_))
    }
}

/// Sends a message and waits at most so long for its answer.
pub type Call =
    Arc<dyn Fn(LeaseCall, Duration) -> BoxFuture<'static, Result<LeaseAnswer, CallFault>> + Send + Sync>;

/// Calls that go to these control peers (`host:port`), one connection for all of them.
pub fn to_peers(peers: Vec<String>, dial: Dial) -> Call {
    let peers = Arc::new(Peers::new(peers, dial));
    Arc::new(move |call, patience| {
        let peers = peers.clone();
        async move { peers.call(patience, |channel| sent(call, channel)).await }.boxed()
    })
}

async fn sent(call: LeaseCall, channel: Channel) -> Result<LeaseAnswer, CallFault> {
    match PushClient::new(channel)
        .lease(tonic::Request::new(call.into()))
        .await
    {
        Ok(reply) => {
            let answer = LeaseAnswer::try_from(reply.into_inner());
            answer.map_err(|fault| CallFault::Refused(fault.to_string()))
        }
        Err(status) => Err(match status.code() {
            Code::FailedPrecondition => CallFault::Foreign,
            Code::InvalidArgument => CallFault::Refused(status.message().to_owned()),
            _ => CallFault::Unanswered(status.message().to_owned()),
        }),
    }
}
