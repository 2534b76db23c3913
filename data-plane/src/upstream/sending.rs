//! A request on its way out, and how long its answer may take once it is there.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::dialects::slices::Slices;

/// Largest piece that is handed to a connection at once: the next one is taken when there is room for it, which is a sign of life.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// When the last piece of a request was taken by its connection.
#[derive(Debug, Clone)]
pub(super) struct Taken(Rc<Cell<Instant>>);

impl Taken {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    pub(super) fn note(&self) {
        self.0.set(Instant::now());
    }

    pub(super) fn at(&self) -> Instant {
        self.0.get()
    }

    /// Waits for an answer; `None` when `limit` has passed since the last piece was taken. A long request that is taken bit by bit has all
    /// of it from its end, and one that is not taken at all has it from its start.
    pub(super) async fn answer<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = pin!(answer);
        loop {
            let deadline = self.at() + limit;
            match timeout_at(deadline, answer.as_mut()).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.at() + limit > deadline => {} // taken meanwhile; a body has an end
                Err(_) => return None,
            }
        }
    }
}

/// A request's body that notes when it is taken.
#[derive(Debug)]
pub(super) struct Sending {
    body: Slices,
    taken: Taken,
}

impl Sending {
    pub(super) fn new(body: Slices, taken: Taken) -> Self {
        Self { body, taken }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.taken.note();
        let piece = self.body.take(PIECE_BYTES_MAX);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(2);

    /// How long a body of so many pieces, one taken per second, waits for an answer that comes so many seconds after the last.
    async fn waited(pieces: usize, silence: u64) -> (Option<()>, Duration) {
        let (begun, taken) = (Instant::now(), Taken::new());
        let body = Bytes::from(vec![0; pieces * PIECE_BYTES_MAX]);
        let mut sending = Sending::new(body.into(), taken.clone());
        let answer = async {
            for _ in 0..pieces {
                sleep(Duration::from_secs(1)).await;
                let piece = sending.frame().await.unwrap().unwrap();
                assert_eq!(piece.into_data().unwrap().len(), PIECE_BYTES_MAX);
            }
            sleep(Duration::from_secs(silence)).await;
        };
        let answered = taken.answer(LIMIT, answer).await;
        (answered, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_from_the_requests_last_piece() {
        let seconds = Duration::from_secs;
        for (pieces, silence, answered, after) in [
            (1, 1, Some(()), 2),
            (9, 1, Some(()), 10),
            (9, 5, None, 11),
            (0, 5, None, 2),
        ] {
            let (got, elapsed) = waited(pieces, silence).await;
            // The paused clock moves in milliseconds.
            let off = elapsed.abs_diff(seconds(after));
            assert!(off < seconds(1) / 10, "{pieces} {silence}: {elapsed:?}");
            assert_eq!(got, answered, "{pieces} {silence}");
        }
    }
}
