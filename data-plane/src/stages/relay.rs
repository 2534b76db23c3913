//! Provider events → the caller's body. A slow caller slows the provider, because nothing is read ahead of what was taken; a caller who
//! hangs up drops this body, and with it the provider's connection, when no more of the answer is wanted ([`super::abandon`]).
//!
//! A stream ends in `[DONE]` or in an error event, never in silence.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, timeout, timeout_at};
use tollway_proto::usage::EndState;
use tollway_shared::fault::Fault;

use super::abandon::{CAME_LATE_MAX, CAME_MAX, CAME_QUIET, CAME_TURNS, Rest};
use super::opening::{Begun, Opened};
use crate::api::reply::{self, Reply};
use crate::dialects::slices::Slices;
use crate::dialects::sse::{Frame as Event, Parser};
use crate::dialects::{Emit, Events};
use crate::pipeline::Context;
use crate::plane::Phase;
use crate::routing::Candidate;
use crate::upstream::AnswerBody;

const DONE: &[u8] = b"data: [DONE]\n\n";
/// How long a provider may take to end a body that has nothing more to say, before its connection is given up.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// The caller's answer.
pub fn answer(mut cx: Context, candidate: Candidate, opened: Opened) -> Reply {
    let tried = cx.record.attempts();
    let mut headers = std::mem::take(&mut cx.headers);
    reply::name(&mut headers, &cx.arrival.request_id);
    reply::text(&mut headers, "x-tollway-provider", candidate.provider.id.as_str());
    reply::text(&mut headers, "x-tollway-model", candidate.endpoint.model.as_str());
    reply::text(&mut headers, "x-tollway-attempts", &tried.to_string());
    match opened {
        Opened::Whole(answer) => {
            cx.record.whole();
            let body = match cx.record.billed() {
                Some(billed) => {
                    reply::text(&mut headers, "x-tollway-cost-usd", &billed.cost.to_string());
                    answer.priced(&billed)
                }
                None => answer.body.into(),
            };
            reply::whole(headers, Whole { cx, body })
        }
        Opened::Stream(begun) => reply::stream(headers, Stream::new(cx, candidate, *begun)),
    }
}

/// A whole answer on its way: accounted as completed once the caller's connection took it.
pub struct Whole {
    cx: Context,
    body: Slices,
}

impl Whole {
    /// Bytes left to hand over.
    pub fn bytes_left(&self) -> u64 {
        self.body.bytes_left()
    }

    /// The next piece of the body.
    pub fn take(&mut self) -> Option<Bytes> {
        self.cx.record.first_byte();
        let piece = self.body.take(usize::MAX);
        if self.body.bytes_left() == 0 {
            self.cx.record.close(EndState::Completed, 200, None);
        }
        piece
    }
}

/// A stream on its way.
pub struct Stream(Option<Box<Relay>>);

struct Relay {
    cx: Context,
    candidate: Candidate,
    body: Option<AnswerBody>,
    parser: Parser,
    events: Events,
    queue: VecDeque<Bytes>,
    ended: bool,
    /// Nobody waits for the answer any more; it is read for its usage alone.
    abandoned: bool,
    heard: Instant,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    number: u64,
}

impl Stream {
    fn new(cx: Context, candidate: Candidate, begun: Begun) -> Self {
        let idle = Duration::from_millis(u64::from(candidate.provider.idle_timeout_ms.max(1)));
        let mut relay = Relay {
            number: cx.plane.streams.enter(),
            cx,
            candidate,
            body: begun.body,
            parser: begun.parser,
            events: begun.events,
            queue: VecDeque::new(),
            ended: false,
            abandoned: false,
            heard: Instant::now(),
            idle,
            timer: Box::pin(tokio::time::sleep(idle)),
        };
        // What was held is all that some answers ever have; the next event may be long in coming.
        relay.cx.record.progress(relay.heard);
        for emit in begun.first {
            relay.emit(emit);
        }
        Self(Some(Box::new(relay)))
    }

