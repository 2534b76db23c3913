//! Unary calls to whichever control peer answers, one connection for all of a kind.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;

use crate::catalog::subscribe::Dial;

/// A connection that cannot be made in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a call may fail with, as far as choosing a peer goes.
pub trait CallFault {
    /// Nobody answered, or nobody can answer now.
    fn unanswered(why: String) -> Self;

    /// Whether another peer might answer.
    fn is_unanswered(&self) -> bool;
}

/// The control peers of a node (`host:port`).
pub struct Peers {
    addresses: Vec<String>,
    dial: Dial,
    connection: Mutex<Connection>,
}

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

impl Peers {
    /// Nothing is connected until the first call.
    pub fn new(addresses: Vec<String>, dial: Dial) -> Self {
        Self {
            addresses,
            dial,
            connection: Mutex::default(),
        }
    }

    /// Sends one message, and waits at most so long for its answer.
    pub async fn call<T, E, Sent>(
        &self,
        patience: Duration,
        send: impl FnOnce(Channel) -> Sent,
    ) -> Result<T, E>
    where
        E: CallFault,
        Sent: Future<Output = Result<T, E>>,
    {
        let (channel, peer) = {
            let connection = self.lock();
            (connection.channel.clone(), connection.peer)
        };
        let sent = async {
            let channel = match channel {
                Some(channel) => channel,
                None => self.connected(peer).await.map_err(E::unanswered)?,
            };
            send(channel).await
        };
        let answered = timeout(patience, sent).await;
        let answered = answered.unwrap_or_else(|_| Err(E::unanswered("too slow".into())));
        if answered.as_ref().is_err_and(CallFault::is_unanswered) {
            self.lock().failed(peer);
        }
        answered
    }

    /// A connection to this peer, which later calls use too.
    async fn connected(&self, number: usize) -> Result<Channel, String> {
        let peer = self.addresses.get(number % self.addresses.len().max(1));
        let peer = peer.ok_or("no control peer is configured")?;
        let channel = timeout(CONNECT_TIMEOUT, (self.dial)(peer))
            .await
            .map_err(|_| format!("{peer}: no connection in time"))?
            .map_err(|fault| format!("{peer}: {fault}"))?;
        let mut connection = self.lock();
        if connection.peer == number {
            connection.channel = Some(channel.clone());
        }
        Ok(channel)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
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
