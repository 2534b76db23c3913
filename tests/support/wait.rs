//! Waiting for a condition with a deadline, instead of sleeping for a while and hoping.

use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
///
/// Panics after `deadline` (wall time) with the caller's line and `what` was waited for.
///
/// ```ignore
/// wait::until(Duration::from_secs(5), "node n1 serves revision 7", || node.revision() == 7).await;
/// ```
#[track_caller]
pub fn until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < deadline,
                "{caller}: after {deadline:?} still not true: {what}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Waits until `attempt` succeeds and returns what it found. One attempt may take what is left of `deadline`, no more.
///
/// Panics after `deadline` (wall time) with the caller's line, `what` was waited for and the last error.
#[track_caller]
pub fn until_ok<T, E, F>(
    deadline: Duration,
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> impl Future<Output = T>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        let mut last = "no attempt ended".to_owned();
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            match tokio::time::timeout(left, attempt()).await {
                Ok(Ok(found)) => return found,
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            assert!(
                start.elapsed() < deadline,
                "{caller}: after {deadline:?} still failing: {what}; last: {last}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        until(Duration::from_secs(5), "three looks", || {
            looks += 1;
            looks == 3
        })
        .await;
        assert_eq!(looks, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "still not true: the sky falls")]
    async fn a_deadline_says_what_was_waited_for() {
        until(Duration::ZERO, "the sky falls", || false).await;
    }

    #[tokio::test]
    #[should_panic(expected = "last: connection refused")]
    async fn a_deadline_says_the_last_error() {
        until_ok(Duration::ZERO, "an answer", || async {
            Err::<(), _>("connection refused")
        })
        .await;
    }

    #[tokio::test]
    #[should_panic(expected = "no attempt ended")]
    async fn an_attempt_that_hangs_does_not_outlive_the_deadline() {
        until_ok(
            Duration::from_millis(20),
            "an answer",
            std::future::pending::<Result<(), String>>,
        )
        .await;
    }
}
