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
use tollway_proto::push::{NOT_REGISTERED, REFUSAL};
use tollway_shared::ids::{NodeId, Region, Revision};
use tollway_shared::lease::message::Effect;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::ResourceKey;
use tollway_shared::time::UnixMillis;
use tonic::Status;
use tonic::metadata::MetadataValue;

use self::build::{Builder, RegionView, Reseal, resealing};
use self::contact::Contact;
use self::fleet::{Fleet, FleetNode};
use crate::identity::PeerIdentity;
use crate::identity::admit::is_registered;
use crate::metrics;
use crate::raft::{Cluster, Proposal, ProposeFault};
use crate::state::State;

/// How long after a view could not be built it is tried again, when no new revision comes before.
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
    reseal: Arc<Reseal>,
    now: fn() -> UnixMillis,
    /// `None` until the first state has been built.
    builder: Mutex<Option<Builder>>,
    regions: Mutex<BTreeMap<Region, watch::Sender<RegionView>>>,
    stuck: watch::Sender<Stuck>,
    fleet: Fleet,
    contact: Contact,
    shutdown: CancellationToken,
}

/// Whose views are behind because building them panicked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stuck {
    /// What is common to all regions could not be built.
    all: bool,
    regions: BTreeSet<Region>,
}

impl Stuck {
    fn any(&self) -> bool {
        self.all || !self.regions.is_empty()
    }

    fn has(&self, region: &Region) -> bool {
        self.all || self.regions.contains(region)
    }
}

impl Publisher {
    /// Starts following `source` until `shutdown`.
    pub fn start(
        source: Arc<dyn Source>,
        sealing_key: Key,
        now: fn() -> UnixMillis,
        shutdown: CancellationToken,
    ) -> Self {
        let reseal = resealing(sealing_key.clone());
        Self::start_with(source, sealing_key, reseal, now, shutdown)
    }

