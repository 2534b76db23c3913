//! Push: revision → what each region sees → each node's stream. Any replica serves it, from applied state.
//!
//! | file | what |
//! |---|---|
//! | [`build`] | pure: a state as one region's nodes see it, built once per revision and region |
//! | [`session`] | pure: what to send to one node next |
//! | [`serve`] | the gRPC service: one task and bounded queues per node, so a slow one holds up nobody |
//! | [`lease`] | what nodes say about leases, handed to the leader |
//! | [`contact`] | whether a majority confirms what this replica shows |
//! | [`fleet`] | the nodes connected to this replica, and what they run |

pub mod build;
pub mod contact;
pub mod fleet;
pub mod lease;
pub mod serve;
pub mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tollway_proto::command::{Command, Outcome};
use tollway_proto::lease::LeaseCall;
use tollway_shared::ids::{NodeId, Region, Revision};
use tollway_shared::lease::message::Effect;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::ResourceKey;
use tollway_shared::time::UnixMillis;
use tonic::Status;

use self::build::{Builder, RegionView};
use self::contact::Contact;
use self::fleet::{Fleet, FleetNode};
use crate::metrics;
use crate::raft::{Cluster, Proposal, ProposeFault};
use crate::state::State;

/// How long after a view could not be built it is tried again, when no new state comes before.
const BUILD_AGAIN: Duration = Duration::from_secs(5);

pub use self::serve::PushService;

/// Where applied state comes from.
pub trait Source: Send + Sync + 'static {
    /// Follows the applied state.
    fn watch(&self) -> watch::Receiver<Arc<State>>;

    /// What changed after a revision, and up to which one that is known.
    fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)>;

    /// Waits until the applied state has everything that was answered before the call. `false`: no majority says so, or not in time.
    fn confirm(&self) -> BoxFuture<'_, bool>;

    /// Says at the leader what a node says about leases; answered once it is applied.
    fn lease(&self, node: NodeId, call: LeaseCall) -> BoxFuture<'_, Result<Outcome, ProposeFault>>;

    /// Follows what applied entries want told to nodes.
    fn effects(&self) -> broadcast::Receiver<Effect>;
}

impl Source for Cluster {
    fn watch(&self) -> watch::Receiver<Arc<State>> {
        Cluster::watch(self)
    }

    fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
        Cluster::changes_since(self, revision)
    }

    fn confirm(&self) -> BoxFuture<'_, bool> {
        self.barrier().map(|reached| reached.is_ok()).boxed()
    }

    fn lease(&self, node: NodeId, call: LeaseCall) -> BoxFuture<'_, Result<Outcome, ProposeFault>> {
        self.propose(Proposal::system(Command::Lease { node, call }))
            .boxed()
    }

    fn effects(&self) -> broadcast::Receiver<Effect> {
        Cluster::effects(self)
    }
}

/// Keeps every region's view up to date. Clones share it.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    source: Arc<dyn Source>,
    sealing_key: Key,
    now: fn() -> UnixMillis,
    /// `None` until the first state has been built.
    builder: Mutex<Option<Builder>>,
    regions: Mutex<BTreeMap<Region, watch::Sender<RegionView>>>,
    /// Whether the views are behind because building them panicked.
    stuck: watch::Sender<bool>,
    fleet: Fleet,
    contact: Contact,
    shutdown: CancellationToken,
}

impl Publisher {
    /// Starts following `source` until `shutdown`.
    pub fn start(
        source: Arc<dyn Source>,
        sealing_key: Key,
        now: fn() -> UnixMillis,
        shutdown: CancellationToken,
    ) -> Self {
        let contact = Contact::new();
        tokio::spawn(contact.clone().keep(source.clone(), shutdown.clone()));
        let publisher = Self(Arc::new(Inner {
            source,
            sealing_key,
            now,
            builder: Mutex::default(),
            regions: Mutex::default(),
            stuck: watch::Sender::new(false),
            fleet: Fleet::default(),
            contact,
            shutdown,
        }));
        tokio::spawn(publisher.clone().follow());
        publisher
    }

    /// The nodes connected to this replica.
    pub fn nodes(&self) -> Vec<FleetNode> {
        let newest = self.0.source.watch().borrow().revision;
        self.0.fleet.nodes(newest)
    }

    async fn follow(self) {
        let mut states = self.0.source.watch();
        loop {
            let state = states.borrow_and_update().clone();
            let built = self.off_thread(move |publisher| publisher.publish(state)).await;
            tokio::select! {
                () = self.0.shutdown.cancelled() => return,
                changed = states.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(BUILD_AGAIN), if !built => {}
            }
        }
    }

    /// Moves every region's view on. `false`: that panicked, and the views are as they were.
    fn publish(&self, state: Arc<State>) -> bool {
        let mut builder = held(&self.0.builder);
        let regions = held(&self.0.regions);
        let revision = state.revision;
        let views = self.guarded(&mut builder, revision, |builder| {
            self.moved_on(builder, state)?;
            let builder = builder.as_mut()?;
            Some(regions.keys().map(|region| builder.region(region)).collect())
        });
        let Some(views) = views else { return false };
        let views: Vec<RegionView> = views.unwrap_or_default();
        for (view, sender) in views.into_iter().zip(regions.values()) {
            sender.send_replace(view);
        }
        self.0.stuck.send_replace(false);
        true
    }

