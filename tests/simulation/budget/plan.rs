//! What a seed decides before the first step: budgets, rates, the hour; and the bug that is planted, if any.

use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use tollway_shared::budget::terms::{Mode, Terms, Unit};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::ids::{ApiKeyId, BudgetId, ModelId, OrganizationId, ProjectId, TeamId};
use tollway_shared::time::{Day, UnixMillis};
use tollway_shared::window::{Cycle, Every, Zone};

pub(crate) use crate::plan::chance;

/// Nodes of the cluster.
pub(crate) const NODES: usize = 5;
/// API keys: two of a project in a team, two of a project without one.
pub(crate) const KEYS: usize = 4;
/// Partitions of the usage log.
pub(crate) const PARTITIONS: i32 = 2;
/// 2026-11-30T12:00:00Z: the day ends, and so does the month, in every zone.
const NOON: UnixMillis = UnixMillis(1_796_040_000_000);
/// About what the worst of a request costs, nano-dollars.
const WORST: i64 = 2_000_000;

/// Everything that is drawn from the seed before the first step.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) budgets: Vec<Budget>,
    /// When the run begins: a few seconds before a window ends.
    pub(crate) begin: UnixMillis,
    /// How long faults go on, in simulated time.
    pub(crate) faults_for: Duration,
    /// Mean time between two faults, and between two requests of a node.
    pub(crate) fault_every_ms: u64,
    pub(crate) request_every_ms: u64,
    /// The network's habits.
    pub(crate) lost: f64,
    pub(crate) twice: f64,
    pub(crate) delay_ms: u64,
    /// When a writer of the usage spool begins another file.
    pub(crate) segment_bytes: u64,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = chance(seed, "budget plan");
        let zone = zone(&mut rng);
        let daily = Cycle {
            every: Every::Day,
            zone: zone.clone(),
        };
        let midnight = daily.span(NOON).expect("a zone of the database").end;
        let before = rng.random_range(1_500..9_000);
        Self {
            seed,
            budgets: budgets(&mut rng, &zone),
            begin: midnight.expect("days end").plus_ms(-before),
            faults_for: Duration::from_millis(rng.random_range(8_000..14_000)),
            fault_every_ms: rng.random_range(250..1_200),
            request_every_ms: rng.random_range(150..700),
            lost: rng.random_range(0.0..0.08),
            twice: rng.random_range(0.0..0.10),
            delay_ms: rng.random_range(2..=25),
            segment_bytes: if rng.random_bool(0.25) { 12_000 } else { 4 << 20 },
        }
    }
}

fn zone(rng: &mut ChaCha8Rng) -> Zone {
    let names = ["UTC", "UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"];
    let name = names.choose(rng).expect("there are some");
    Zone::parse(name).expect("a zone of the database")
}

/// Budgets of the organization, of the team or project below it, and of the keys; now and then one of a model alone.
fn budgets(rng: &mut ChaCha8Rng, zone: &Zone) -> Vec<Budget> {
    let whole = rng.random_range(40..220);
    let scopes = [
        (
            "org",
            BudgetScope::Organization(OrganizationId::trusted("o")),
            100..101,
        ),
        ("team", BudgetScope::Team(TeamId::trusted("t")), 35..110),
        ("project", BudgetScope::Project(ProjectId::trusted("j1")), 35..110),
    ];
    let keys = (0..KEYS).map(|key| {
        let scope = BudgetScope::Key(ApiKeyId::trusted(format!("k{key}")));
        (format!("key-{key}"), scope, 15..70)
    });
    let scopes = scopes.map(|(id, scope, share)| (id.to_owned(), scope, share));
    let mut budgets = Vec::new();
    for (id, scope, share) in scopes.into_iter().chain(keys) {
        let requests = whole * rng.random_range(share) / 100;
        budgets.push(budget(rng, zone, &id, scope, requests));
    }
    // What an organization has is money; nothing else has to be.
    budgets[0].terms.unit = Unit::Money;
    budgets[0].terms.limit = whole * WORST;
    if rng.random_bool(0.3) {
        let scope = BudgetScope::Organization(OrganizationId::trusted("o"));
        let requests = whole * rng.random_range(15..60) / 100;
        let mut of_model = budget(rng, zone, "model", scope, requests);
        of_model.model = Some(ModelId::trusted("sim/m1"));
        budgets.push(of_model);
    }
    budgets
}

/// A budget for about so many requests.
fn budget(rng: &mut ChaCha8Rng, zone: &Zone, id: &str, scope: BudgetScope, requests: i64) -> Budget {
    let requests = requests.max(8);
    let (unit, limit) = match rng.random_range(0..10) {
        0..6 => (Unit::Money, requests * WORST),
        6..8 => (Unit::Tokens, requests * 700),
        _ => (Unit::Requests, requests),
    };
    let every = match rng.random_range(0..10) {
        0..4 => Every::Lifetime,
        4..8 => Every::Day,
        8 => Every::Month,
        _ => Every::Days {
            count: 3,
            from: Day(rng.random_range(0..3)),
        },
    };
    let utc = rng.random_bool(0.2);
    let terms = Terms {
        unit,
        limit,
        cycle: Cycle {
            every,
            zone: if utc { Zone::utc() } else { zone.clone() },
        },
        mode: if rng.random_bool(0.7) {
            Mode::Hard
        } else {
            Mode::Clamp
        },
        per_request_max: rng.random_bool(0.1).then_some(limit / 4),
        thresholds_percent: vec![50, 80, 100],
        standby_ppm: if rng.random_bool(0.4) {
            rng.random_range(5_000..60_000)
        } else {
            0
        },
        raises: Vec::new(),
    };
    Budget {
        id: BudgetId::trusted(id),
        scope,
        model: None,
        terms,
    }
}