    fn start_with(
        source: Arc<dyn Source>,
        sealing_key: Key,
        reseal: Arc<Reseal>,
        now: fn() -> UnixMillis,
        shutdown: CancellationToken,
    ) -> Self {
        let contact = Contact::new();
        tokio::spawn(contact.clone().keep(source.clone(), shutdown.clone()));
        let publisher = Self(Arc::new(Inner {
            source,
            sealing_key,
            reseal,
            now,
            builder: Mutex::default(),
            regions: Mutex::default(),
            stuck: watch::Sender::default(),
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
        let mut stuck = self.0.stuck.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            let revision = state.revision;
            self.off_thread(move |publisher| publisher.publish(state)).await;
            let moved = async {
                let moved = states.wait_for(|state| state.revision != revision);
                moved.await.is_ok()
            };
            // Also when a node of a new region finds that its view cannot be built, later.
            let again = async {
                let is_stuck = stuck.wait_for(Stuck::any).await.is_ok();
                tokio::time::sleep(BUILD_AGAIN).await;
                is_stuck
            };
            let goes_on = tokio::select! {
                () = self.0.shutdown.cancelled() => false,
                moved = moved => moved,
                again = again => again,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Moves the regions' views on. One that cannot be built stays as it was, and the others do not mind.
    fn publish(&self, state: Arc<State>) {
        let mut builder = held(&self.0.builder);
        let regions = held(&self.0.regions);
        let revision = state.revision;
        let mut stuck = Stuck::default();
        if self
            .guarded(None, revision, || self.moved_on(&mut builder, state))
            .is_none()
        {
            *builder = None; // half of what is common would be worse than an old view
            stuck.all = true;
        }
        let shown = regions.iter().filter(|_| !stuck.all);
        for (region, sender) in shown {
            let built = self.guarded(Some(region), revision, || Some(builder.as_mut()?.region(region)));
            match built.flatten() {
                Some(view) => {
                    sender.send_if_modified(|shown| {
                        let is_new = shown.revision != view.revision;
                        *shown = view;
                        is_new
                    });
                }
                None => {
                    stuck.regions.insert(region.clone());
                }
            }
        }
        // Last: who is told that a view is fresh has it.
        self.0.stuck.send_if_modified(|before| {
            let is_new = *before != stuck;
            *before = stuck;
            is_new
        });
    }

    /// Brings the builder to a state.
    fn moved_on(&self, builder: &mut Option<Builder>, state: Arc<State>) {
        match builder {
            None => *builder = Some(Builder::with(self.0.reseal.clone(), state)),
            Some(builder) if builder.revision() == state.revision => {}
            Some(builder) => {
                let revision = state.revision;
                let changes = self.0.source.changes_since(builder.revision());
                let known = changes.filter(|(known, _)| *known >= revision && revision > builder.revision());
                builder.update(state, known.as_ref().map(|(_, keys)| keys));
            }
        }
    }

    /// Runs `work`, which builds the view of a region, or what is common to all; `None` when it panics. Then it is tried again, and until
    /// that succeeds no node of the region is told that what it has is fresh: see [`Publisher::check`].
    fn guarded<T>(&self, region: Option<&Region>, revision: Revision, work: impl FnOnce() -> T) -> Option<T> {
        // Nothing of what a panic may leave half done is looked at again.
        let done = catch_unwind(AssertUnwindSafe(work)).ok();
        if done.is_none() {
            metrics::publish_fault();
            tracing::error!(
                region = region.map_or("all", Region::as_str),
                %revision,
                again_in = ?BUILD_AGAIN,
                "what nodes see could not be built: its code panicked; nodes are sent to another replica"
            );
        }
        done
    }

    /// Whether nodes of a region may be told that what this replica shows is the newest there is; the refusal to give them otherwise.
    fn check(&self, region: &Region) -> Result<(), Status> {
        if self.0.stuck.borrow().has(region) {
            return Err(Status::unavailable(
                "this replica cannot build what nodes see; follow another one",
            ));
        }
        self.0.contact.check()
    }

    /// Refuses a node that is not registered. The refusal makes the node stop serving, so it is given only when a majority confirms
    /// it: a replica that is behind, or has just started, may not have heard of the node yet.
    async fn registered(&self, node: &PeerIdentity) -> Result<(), Status> {
        let states = self.0.source.watch();
        if is_registered(&states.borrow(), node) {
            return Ok(());
        }
        let confirmed = self.0.source.confirm().await;
        if is_registered(&states.borrow(), node) {
            return Ok(());
        }
        if !confirmed {
            return Err(Status::unavailable(
                "this replica does not know the node, and no majority says whether it should; ask another one",
            ));
        }
        let mut refusal = Status::permission_denied("this node is not registered; join again");
        let cause = MetadataValue::from_static(NOT_REGISTERED);
        refusal.metadata_mut().insert(REFUSAL, cause);
        Err(refusal)
    }

    /// Whether this replica may answer a node: the node is registered, and a majority confirms what is here.
    pub(crate) async fn vouches(&self, node: &PeerIdentity) -> Result<(), Status> {
        self.registered(node).await?;
        self.0.contact.check()
    }

    /// Follows a region's view.
    async fn region(&self, region: Region) -> watch::Receiver<RegionView> {
        self.off_thread(move |publisher| {
            let mut builder = held(&publisher.0.builder);
            let mut regions = held(&publisher.0.regions);
            if let Some(sender) = regions.get(&region) {
                return sender.subscribe();
            }
            let view = match &mut *builder {
                None => RegionView::default(), // comes with the state that is being built
                Some(builder) => {
                    let built =
                        publisher.guarded(Some(&region), builder.revision(), || builder.region(&region));
                    built.unwrap_or_else(|| {
                        publisher.0.stuck.send_modify(|stuck| {
                            stuck.regions.insert(region.clone());
                        });
                        RegionView::default()
                    })
                }
            };
            let sender = regions.entry(region).or_insert(watch::Sender::new(view));
            sender.subscribe()
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
        let eu = Region::trusted("eu");
        let mut view = publisher.region(eu.clone()).await;
        let first = replica.states.borrow().revision;
        view.wait_for(|view| view.revision == first).await.unwrap();
        publisher.0.contact.wait().await.unwrap();
        publisher.check(&eu).unwrap();

        replica.broken.store(true, Ordering::SeqCst);
        let mut stuck = publisher.0.stuck.subscribe();
        let mut state = samples::catalog();
        samples::run(&mut state, Command::AddPrice(samples::price("p2", 3, NOON)));
        let second = state.revision;
        replica.states.send_replace(Arc::new(state));
        stuck.wait_for(Stuck::any).await.unwrap();
        assert_eq!(view.borrow().revision, first, "the last whole view stays");
        assert!(publisher.check(&eu).is_err());

        // No new state comes.
        view.wait_for(|view| view.revision == second).await.unwrap();
        stuck.wait_for(|stuck| !stuck.any()).await.unwrap();
        publisher.check(&eu).unwrap();
        assert_eq!(view.borrow().len(), 8, "the sample credential opens nowhere");
        stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_region_whose_view_cannot_be_built_is_tried_again_and_holds_up_no_other() {
        let replica = Arc::new(Replica {
            states: watch::Sender::new(Arc::new(samples::catalog())),
            broken: AtomicBool::new(false),
        });
        let (eu, us) = (Region::trusted("eu"), Region::trusted("us"));
        let broken = Arc::new(AtomicBool::new(true));
        let reseal: Arc<Reseal> = {
            let (broken, us) = (broken.clone(), us.clone());
            Arc::new(move |region, credential| {
                let plants = *region == us && broken.load(Ordering::SeqCst);
                assert!(!plants, "a planted fault");
                Some(credential)
            })
        };
        let stop = CancellationToken::new();
        let key = Key::new([3; 32]);
        let publisher = Publisher::start_with(replica.clone(), key, reseal, || NOON, stop.clone());
        let mut stuck = publisher.0.stuck.subscribe();
        let mut of_eu = publisher.region(eu.clone()).await;
        let first = replica.states.borrow().revision;
        of_eu.wait_for(|view| view.revision == first).await.unwrap();
        publisher.0.contact.wait().await.unwrap();

        // The first node of a region, when everything else is quiet.
        let mut of_us = publisher.region(us.clone()).await;
        assert!(publisher.check(&us).is_err());
        publisher.check(&eu).unwrap();
        broken.store(false, Ordering::SeqCst);
        of_us.wait_for(|view| view.revision == first).await.unwrap();
        stuck.wait_for(|stuck| !stuck.any()).await.unwrap();
        publisher.check(&us).unwrap();

        // A region that has been served before.
        broken.store(true, Ordering::SeqCst);
        let mut state = State::clone(&replica.states.borrow());
        let mut credential = state.credentials.values().next().unwrap().value.clone();
        credential.version += 1;
        samples::run(&mut state, Command::PutCredential(credential));
        let second = state.revision;
        assert_ne!(first, second);
        replica.states.send_replace(Arc::new(state));
        of_eu.wait_for(|view| view.revision == second).await.unwrap();
        stuck.wait_for(|stuck| stuck.has(&us)).await.unwrap();
        publisher.check(&eu).unwrap();
        assert!(publisher.check(&us).is_err());
        assert_eq!(of_us.borrow().revision, first, "the last whole view stays");
        broken.store(false, Ordering::SeqCst);
        of_us.wait_for(|view| view.revision == second).await.unwrap();
        assert_eq!(of_us.borrow().hash(), of_eu.borrow().hash());
        stop.cancel();
    }
}