    /// Brings the builder to a state; `None` when it is there already.
    fn moved_on(&self, builder: &mut Option<Builder>, state: Arc<State>) -> Option<()> {
        match builder {
            None => *builder = Some(Builder::new(self.0.sealing_key.clone(), state)),
            Some(builder) if builder.revision() == state.revision => return None,
            Some(builder) => {
                let revision = state.revision;
                let changes = self.0.source.changes_since(builder.revision());
                let known = changes.filter(|(known, _)| *known >= revision && revision > builder.revision());
                builder.update(state, known.as_ref().map(|(_, keys)| keys));
            }
        }
        Some(())
    }

    /// Runs `work` on the builder; `None` when it panics. Half a view would be worse than an old one, so the next try builds all of it
    /// anew; until one succeeds no node is told that what it has is fresh: see [`Publisher::check`].
    fn guarded<T>(
        &self,
        builder: &mut Option<Builder>,
        revision: Revision,
        work: impl FnOnce(&mut Option<Builder>) -> T,
    ) -> Option<T> {
        // Nothing of what a panic may leave half done is looked at again.
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut *builder))).ok();
        if done.is_none() {
            *builder = None;
            self.0.stuck.send_replace(true);
            metrics::publish_fault();
            tracing::error!(
                %revision,
                again_in = ?BUILD_AGAIN,
                "what nodes see could not be built: its code panicked; nodes are sent to another replica"
            );
        }
        done
    }

    /// Whether nodes may be told that what this replica shows is the newest there is; the refusal to give them otherwise.
    fn check(&self) -> Result<(), Status> {
        if *self.0.stuck.borrow() {
            return Err(Status::unavailable(
                "this replica cannot build what nodes see; follow another one",
            ));
        }
        self.0.contact.check()
    }

    /// Follows a region's view.
    async fn region(&self, region: Region) -> watch::Receiver<RegionView> {
        self.off_thread(move |publisher| {
            let mut builder = held(&publisher.0.builder);
            let mut regions = held(&publisher.0.regions);
            let view = regions.entry(region.clone()).or_insert_with(|| {
                let revision = builder.as_ref().map(Builder::revision).unwrap_or_default();
                let built = |builder: &mut Option<Builder>| Some(builder.as_mut()?.region(&region));
                let view = match *builder {
                    None => None, // comes with the state that is being built
                    Some(_) => publisher.guarded(&mut builder, revision, built).flatten(),
                };
                watch::Sender::new(view.unwrap_or_default())
            });
            view.subscribe()
        })
        .await
    }

    /// Building a large view takes seconds: never on a runtime thread.
    async fn off_thread<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let publisher = self.clone();
        tokio::task::spawn_blocking(move || work(&publisher))
            .await
            .expect("what may panic is caught where it is")
    }
}

/// Locks. What a panic left behind is dealt with where it is caught.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::state::samples::{self, NOON};

    /// A replica whose list of changes cannot be read for a while.
    struct Replica {
        states: watch::Sender<Arc<State>>,
        broken: AtomicBool,
    }

    impl Source for Replica {
        fn watch(&self) -> watch::Receiver<Arc<State>> {
            self.states.subscribe()
        }

        fn changes_since(&self, _: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)> {
            assert!(!self.broken.load(Ordering::SeqCst), "a planted fault");
            None
        }

        fn confirm(&self) -> BoxFuture<'_, bool> {
            futures::future::ready(true).boxed()
        }

        fn lease(&self, _: NodeId, _: LeaseCall) -> BoxFuture<'_, Result<Outcome, ProposeFault>> {
            futures::future::ready(Err(ProposeFault::NoLeader)).boxed()
        }

        fn effects(&self) -> broadcast::Receiver<Effect> {
            broadcast::Sender::new(1).subscribe()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_that_could_not_be_built_is_built_anew_and_until_then_no_node_is_told_that_it_is_fresh() {
        let replica = Arc::new(Replica {
            states: watch::Sender::new(Arc::new(samples::catalog())),
            broken: AtomicBool::new(false),
        });
        let stop = CancellationToken::new();
        let publisher = Publisher::start(replica.clone(), Key::new([3; 32]), || NOON, stop.clone());
        let mut view = publisher.region(Region::trusted("eu")).await;
        let first = replica.states.borrow().revision;
        view.wait_for(|view| view.revision == first).await.unwrap();
        publisher.0.contact.wait().await.unwrap();
        publisher.check().unwrap();

        replica.broken.store(true, Ordering::SeqCst);
        let mut stuck = publisher.0.stuck.subscribe();
        let mut state = samples::catalog();
        samples::run(&mut state, Command::AddPrice(samples::price("p2", 3, NOON)));
        let second = state.revision;
        replica.states.send_replace(Arc::new(state));
        stuck.wait_for(|stuck| *stuck).await.unwrap();
        assert_eq!(view.borrow().revision, first, "the last whole view stays");
        assert!(publisher.check().is_err());

        // No new state comes.
        view.wait_for(|view| view.revision == second).await.unwrap();
        stuck.wait_for(|stuck| !*stuck).await.unwrap();
        publisher.check().unwrap();
        assert_eq!(view.borrow().len(), 8, "the sample credential opens nowhere");
        stop.cancel();
    }
}
