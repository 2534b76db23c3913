//! The response body: writes what the script says at its pace and closes the books at the right moment.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::answer::Answer;
use crate::behaviour::{Behaviour, WAIT_MAX};
use crate::script::{Ending, Write};
use crate::seen::{End, Entry};

/// A body that follows a script.
pub(crate) struct Relay {
    entry: Entry,
    writes: std::vec::IntoIter<Write>,
    ending: Ending,
    /// How the entry is closed when the script comes to its end.
    close_as: End,
    length: Option<u64>,
    slow: Duration,
    delay: Duration,
    burst: bool,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The pause before the next step has been made.
    paused: bool,
    answer: Option<Answer>,
    content_all: u64,
    content_sent: u64,
}

impl Relay {
    /// A body of one piece that does not count as an answer: an error, a list.
    pub(crate) fn fixed(entry: Entry, body: Vec<u8>, close_as: End) -> Self {
        let length = Some(body.len() as u64);
        Self::new(
            entry,
            &Behaviour::default(),
            vec![Write::frame(body)],
            Ending::Whole,
            length,
            None,
            close_as,
        )
    }

    /// A whole answer in one piece of a known length; a scripted end breaks it half way.
    pub(crate) fn plain(entry: Entry, told: &Behaviour, answer: Answer, mut body: Vec<u8>) -> Self {
        let length = Some(body.len() as u64);
        let ending = match (told.cut_after, told.stall_after) {
            (Some(_), _) => Ending::Cut,
            (None, Some(_)) => Ending::Silence,
            (None, None) => Ending::Whole,
        };
        if ending != Ending::Whole {
            body.truncate(body.len() / 2);
        }
        let write = Write {
            usage: told.usage && ending == Ending::Whole,
            ..Write::content(body)
        };
        Self::new(
            entry,
            told,
            vec![write],
            ending,
            length,
            Some(answer),
            End::Finished,
        )
    }

    /// An event stream.
    pub(crate) fn stream(
        entry: Entry,
        told: &Behaviour,
        answer: Answer,
        writes: Vec<Write>,
        ending: Ending,
        content_all: u64,
    ) -> Self {
        let close_as = if ending == Ending::Whole {
            End::Finished
        } else {
            End::Broken
        };
        let mut relay = Self::new(entry, told, writes, ending, None, Some(answer), close_as);
        relay.content_all = content_all;
        relay
    }

    fn new(
        mut entry: Entry,
        told: &Behaviour,
        writes: Vec<Write>,
        ending: Ending,
        length: Option<u64>,
        answer: Option<Answer>,
        close_as: End,
    ) -> Self {
        if let Some(answer) = &answer {
            entry.seen.used = crate::seen::Used {
                completion: 0,
                reasoning: 0,
                ..answer.used
            };
            entry.progress();
        }
        Self {
            entry,
            content_all: writes.iter().filter(|write| write.content).count() as u64,
            writes: writes.into_iter(),
            ending,
            close_as,
            length,
            slow: told.slow,
            delay: told.delay,
            burst: told.burst,
            sleep: None,
            paused: false,
            answer,
            content_sent: 0,
        }
    }

    /// The pause before the next step, or `None` to go on at once. Zero means: let the last write reach the socket first.
    fn pause(&self) -> Option<Duration> {
        match (self.entry.seen.events_sent, self.writes.as_slice().first()) {
            (0, _) if self.slow.is_zero() => None,
            (0, _) => Some(self.slow),
            (_, Some(write)) if write.content && !self.delay.is_zero() => Some(self.delay),
            (_, Some(_)) if self.burst => None,
            (_, Some(_)) => Some(Duration::ZERO),
            (_, None) if self.ending == Ending::Silence => Some(WAIT_MAX),
            (_, None) => Some(Duration::ZERO),
        }
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            std::task::ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
            return Poll::Ready(());
        }
        if std::mem::take(&mut self.paused) {
            return Poll::Ready(());
        }
        match self.pause() {
            None => Poll::Ready(()),
            Some(Duration::ZERO) => {
                // The server flushes what it has whenever the body is not ready: this makes one write of each event.
                self.paused = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(wait) => {
                let mut sleep = Box::pin(tokio::time::sleep(wait));
                if sleep.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                self.sleep = Some(sleep);
                Poll::Pending
            }
        }
    }

    fn note(&mut self, write: &Write) {
        let seen = &mut self.entry.seen;
        seen.events_sent += 1;
        seen.usage_told |= write.usage;
        if write.content {
            self.content_sent += 1;
        }
        if let Some(answer) = &self.answer {
            let whole = self.ending == Ending::Whole && self.writes.as_slice().is_empty();
            let all = self.content_all;
            // Half of a plain answer is still a whole one to its provider: it was generated before the first byte left.
            seen.used.completion = if whole || self.length.is_some() {
                answer.used.completion
            } else {
                answer.completion_after(self.content_sent, all)
            };
            seen.used.reasoning = answer.used.reasoning.min(seen.used.completion);
        }
        self.entry.progress();
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        std::task::ready!(this.poll_pause(cx));
        let ends_well = matches!(this.ending, Ending::Whole | Ending::Error);
        let Some(write) = this.writes.next() else {
            if ends_well {
                return Poll::Ready(None);
            }
            this.entry.close(End::Broken);
            return Poll::Ready(Some(Err(io::Error::other("scripted cut"))));
        };
        this.note(&write);
        if ends_well && this.writes.as_slice().is_empty() {
            this.entry.close(this.close_as);
        }
        Poll::Ready(Some(Ok(Frame::data(write.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.ending, Ending::Whole | Ending::Error) && self.writes.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
