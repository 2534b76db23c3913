//! Whether this replica may vouch for what it shows: a majority confirmed lately that nothing newer had been answered.
//!
//! A replica that is cut off from the others still has nodes, and its applied state would look as fresh as ever to them while keys
//! are revoked elsewhere. So every sign of life to a node rests on a confirmed read of at most [`CONFIRMED_WITHIN`] ago; without one
//! the nodes are sent away to another replica.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tollway_proto::push::HEARTBEAT_MS;
use tonic::Status;

use super::Source;
use crate::metrics;

/// How long a confirmation counts: longer than an election takes at the default timings, so that a change of leader moves no node.
pub const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How long a new node is kept waiting for a confirmation before it is sent on: a replica that has just started has none.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// When a majority last confirmed this replica's state. Clones share it.
#[derive(Clone)]
pub(super) struct Contact(Arc<watch::Sender<Option<Instant>>>);

impl Contact {
    /// Never, so far.
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Whether that was lately enough; the refusal to give nodes otherwise.
    pub(super) fn check(&self) -> Result<(), Status> {
        if is_recent(*self.0.borrow()) {
            Ok(())
        } else {
            Err(Status::unavailable(
                "this replica has no contact with a majority of the replicas; follow another one",
            ))
        }
    }

    /// [`Contact::check`], for a node that may wait a moment.
    pub(super) async fn wait(&self) -> Result<(), Status> {
        let mut confirmed = self.0.subscribe();
        // Whatever ended the wait, the check says it.
        let _ = timeout(WAIT_MAX, confirmed.wait_for(|at| is_recent(*at))).await;
        self.check()
    }

    /// Asks for confirmation once per heartbeat until `shutdown`.
    pub(super) async fn keep(self, source: Arc<dyn Source>, shutdown: CancellationToken) {
        let mut had = false;
        loop {
            // From the question on, not from the answer: what was written in between may be missing here.
            let asked = Instant::now();
            let confirmed = tokio::select! {
                () = shutdown.cancelled() => return,
                confirmed = source.confirm() => confirmed,
            };
            if confirmed {
                self.0.send_replace(Some(asked));
            }
            let has = is_recent(*self.0.borrow());
            metrics::contact(has);
            if has != had {
                match has {
                    true => tracing::info!("a majority confirms this replica's state: nodes may follow it"),
                    false => {
                        tracing::warn!("no majority confirms this replica's state: its nodes are sent away")
                    }
                }
                had = has;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(Duration::from_millis(HEARTBEAT_MS)) => {}
            }
        }
    }
}

fn is_recent(confirmed: Option<Instant>) -> bool {
    confirmed.is_some_and(|at| at.elapsed() <= CONFIRMED_WITHIN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::future::{BoxFuture, FutureExt};
    use tokio::sync::broadcast;
    use tollway_proto::command::Outcome;
    use tollway_proto::lease::LeaseCall;
    use tollway_shared::ids::{NodeId, Revision};
    use tollway_shared::lease::message::Effect;
    use tollway_shared::snapshot::ResourceKey;

    use super::*;
    use crate::raft::ProposeFault;
    use crate::state::State;

    /// A replica whose majority comes and goes.
    struct Replica(AtomicBool);

    impl Source for Replica {
        fn watch(&self) -> watch::Receiver<Arc<State>> {
            watch::Sender::new(Arc::default()).subscribe()
        }

        fn changes_since(&self, _: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
            None
        }

        fn confirm(&self) -> BoxFuture<'_, bool> {
            futures::future::ready(self.0.load(Ordering::SeqCst)).boxed()
        }

        fn lease(&self, _: NodeId, _: LeaseCall) -> BoxFuture<'_, Result<Outcome, ProposeFault>> {
            futures::future::ready(Err(ProposeFault::NoLeader)).boxed()
        }

        fn effects(&self) -> broadcast::Receiver<Effect> {
            broadcast::Sender::new(1).subscribe()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn contact_lasts_over_an_election_and_ends_within_seconds() {
        let replica = Arc::new(Replica(AtomicBool::new(false)));
        let (contact, stop) = (Contact::new(), CancellationToken::new());
        tokio::spawn(contact.clone().keep(replica.clone(), stop.clone()));
        assert!(contact.wait().await.is_err(), "there never was a majority");
        replica.0.store(true, Ordering::SeqCst);
        contact.wait().await.unwrap();
        replica.0.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(4)).await;
        contact.check().unwrap();
        sleep(Duration::from_secs(3)).await;
        assert!(contact.check().is_err());
        stop.cancel();
    }
}
