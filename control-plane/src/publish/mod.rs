//! Push: revision → what each region sees → each node's stream. Any replica serves it, from applied state.
//!
//! | file | what |
//! |---|---|
//! | [`build`] | pure: a state as one region's nodes see it, built once per revision and region |
//! | [`session`] | pure: what to send to one node next |
//! | [`serve`] | the gRPC service: one task and bounded queues per node, so a slow one holds up nobody |
//! | [`contact`] | whether a majority confirms what this replica shows |
//! | [`fleet`] | the nodes connected to this replica, and what they run |

pub mod build;
pub mod contact;
pub mod fleet;
pub mod serve;
pub mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollway_shared::ids::{Region, Revision};
use tollway_shared::seal::Key;
use tollway_shared::snapshot::ResourceKey;
use tollway_shared::time::UnixMillis;

use self::build::{Builder, RegionView};
use self::contact::Contact;
use self::fleet::{Fleet, FleetNode};
use crate::raft::Cluster;
use crate::state::State;

pub use self::serve::PushService;

/// Where applied state comes from.
pub trait Source: Send + Sync + 'static {
    /// Follows the applied state.
    fn watch(&self) -> watch::Receiver<Arc<State>>;

    /// What changed after a revision, and up to which one that is known.
    fn changes_since(&self, revision: Revision) -> Option<(Revision, BTreeSet<ResourceKey>)>;

    /// Waits until the applied state has everything that was answered before the call. `false`: no majority says so, or not in time.
    fn confirm(&self) -> BoxFuture<'_, bool>;
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
            self.off_thread(move |publisher| publisher.publish(state)).await;
            tokio::select! {
                () = self.0.shutdown.cancelled() => return,
                changed = states.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Moves every region's view on.
    fn publish(&self, state: Arc<State>) {
        let mut builder = self.0.builder.lock().expect("building does not panic");
        match &mut *builder {
            None => *builder = Some(Builder::new(self.0.sealing_key.clone(), state)),
            Some(builder) if builder.revision() == state.revision => return,
            Some(builder) => {
                let revision = state.revision;
                let changes = self.0.source.changes_since(builder.revision());
                let known = changes.filter(|(known, _)| *known >= revision && revision > builder.revision());
                builder.update(state, known.as_ref().map(|(_, keys)| keys));
            }
        }
        let Some(builder) = &mut *builder else { return };
        let regions = self
            .0
            .regions
            .lock()
            .expect("no code panics while it holds the regions");
        for (region, view) in &*regions {
            view.send_replace(builder.region(region));
        }
    }

    /// Follows a region's view.
    async fn region(&self, region: Region) -> watch::Receiver<RegionView> {
        self.off_thread(move |publisher| {
            let mut builder = publisher.0.builder.lock().expect("building does not panic");
            let mut regions = publisher
                .0
                .regions
                .lock()
                .expect("no code panics while it holds the regions");
            let view = regions.entry(region.clone()).or_insert_with(|| {
                let view = builder.as_mut().map(|builder| builder.region(&region));
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
            .expect("building does not panic")
    }
}
