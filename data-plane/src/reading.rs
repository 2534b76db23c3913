//! What a tenant reads of its own usage: asked of a control peer, since nodes keep none of it.
//!
//! Requests for models never wait for this: it has bounds and connections of its own, and only fails itself when the control plane is gone.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tollway_proto::push::v1::account_client::AccountClient;
use tollway_proto::push::v1::read_request::Question;
use tollway_proto::push::v1::{ReadReply, ReadRequest};
use tollway_shared::fault::Fault;
use tollway_shared::ids::ApiKeyId;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::catalog::subscribe::Dial;
use crate::peers::{self, Peers};

/// Questions of this node that may be on their way; more are refused.
const QUESTIONS_MAX: usize = 32;
/// How long one peer may take: longer than a replica gives itself.
const PEER_WITHIN: Duration = Duration::from_millis(4_500);
/// How long all of them together may.
const WITHIN: Duration = Duration::from_secs(6);
/// Most peers that one question goes to.
const PEERS_MAX: usize = 3;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadFault {
    /// Nobody answered in time, or nobody who did knows.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// There is no such thing for this key.
    #[error("there is no such record")]
    NotFound,
    /// The question asks for more than an answer holds.
    #[error("too much is asked for: {0}")]
    TooMuch(String),
    /// The question makes no sense to the control plane.
    #[error("the control plane refused: {0}")]
    Refused(String),
}

impl peers::CallFault for ReadFault {
    fn unanswered(why: String) -> Self {
        Self::Unanswered(why)
    }

    fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unanswered(_))
    }
}

/// Asks a control peer and waits at most so long for its answer.
pub type Call =
    Arc<dyn Fn(ReadRequest, Duration) -> BoxFuture<'static, Result<ReadReply, ReadFault>> + Send + Sync>;

/// Calls that go to these control peers (`host:port`), one connection for all of them.
pub fn to_peers(peers: Vec<String>, dial: Dial) -> Call {
    let peers = Arc::new(Peers::new(peers, dial));
    Arc::new(move |request, patience| {
        let peers = peers.clone();
        async move { peers.call(patience, |channel| sent(request, channel)).await }.boxed()
    })
}

async fn sent(request: ReadRequest, channel: Channel) -> Result<ReadReply, ReadFault> {
    let mut client = AccountClient::new(channel);
    let replied = client.read(Request::new(request)).await;
    replied.map(tonic::Response::into_inner).map_err(|status| {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => ReadFault::NotFound,
            Code::OutOfRange => ReadFault::TooMuch(text),
            Code::InvalidArgument => ReadFault::Refused(text),
            _ => ReadFault::Unanswered(text),
        }
    })
}

/// Asks on behalf of keys. Clones share their bounds.
#[derive(Clone)]
pub struct Reading {
    /// None: there is nobody to ask.
    link: Option<Link>,
    slots: Arc<Semaphore>,
}

#[derive(Clone)]
struct Link {
    call: Call,
    /// Where connections live: cores come and go.
    runtime: Handle,
}

impl Reading {
    /// Asks by these calls. Must be called inside a tokio runtime, which makes them.
    pub fn new(call: Option<Call>) -> Self {
        Self {
            link: call.map(|call| Link {
                call,
                runtime: Handle::current(),
            }),
            slots: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        }
    }

    /// Asks for a key that was authenticated. The outer fault is ours, the inner one says what is wrong with the question.
    pub async fn ask(
        &self,
        key: &ApiKeyId,
        question: Question,
    ) -> Result<Result<ReadReply, ReadFault>, Fault> {
        let link = self.link.clone().ok_or(Fault::UsageUnavailable)?;
        let slot = self
            .slots
            .clone()
            .try_acquire_owned()
            .map_err(|_| Fault::Overloaded)?;
        let request = ReadRequest {
            key: key.to_string(),
            question: Some(question),
        };
        let asking = link.runtime.spawn(async move {
            let _slot = slot;
            asked(&link.call, request).await
        });
        match asking.await {
            Ok(Err(ReadFault::Unanswered(why))) => {
                tracing::debug!(why, "a tenant's question has no answer");
                Err(Fault::UsageUnavailable)
            }
            Ok(Err(ReadFault::Refused(why))) => {
                tracing::warn!(why, "the control plane does not understand this node's questions");
                Err(Fault::UsageUnavailable)
            }
            Ok(answered) => Ok(answered),
            Err(_) => Err(Fault::Internal),
        }
    }
}

/// Asks peer after peer until one answers.
async fn asked(call: &Call, request: ReadRequest) -> Result<ReadReply, ReadFault> {
    let until = Instant::now() + WITHIN;
    let mut last = ReadFault::Unanswered("no time".into());
    for _ in 0..PEERS_MAX {
        match timeout_at(until, call(request.clone(), PEER_WITHIN)).await {
            Ok(Err(fault @ ReadFault::Unanswered(_))) => last = fault,
            Ok(answered) => return answered,
            Err(_) => break,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tollway_proto::push::v1::CreditsQuestion;

    use super::*;

    fn question() -> Question {
        Question::Credits(CreditsQuestion {})
    }

    #[tokio::test]
    async fn a_question_goes_to_the_next_peer_until_one_answers_and_not_for_ever() {
        let key = ApiKeyId::trusted("k");
        for (silent, heard) in [(2, true), (3, false)] {
            let tries = Arc::new(AtomicUsize::new(0));
            let counted = tries.clone();
            let call: Call = Arc::new(move |request, _| {
                assert_eq!(request.key, "k");
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let answer = if number < silent {
                    Err(ReadFault::Unanswered("gone".into()))
                } else {
                    Ok(ReadReply::default())
                };
                futures::future::ready(answer).boxed()
            });
            let asked = Reading::new(Some(call)).ask(&key, question()).await;
            assert_eq!(asked == Ok(Ok(ReadReply::default())), heard);
            assert_eq!(asked == Err(Fault::UsageUnavailable), !heard);
            assert_eq!(tries.load(Ordering::SeqCst), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_when_too_many_do_is_refused_and_a_peer_that_never_answers_gives_its_place_back() {
        let key = ApiKeyId::trusted("k");
        let call: Call = Arc::new(|_, _| futures::future::pending().boxed());
        let reading = Reading::new(Some(call));
        let mut waiting: Vec<_> = (0..QUESTIONS_MAX)
            .map(|_| {
                let (reading, key) = (reading.clone(), key.clone());
                tokio::spawn(async move { reading.ask(&key, question()).await })
            })
            .collect();
        while reading.slots.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reading.ask(&key, question()).await, Err(Fault::Overloaded));
        for one in waiting.drain(..) {
            assert_eq!(one.await.unwrap(), Err(Fault::UsageUnavailable));
        }
        assert_eq!(reading.slots.available_permits(), QUESTIONS_MAX);
    }
}
