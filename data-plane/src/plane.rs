//! What the requests of one core share. Nothing in here is touched by another thread, so nothing is locked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;
use std::time::Duration;

use tollway_shared::ids::{ClusterId, NodeId, Region};

use crate::catalog::Live;
use crate::credentials::Keyring;
use crate::health::Health;
use crate::lease::Desk;
use crate::lengths::Lengths;
use crate::metrics::Meters;
use crate::minute::FreeMinute;
use crate::ratios::Ratios;
use crate::reading::Reading;
use crate::upstream::Upstream;
use crate::usage::Writer;

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Names {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its region.
    pub region: Region,
    /// Its id.
    pub node: NodeId,
}

/// Bounds of one request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Largest whole answer of a provider.
    pub reply_bytes_max: usize,
    /// How long a request body may take.
    pub body_timeout: Duration,
    /// How long a body may be slower than its floor.
    pub body_grace: Duration,
    /// Slowest average of a body after that; 0: no floor.
    pub body_bytes_per_s_min: u64,
    /// Most attempts of one request.
    pub attempts_max: usize,
    /// Most requests of one organization for free models in a minute; 0: no such limit.
    pub free_per_minute: u32,
    /// Oldest snapshot that is served from.
    pub max_stale_ms: i64,
}

/// How far the node's end has come.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

impl Phase {
    /// Not ready any more, still serving.
    pub const DRAINING: u8 = 1;
    /// Running answers end now.
    pub const ENDING: u8 = 2;

    /// Moves on. Never goes back.
    pub fn advance(&self, to: u8) {
        self.0.fetch_max(to, Ordering::Relaxed);
    }

    /// Whether a stage was reached.
    pub fn reached(&self, stage: u8) -> bool {
        self.0.load(Ordering::Relaxed) >= stage
    }
}

/// One core's share of the node.
pub struct Plane {
    /// Who this node is.
    pub names: Names,
    /// Bounds.
    pub limits: Limits,
    /// The newest snapshot.
    pub live: Live,
    /// What this node may spend of budgets.
    pub desk: Desk,
    /// What tenants read of their usage.
    pub reading: Reading,
    /// This core's usage writer.
    pub writer: Writer,
    /// This core's connections to providers.
    pub upstream: Upstream,
    /// What this core has seen of its endpoints.
    pub health: RefCell<Health>,
    /// How long its endpoints' answers are.
    pub lengths: RefCell<Lengths>,
    /// How many tokens its endpoints make of a text.
    pub ratios: RefCell<Ratios>,
    /// Chance.
    pub dice: Dice,
    /// What this core knows of its providers' credentials.
    pub credentials: RefCell<Keyring>,
    /// Requests for free models of the running minute, of every core.
    pub free: Arc<FreeMinute>,
    /// Metric handles.
    pub meters: Meters,
    /// How far the node's end has come.
    pub phase: Arc<Phase>,
    /// Running streams, to be woken when they must end.
    pub streams: Streams,
}

/// Running streams of one core.
#[derive(Debug, Default)]
pub struct Streams {
    wakers: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
    draining: Cell<usize>,
}

/// Most answers of one core that are read on for callers who have left. Each has its provider's connection and what was read last.
const DRAINING_MAX: usize = 256;

/// A place among the answers that are read on for nobody.
pub struct Draining(Rc<Plane>);

impl Draining {
    /// A place, if there is one left.
    pub fn enter(plane: &Rc<Plane>) -> Option<Self> {
        let taken = plane.streams.draining.get();
        if taken >= DRAINING_MAX {
            plane.meters.drain_refused.increment(1);
            return None;
        }
        plane.streams.draining.set(taken + 1);
        Some(Self(plane.clone()))
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        let draining = &self.0.streams.draining;
        draining.set(draining.get().saturating_sub(1));
    }
}

impl Streams {
    /// A number for a new stream.
    pub fn enter(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Remembers how to wake it.
    pub fn wake_by(&self, number: u64, waker: &Waker) {
        self.wakers.borrow_mut().insert(number, waker.clone());
    }

    /// Forgets it.
    pub fn leave(&self, number: u64) {
        self.wakers.borrow_mut().remove(&number);
    }

    /// Wakes all of them.
    pub fn wake_all(&self) {
        self.wakers.borrow().values().for_each(Waker::wake_by_ref);
    }
}

/// Fast random numbers (xoshiro256++), seeded from the operating system. For ids and draws, never for secrets.
#[derive(Debug)]
pub struct Dice(Cell<[u64; 4]>);

impl Dice {
    /// Seeds from the operating system.
    pub fn seeded() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        let mut state = [1; 4];
        for (word, part) in state.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(part.try_into().expect("chunks of eight")) | 1;
        }
        Self(Cell::new(state))
    }

    /// 64 bits.
    pub fn bits(&self) -> u64 {
        let mut s = self.0.get();
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        self.0.set(s);
        out
    }

    /// A number in `0.0..1.0`.
    pub fn chance(&self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}
