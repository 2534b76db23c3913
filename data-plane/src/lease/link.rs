//! A node's messages about leases: one unary call each, to whichever control peer answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;
use tollway_proto::lease::{LeaseAnswer, LeaseCall};
use tollway_proto::push::v1::push_client::PushClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::catalog::subscribe::Dial;

/// A connection that cannot be made in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

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

/// Sends a message and waits at most so long for its answer.
pub type Call =
    Arc<dyn Fn(LeaseCall, Duration) -> BoxFuture<'static, Result<LeaseAnswer, CallFault>> + Send + Sync>;

/// The connection in use, and the peer that it goes to.
#[derive(Debug, Default)]
struct Connection {
    channel: Option<Channel>,
    peer: usize,
}

impl Connection {
    /// The call that went to this peer has no answer: perhaps the next one can. Of several such calls the first counts; else a
    /// few that fail together would go round to the same peer again.
    fn failed(&mut self, peer: usize) {
        if self.peer == peer {
            (self.channel, self.peer) = (None, peer + 1);
        }
    }
}

/// Calls that go to these control peers (`host:port`), one connection for all of them.
pub fn to_peers(peers: Vec<String>, dial: Dial) -> Call {
    let connection = Arc::new(Mutex::new(Connection::default()));
    Arc::new(move |call, patience| {
        let (peers, dial, connection) = (peers.clone(), dial.clone(), connection.clone());
        async move {
            let (channel, peer) = {
                let connection = lock(&connection);
                (connection.channel.clone(), connection.peer)
            };
            let sent = async {
                let channel = match channel {
                    Some(channel) => channel,
                    None => connected(&peers, peer, &dial, &connection).await?,
                };
                sent(call, channel).await
            };
            let answered = timeout(patience, sent).await;
            let answered = answered.unwrap_or_else(|_| Err(CallFault::Unanswered("too slow".into())));
            if let Err(CallFault::Unanswered(_)) = &answered {
                lock(&connection).failed(peer);
            }
            answered
        }
        .boxed()
    })
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to this peer, which later calls use too.
async fn connected(
    peers: &[String],
    number: usize,
    dial: &Dial,
    connection: &Mutex<Connection>,
) -> Result<Channel, CallFault> {
    let peer = peers.get(number % peers.len().max(1));
    let peer = peer.ok_or_else(|| CallFault::Unanswered("no control peer is configured".into()))?;
    let dialled = timeout(CONNECT_TIMEOUT, dial(peer)).await;
    let channel = dialled
        .map_err(|_| CallFault::Unanswered(format!("{peer}: no connection in time")))?
        .map_err(|fault| CallFault::Unanswered(format!("{peer}: {fault}")))?;
    let mut connection = lock(connection);
    if connection.peer == number {
        connection.channel = Some(channel.clone());
    }
    Ok(channel)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_fail_together_move_on_by_one_peer() {
        let mut connection = Connection::default();
        for peer in [0, 0, 0] {
            connection.failed(peer);
        }
        assert_eq!(connection.peer, 1);
        connection.failed(1);
        assert_eq!(connection.peer, 2);
    }
}