    /// The next bytes for the caller.
    pub fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(relay) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| relay.poll(cx)));
        match polled {
            Ok(Poll::Ready(None)) => {
                self.0 = None;
                Poll::Ready(None)
            }
            Ok(Poll::Ready(Some(bytes))) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => {
                relay.cx.plane.meters.panics.increment(1);
                tracing::error!(request = %relay.cx.arrival.request_id, "a stream panicked");
                relay.fail(&Fault::Internal);
                let last = relay.queue.pop_back();
                self.0 = None;
                Poll::Ready(last.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                if !self.abandoned {
                    self.cx.record.first_byte();
                }
                return Poll::Ready(Some(bytes));
            }
            if self.ended {
                // One that was abandoned is closed by its drop, as if it had not been read on.
                if !self.abandoned {
                    self.cx.record.close(EndState::Completed, 200, None);
                }
                return Poll::Ready(None);
            }
            if self.cx.plane.phase.reached(Phase::ENDING) {
                self.fail(&Fault::Draining);
                continue;
            }
            match self.parser.next_frame() {
                Ok(Some(frame)) => self.take(&frame),
                Err(_) => self.fail(&self.broken()),
                Ok(None) => match self.poll_provider(cx) {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        self.cx.plane.streams.wake_by(self.number, cx.waker());
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Reads more of the provider's body, or notices that it has been silent for too long.
    fn poll_provider(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        let Some(body) = &mut self.body else {
            self.provider_ended();
            return Poll::Ready(());
        };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.heard = Instant::now();
                if let Ok(data) = frame.into_data() {
                    self.parser.push(data);
                }
                Poll::Ready(())
            }
            Poll::Ready(Some(Err(_))) => {
                self.body = None;
                self.fail(&self.broken());
                Poll::Ready(())
            }
            Poll::Ready(None) => {
                self.body = None;
                self.provider_ended();
                Poll::Ready(())
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    /// One timer for the whole stream: it is moved only when it fires, not at every event.
    fn poll_silence(&mut self, cx: &mut Poller<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let deadline = self.heard + self.idle;
            if Instant::now() >= deadline {
                self.fail(&Fault::StreamStalled {
                    provider: self.candidate.provider.id.clone(),
                });
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// The provider closed its body: fine after a finish reason, a break otherwise.
    fn provider_ended(&mut self) {
        if let Some(frame) = self.parser.finish() {
            self.take(&frame);
        }
        if !self.ended {
            if self.cx.record.tally.finish_reason.is_some() {
                self.emit(Emit::Done);
            } else {
                self.fail(&self.broken());
            }
        }
    }

    fn take(&mut self, frame: &Event) {
        let emit = self.events.take(frame, &mut self.cx.record.tally);
        self.cx.record.progress(self.heard);
        self.emit(emit);
    }

    fn emit(&mut self, emit: Emit) {
        match emit {
            Emit::Pass(bytes) => self.queue.push_back(bytes),
            Emit::Skip => {}
            Emit::Garbled => self.fail(&self.broken()),
            Emit::Error(error) => {
                let provider = self.candidate.provider.id.clone();
                self.fail(&Fault::StreamError {
                    provider,
                    status: error.status,
                    message: error.message,
                });
            }
            Emit::Done => {
                self.cx.record.whole();
                let billed = self.cx.record.billed();
                let usage = billed.and_then(|billed| self.events.usage_chunk(&billed));
                self.queue.extend(usage);
                self.queue.push_back(Bytes::from_static(DONE));
                self.ended = true;
                self.finish_body();
            }
        }
    }

    /// Reads a body that has said everything to its end, so that its connection can be used again.
    fn finish_body(&mut self) {
        if let Some(mut body) = self.body.take() {
            tokio::task::spawn_local(async move {
                // Whatever comes of it: the connection is given back or closed.
                drop(
                    timeout(TAIL_TIMEOUT, async {
                        while let Some(Ok(_)) = body.frame().await {}
                    })
                    .await,
                );
            });
        }
    }

    /// The stream ends in an error event, which is nothing to a caller who has left.
    fn fail(&mut self, fault: &Fault) {
        if self.ended {
            return;
        }
        self.body = None;
        self.ended = true;
        if self.abandoned {
            return;
        }
        let event = reply::stream_fault(
            fault,
            self.events.id().unwrap_or(self.cx.arrival.request_id.as_str()),
            self.cx.arrival.at.0 / 1_000,
            self.candidate.endpoint.model.as_str(),
        );
        self.queue.push_back(event);
        tracing::debug!(request = %self.cx.arrival.request_id, %fault, "a stream failed");
        self.cx.record.close(EndState::Failed, 200, Some(fault));
    }

    /// Reads what is still wanted of an answer that nobody waits for.
    async fn read_on(&mut self, rest: Rest) {
        match rest {
            Rest::Came => self.read_what_came().await,
            Rest::Until { at, tokens, _place } => {
                let most = tokens.map(|more| self.cx.record.completion().saturating_add(more));
                let rest = poll_fn(|cx| {
                    loop {
                        match self.poll(cx) {
                            Poll::Ready(Some(_))
                                if most.is_none_or(|most| self.cx.record.completion() < most) => {}
                            Poll::Ready(_) => return Poll::Ready(()),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                });
                // Where this thread was late, more has come by then than was read.
                if timeout_at(at, rest).await.is_err() {
                    self.read_what_came().await;
                }
            }
        }
    }

    /// Reads what has come to the socket by now. A connection hands it over one piece after the other, each once the one before is taken,
    /// so turns count only while nothing comes of them.
    async fn read_what_came(&mut self) {
        let until = Instant::now() + CAME_MAX;
        let (mut turns, mut late) = (0, 0);
        while !self.ended && turns < CAME_TURNS && late < CAME_LATE_MAX {
            let quiet = if turns == 0 { CAME_QUIET } else { Duration::ZERO };
            let news = timeout_at((Instant::now() + quiet).min(until), poll_fn(|cx| self.poll(cx)));
            if news.await.is_ok() {
                turns = 0;
                late += usize::from(Instant::now() >= until);
            } else {
                turns += 1;
                yield_now().await;
            }
        }
    }

    fn broken(&self) -> Fault {
        Fault::StreamBroken {
            provider: self.candidate.provider.id.clone(),
        }
    }
}

impl Drop for Stream {
    /// The caller has hung up, unless the stream came to its end.
    fn drop(&mut self) {
        let Some(mut relay) = self.0.take() else { return };
        let more = !relay.ended && relay.body.is_some();
        if !more || relay.cx.plane.phase.reached(Phase::ENDING) {
            return;
        }
        relay.abandoned = true;
        let rest = Rest::of_stream(&relay.candidate, &relay.cx.left, &relay.cx.plane);
        tokio::task::spawn_local(async move { relay.read_on(rest).await });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cx.plane.streams.leave(self.number);
    }
}
