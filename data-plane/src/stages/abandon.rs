//! What becomes of an answer whose caller has left: it is cancelled, read on within bounds, or read to its end, as its endpoint or
//! provider has it ([`OnDisconnect`]). It is billed as the provider bills it in any case; the more of it is read, the less of that is an
//! estimate.
//!
//! What has already come is read even where the request is cancelled: a provider bills what it has sent.
//!
//! So many are read on at once and no more; whose turn it is not is cancelled.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout, timeout_at};
use tollway_shared::catalog::{OnDisconnect, on_disconnect};

use crate::api::reply::Reply;
use crate::plane::{Draining, Phase, Plane};
use crate::routing::Candidate;

/// How long an answer that nobody waits for is read on at most.
const READ_ON_MAX: Duration = Duration::from_secs(600);
/// How long without anything new says that all of what had been sent was read: some of it is still on its way when the caller leaves.
pub(super) const CAME_QUIET: Duration = Duration::from_millis(20);
/// How many turns without anything new follow. Between two of them the runtime looks at its sockets once, and the connection hands over
/// what they have: a thread that was late would else take its own lateness for silence.
pub(super) const CAME_TURNS: usize = 6;
/// How many more events are read after [`CAME_MAX`].
pub(super) const CAME_LATE_MAX: usize = 256;
/// How long what has come is read at most: a provider may write faster than that.
pub(super) const CAME_MAX: Duration = Duration::from_millis(50);

/// What is to be known of a request whose caller may leave.
#[derive(Debug)]
pub struct Left {
    at: Cell<Option<Instant>>,
    /// Of the running attempt.
    policy: Cell<OnDisconnect>,
    /// The running attempt's request has gone out.
    sent: Cell<bool>,
}

impl Default for Left {
    fn default() -> Self {
        Self {
            at: Cell::new(None),
            policy: Cell::new(OnDisconnect::Abort),
            sent: Cell::new(false),
        }
    }
}

impl Left {
    /// An attempt at this endpoint begins.
    pub fn attempt(&self, candidate: &Candidate) {
        self.policy.set(policy(candidate));
        self.sent.set(false);
    }

    /// Its request has gone out, or has come back unsent.
    pub fn sent(&self, is_out: bool) {
        self.sent.set(is_out);
    }

    /// Whether the caller has left.
    pub fn is_gone(&self) -> bool {
        self.at.get().is_some()
    }
}

/// How much more is read of an answer.
pub(super) enum Rest {
    /// What has come already.
    Came,
    /// What comes within these bounds.
    Until {
        /// At the latest.
        at: Instant,
        /// So many more completion tokens.
        tokens: Option<u64>,
        /// The place among those that are read on.
        _place: Draining,
    },
}

impl Rest {
    /// What is read of a stream whose caller has left.
    pub(super) fn of_stream(candidate: &Candidate, left: &Left, plane: &Rc<Plane>) -> Self {
        Self::of(
            policy(candidate),
            left.at.get().unwrap_or_else(Instant::now),
            plane,
        )
    }

    fn of(policy: OnDisconnect, since: Instant, plane: &Rc<Plane>) -> Self {
        let (at, tokens) = match policy {
            OnDisconnect::Abort => return Self::Came,
            OnDisconnect::Drain { cap_ms, cap_tokens } => {
                let cap = Duration::from_millis(u64::from(cap_ms)).min(READ_ON_MAX);
                (since + cap, cap_tokens.map(u64::from))
            }
            OnDisconnect::DrainFully => (since + READ_ON_MAX, None),
        };
        match Draining::enter(plane) {
            Some(place) => Self::Until {
                at,
                tokens,
                _place: place,
            },
            None => Self::Came,
        }
    }
}

fn policy(candidate: &Candidate) -> OnDisconnect {
    on_disconnect(&candidate.endpoint, &candidate.provider)
}

/// An answer on which is worked for as long as its policy says when its caller leaves before the first byte: this future is dropped
/// then, and what is in it goes on without it.
pub struct Outliving<F: Future<Output = Reply> + 'static> {
    answer: Option<Pin<Box<F>>>,
    plane: Rc<Plane>,
    left: Rc<Left>,
}

impl<F: Future<Output = Reply> + 'static> Outliving<F> {
    /// - `left`: as the answer's own context has it.
    pub fn new(plane: &Rc<Plane>, left: Rc<Left>, answer: F) -> Self {
        Self {
            answer: Some(Box::pin(answer)),
            plane: plane.clone(),
            left,
        }
    }
}

impl<F: Future<Output = Reply> + 'static> Future for Outliving<F> {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Reply> {
        // Taken out, so that nothing is left to go on with after a panic.
        let mut answer = self.answer.take().expect("it is not polled after its end");
        let polled = answer.as_mut().poll(cx);
        if polled.is_pending() {
            self.answer = Some(answer);
        }
        polled
    }
}

impl<F: Future<Output = Reply> + 'static> Drop for Outliving<F> {
    fn drop(&mut self) {
        let Some(mut answer) = self.answer.take() else {
            return;
        };
        let now = Instant::now();
        self.left.at.set(Some(now));
        if !self.left.sent.get() || self.plane.phase.reached(Phase::ENDING) {
            return; // no provider has anything to bill, or there is no time to wait for it
        }
        let rest = Rest::of(self.left.policy.get(), now, &self.plane);
        tokio::task::spawn_local(async move {
            match rest {
                Rest::Came => drop(what_came(answer).await),
                Rest::Until { at, .. } => {
                    let reply = match timeout_at(at, answer.as_mut()).await {
                        Ok(reply) => Some(reply),
                        Err(_) => what_came(answer).await,
                    };
                    drop(rest); // its place is for the stream that this may have become
                    drop(reply);
                }
            }
        });
    }
}

/// The answer, if what has come already makes it.
async fn what_came<F: Future<Output = Reply>>(mut answer: Pin<Box<F>>) -> Option<Reply> {
    let mut reply = timeout(CAME_QUIET, answer.as_mut()).await.ok();
    for _ in 0..CAME_TURNS {
        if reply.is_some() {
            break;
        }
        tokio::task::yield_now().await;
        reply = answer.as_mut().now_or_never();
    }
    reply
}
