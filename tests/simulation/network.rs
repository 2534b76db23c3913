//! The network between replicas: it delays, loses, repeats, reorders and cuts.
//!
//! A call is handed to whoever runs under its target's id when it arrives. A reply of a replica that has crashed meanwhile is lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tollway_control::raft::{Call, Cluster, Reply, Transport, TransportFault};
use tollway_shared::ids::ReplicaId;

use crate::plan::{Plan, chance};
use crate::world::World;

/// How the links are right now.
pub(crate) struct Net {
    inner: Mutex<Inner>,
}

struct Inner {
    rng: ChaCha8Rng,
    lost: f64,
    twice: f64,
    delay_ms: u64,
    /// Directed links that carry nothing.
    cut: BTreeSet<(u64, u64)>,
    /// Checkpoints that were delivered.
    installs: u64,
}

/// What becomes of one message.
struct Leg {
    delay: Duration,
    lost: bool,
    again_after: Option<Duration>,
}

impl Net {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            inner: Mutex::new(Inner {
                rng: chance(plan.seed, "network"),
                lost: 0.0,
                twice: 0.0,
                delay_ms: 2,
                cut: BTreeSet::new(),
                installs: 0,
            }),
        }
    }

    /// Sets the rates of loss and repetition and the longest usual delay.
    pub(crate) fn rates(&self, lost: f64, twice: f64, delay_ms: u64) {
        let mut inner = self.inner.lock().unwrap();
        (inner.lost, inner.twice, inner.delay_ms) = (lost, twice, delay_ms.max(1));
    }

    /// Cuts a directed link.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.inner.lock().unwrap().cut.insert((from, to));
    }

    /// Mends every link.
    pub(crate) fn mend(&self) {
        self.inner.lock().unwrap().cut.clear();
    }

    /// Checkpoints that replicas sent to each other.
    pub(crate) fn installs(&self) -> u64 {
        self.inner.lock().unwrap().installs
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.inner.lock().unwrap().cut.contains(&(from, to))
    }

    /// The delay of one message on a stream that neither loses nor reorders.
    pub(crate) fn delay(&self) -> Duration {
        self.draw().delay
    }

    fn draw(&self) -> Leg {
        let mut inner = self.inner.lock().unwrap();
        let (lost, twice, most) = (inner.lost, inner.twice, inner.delay_ms);
        let rng = &mut inner.rng;
        // One message in fifty takes far longer: that is what reorders.
        let straggler = if rng.random_bool(0.02) {
            rng.random_range(1..=10)
        } else {
            1
        };
        Leg {
            delay: Duration::from_micros(rng.random_range(100..=most * 1_000 * straggler)),
            lost: rng.random_bool(lost),
            again_after: rng
                .random_bool(twice)
                .then(|| Duration::from_millis(rng.random_range(1..=most * 20))),
        }
    }
}

/// A message between replicas.
#[derive(Clone)]
struct Parcel {
    call: Call,
    checkpoint: Option<Bytes>,
}

impl Parcel {
    async fn hand_to(self, cluster: &Cluster) -> Reply {
        match self.checkpoint {
            Some(bytes) => cluster.serve_install(self.call, bytes).await,
            None => cluster.serve(self.call).await,
        }
    }
}

/// One replica's end of the network.
pub(crate) struct Port {
    pub(crate) world: Weak<World>,
    pub(crate) id: u64,
}

impl Port {
    fn send(
        &self,
        to: ReplicaId,
        parcel: Parcel,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>> {
        let (world, from) = (self.world.upgrade(), self.id);
        Box::pin(async move {
            let Some(world) = world else {
                return Err(TransportFault::Unreachable("the simulation is over".into()));
            };
            let answer = timeout(within, carry(world, from, to.0, parcel)).await;
            answer.unwrap_or(Err(TransportFault::Late(within)))
        })
    }
}

impl Transport for Port {
    fn call(
        &self,
        to: ReplicaId,
        _address: &str,
        call: Call,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>> {
        let parcel = Parcel {
            call,
            checkpoint: None,
        };
        self.send(to, parcel, within)
    }

    fn install(
        &self,
        to: ReplicaId,
        _address: &str,
        call: Call,
        checkpoint: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Reply, TransportFault>> {
        let checkpoint = Some(checkpoint);
        self.send(to, Parcel { call, checkpoint }, within)
    }
}

async fn carry(world: Arc<World>, from: u64, to: u64, parcel: Parcel) -> Result<Reply, TransportFault> {
    let name = parcel.call.name();
    let out = world.net.draw();
    sleep(out.delay).await;
    if world.net.is_cut(from, to) || out.lost {
        world.trace.note(&format!("{from} -x {to} {name}"));
        return std::future::pending().await;
    }
    let Some((life, cluster)) = world.replicas.running(to) else {
        return Err(TransportFault::Unreachable(format!("replica {to} is down")));
    };
    world.trace.note(&format!("{from} -> {to} {name}"));
    world.net.inner.lock().unwrap().installs += u64::from(parcel.checkpoint.is_some());
    if let Some(after) = out.again_after {
        tokio::spawn(deliver_again(world.clone(), from, to, parcel.clone(), after));
    }
    let (answer, answered) = oneshot::channel();
    // A task of its own: what was delivered is done, whether or not the caller still waits.
    tokio::spawn(async move {
        let reply = parcel.hand_to(&cluster).await;
        let _ = answer.send(reply);
    });
    let Ok(reply) = answered.await else {
        return std::future::pending().await;
    };
    let back = world.net.draw();
    sleep(back.delay).await;
    let same_life = world.replicas.running(to).is_some_and(|(now, _)| now == life);
    if !same_life || back.lost || world.net.is_cut(to, from) {
        world.trace.note(&format!("{from} x- {to} {name}"));
        return std::future::pending().await;
    }
    world.trace.note(&format!("{from} <- {to} {name}"));
    Ok(reply)
}

async fn deliver_again(world: Arc<World>, from: u64, to: u64, parcel: Parcel, after: Duration) {
    sleep(after).await;
    if world.net.is_cut(from, to) {
        return;
    }
    if let Some((_, cluster)) = world.replicas.running(to) {
        world
            .trace
            .note(&format!("{from} => {to} {} again", parcel.call.name()));
        let _late = parcel.hand_to(&cluster).await;
    }
}
