//! A socket that gives up on a peer that is too slow, whatever it is slow at.
//!
//! hyper has one timer, for a head that has begun. This one also covers the time before the first byte, between requests, and a caller
//! who does not take what is written. Body deadlines are `receive`'s.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::metrics;

/// How long a peer may take.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// From a head's first byte to its last.
    pub head: Duration,
    /// From an answer's end to the next request.
    pub idle: Duration,
    /// To take anything of what is written.
    pub write: Duration,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    /// Its first byte, since then.
    Opened(Instant),
    /// The rest of a head, since then.
    Head(Instant),
    /// Us: a request is being answered.
    Working,
    /// The next request, since then.
    Idle(Instant),
}

impl Moment {
    pub(super) fn opened() -> Self {
        Self::Opened(Instant::now())
    }

    pub(super) fn idle() -> Self {
        Self::Idle(Instant::now())
    }
}

/// The guarded socket.
pub(super) struct Guard {
    stream: TcpStream,
    moment: Rc<Cell<Moment>>,
    deadlines: Deadlines,
    read: Pin<Box<Sleep>>,
    /// Armed only while a write is stuck.
    write: Option<Pin<Box<Sleep>>>,
}

impl Guard {
    pub(super) fn new(stream: TcpStream, moment: Rc<Cell<Moment>>, deadlines: Deadlines) -> Self {
        let read = Box::pin(sleep_until(Instant::now() + deadlines.first_byte));
        Self {
            stream,
            moment,
            deadlines,
            read,
            write: None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.moment.get() {
            Moment::Opened(since) => Some(since + self.deadlines.first_byte),
            Moment::Head(since) => Some(since + self.deadlines.head),
            Moment::Idle(since) => Some(since + self.deadlines.idle),
            Moment::Working => None,
        }
    }

    /// Whether the peer is out of time. One timer for the connection: it is moved when it fires or would fire too late.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let Some(deadline) = self.deadline() else {
                return Poll::Pending;
            };
            if deadline < self.read.deadline() {
                self.read.as_mut().reset(deadline);
            }
            std::task::ready!(self.read.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(late());
            }
            self.read.as_mut().reset(deadline);
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.write = None;
            return polled;
        }
        let limit = self.deadlines.write;
        let timer = self
            .write
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        std::task::ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(late()))
    }
}

fn late() -> io::Error {
    ::metrics::counter!(metrics::CONNECTIONS_REFUSED_TOTAL, "reason" => "deadline").increment(1);
    io::ErrorKind::TimedOut.into()
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => self.poll_late(cx).map(Err),
            Poll::Ready(Ok(())) => {
                if buffer.filled().len() > before
                    && matches!(self.moment.get(), Moment::Opened(_) | Moment::Idle(_))
                {
                    self.moment.set(Moment::Head(Instant::now()));
                }
                Poll::Ready(Ok(()))
            }
            failed => failed,
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
