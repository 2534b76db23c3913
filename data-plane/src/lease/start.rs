//! The start and the end of the leases of a node.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Desk;
use super::keeper::{Inheritance, Keeper, Places};
use super::link::Call;
use crate::clock;
use crate::usage::Track;

/// The running task, on a thread of its own: a request that waits for a grant waits for nothing else.
#[derive(Debug)]
pub struct Leases {
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl Leases {
    /// Begins an incarnation and enlists it.
    pub fn start(
        places: Places,
        inheritance: Inheritance,
        track: Track,
        call: Call,
    ) -> io::Result<(Self, Desk)> {
        let (keeper, desk) = Keeper::new(places, inheritance, track, call, clock::now)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let (done, ended) = oneshot::channel();
        let stopped = stop.clone();
        std::thread::Builder::new().name("leases".into()).spawn(move || {
            let run = AssertUnwindSafe(|| runtime.block_on(keeper.run(stopped)));
            if catch_unwind(run).is_err() {
                tracing::error!(
                    "the leases ended in a panic; budgets are spent only as far as they are leased"
                );
            }
            drop(done);
        })?;
        Ok((Self { stop, ended }, desk))
    }

    /// Tells what was spent, or writes it down for the next life. To be called when the last request has ended, and before the
    /// usage spool is let go.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.ended.await;
    }
}
