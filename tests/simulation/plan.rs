//! What a seed decides: sizes, rates, and the bug that is planted, if any.

use std::time::Duration;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Bugs that are put in on purpose, to see that the properties find them. They live in the simulation, not in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Usage is added without comparing `from` with the offset reached.
    CountsTwice,
    /// Replica 2 skips every fortieth entry.
    SkipsEntry,
    /// Idempotency keys are not looked at.
    ForgetsIdempotency,
    /// A write is answered when it is sent, not when it is committed.
    AnswersEarly,
    /// A replica's disk says "synced" and loses the newest entries in a crash all the same.
    LyingDisk,
    /// A read does not wait for the leader's index.
    StaleReads,
    /// A node takes whatever snapshot comes, older ones too.
    NodeGoesBack,
}

impl Planted {
    pub(crate) const ALL: [Self; 7] = [
        Self::CountsTwice,
        Self::SkipsEntry,
        Self::ForgetsIdempotency,
        Self::AnswersEarly,
        Self::LyingDisk,
        Self::StaleReads,
        Self::NodeGoesBack,
    ];

    /// The bug whose `Debug` text is `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }

    /// The properties that may find it.
    pub(crate) fn caught_by(self) -> &'static [&'static str] {
        match self {
            Self::CountsTwice => &["spend_once"],
            Self::SkipsEntry => &["replicas_equal"],
            // A write that is applied again is seen in the audit trail, or first in its answer, which is another one.
            Self::ForgetsIdempotency => &["applied_once", "acknowledged_kept"],
            Self::AnswersEarly => &["acknowledged_kept"],
            // Forgotten entries are first seen as another entry at an index, as a lost write, or as a log that cannot be right.
            Self::LyingDisk => &[
                "acknowledged_kept",
                "replicas_equal",
                "reads_are_fresh",
                "replicas_run",
            ],
            Self::StaleReads => &["reads_are_fresh"],
            Self::NodeGoesBack => &["revision_forward"],
        }
    }
}

/// Everything that is drawn from the seed before the first step.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) replicas: u64,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) partitions: i32,
    /// Whether operators replace replicas.
    pub(crate) replaces: bool,
    /// How long faults go on, in simulated time.
    pub(crate) faults_for: Duration,
    /// Mean time between two faults.
    pub(crate) fault_every: Duration,
    pub(crate) lost: f64,
    pub(crate) twice: f64,
    pub(crate) delay_ms: u64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_timeout_ms: u64,
    pub(crate) checkpoint_entries: u64,
    pub(crate) kept_entries: u64,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = chance(seed, "plan");
        Self {
            seed,
            replicas: if rng.random_bool(0.25) { 5 } else { 3 },
            nodes: rng.random_range(2..=4),
            clients: rng.random_range(3..=6),
            partitions: rng.random_range(1..=3),
            replaces: rng.random_bool(0.5),
            faults_for: Duration::from_secs(rng.random_range(25..=40)),
            fault_every: Duration::from_millis(rng.random_range(400..=2_000)),
            // A lost message holds replication up for seconds: most seeds lose few, so that much gets done between faults.
            lost: if rng.random_bool(0.8) {
                rng.random_range(0.0..0.006)
            } else {
                rng.random_range(0.0..0.06)
            },
            twice: rng.random_range(0.0..0.10),
            delay_ms: rng.random_range(2..=25),
            heartbeat_ms: 50,
            election_timeout_ms: rng.random_range(250..=400),
            checkpoint_entries: rng.random_range(15..=40),
            kept_entries: rng.random_range(0..=15),
        }
    }
}

/// The generator of one actor: independent of what the others draw.
pub(crate) fn chance(seed: u64, actor: &str) -> ChaCha8Rng {
    // FNV-1a, so that neither the order of actors nor a hash map's state matters.
    let mixed = actor.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    ChaCha8Rng::seed_from_u64(mixed)
}
