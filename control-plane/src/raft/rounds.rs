//! Work that everybody who asks at the same time may share, one round at a time: the read index of linearizable reads.
//!
//! A round that has begun may have missed what its asker wants to see, so who comes later waits for the next one. However many ask,
//! one round runs and one waits.

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

type Round<T> = Shared<BoxFuture<'static, T>>;

/// The rounds of one kind of work.
pub(super) struct Rounds<T: Clone> {
    /// Held by the round that runs.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The round that has not begun.
    waiting: Arc<Mutex<Option<Round<T>>>>,
}

impl<T: Clone> Default for Rounds<T> {
    fn default() -> Self {
        Self {
            turn: Arc::default(),
            waiting: Arc::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Rounds<T> {
    /// The outcome of a round that begins after this call. `work` is dropped when another caller's does. It runs only while somebody
    /// waits for it.
    pub(super) async fn next(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let round = {
            let mut waiting = self
                .waiting
                .lock()
                .expect("no code panics while it holds the round");
            let begin = || {
                // Weak: a round that nobody waits for any more stays here until the next caller.
                let (turn, place) = (self.turn.clone(), Arc::downgrade(&self.waiting));
                let round = async move {
                    let _turn = turn.lock().await;
                    if let Some(place) = place.upgrade() {
                        *place.lock().expect("no code panics while it holds the round") = None;
                    }
                    work.await
                };
                round.boxed().shared()
            };
            waiting.get_or_insert_with(begin).clone()
        };
        round.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_gets_a_round_that_began_later_and_a_crowd_shares_it() {
        let rounds = Rounds::default();
        let begun = Arc::new(AtomicU32::new(0));
        let work = || {
            let begun = begun.clone();
            async move {
                let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
                number
            }
        };
        let mut early = Box::pin(rounds.next(work()));
        assert!(early.as_mut().now_or_never().is_none(), "it runs");
        let crowd = join_all((0..100).map(|_| rounds.next(work())));
        let (first, others) = tokio::join!(early, crowd);
        assert_eq!(first, 1);
        assert_eq!(
            others, [2; 100],
            "the running round may have missed what they ask for"
        );

        // A round that nobody waits for any more is in nobody's way.
        let mut gone = Box::pin(rounds.next(work()));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        assert_eq!(rounds.next(work()).await, 4);
        assert_eq!(begun.load(Ordering::SeqCst), 4);
    }
}
