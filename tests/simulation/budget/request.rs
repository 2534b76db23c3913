//! The life of a request: the hold of `stages/hold.rs` over the real desk, slices and claim, the records in the spool, the provider's
//! own count, and the settlement.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use tollway_data::lease::claim::{Bounds, Most, Rates};
use tollway_data::lease::desk::Told;
use tollway_data::lease::inherit;
use tollway_proto::spool::{Held, HeldPart};
use tollway_proto::usage::{EndState, UnixMillisText, UsageEvent, UsageSource};
use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::budget::{Budget, BudgetScope};
use tollway_shared::catalog::PriceVersion;
use tollway_shared::cost::{self, Charge};
use tollway_shared::ids::{ApiKeyId, BudgetId, EndpointId, ModelId, RequestId};
use tollway_shared::lease::hold::{Amounts, Hold, Level, Short, hold};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

use super::node::Process;
use super::plan::KEYS;
use super::plant;
use super::run::World;
use super::truth::Part;

/// As in `stages/hold.rs`.
const PATIENCE: Duration = Duration::from_secs(3);
const TRIES_MAX: usize = 64;
const UNCAPPED_SHARE: i64 = 4;
const UNCAPPED_LEAST: u64 = 1_024;
/// What an endpoint without a cap of the caller's answers at most.
const OUTPUT_TOKENS_MAX: u64 = 4_000;

/// What a caller wants.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) key: usize,
    pub(crate) model: usize,
    pub(crate) prompt: u64,
    pub(crate) cap: Option<u64>,
    /// How long its provider takes, and what share of what it may use it uses; 0 = it fails.
    pub(crate) takes_ms: u64,
    pub(crate) used: f64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Served,
    /// 403, by the leases of this budget, of which so much was wanted.
    Refused(BudgetId, i64),
    /// 403, by what the ledger has recorded of this budget.
    Stopped(BudgetId),
    /// 503.
    Unavailable,
    /// 403: more than one request may cost.
    TooDear,
    /// The node died.
    Interrupted,
}

/// Endpoints of a model: the numbers of [`super::catalog`].
pub(crate) fn endpoints(model: usize) -> &'static [usize] {
    if model == 0 { &[0, 1] } else { &[2] }
}

struct OnHold {
    hold: Hold,
    held: Held,
    parts: Vec<Part>,
}

/// What is asked of a node at random.
pub(crate) fn random(world: &World) -> Ask {
    world.draw(|rng| Ask {
        key: rng.random_range(0..KEYS),
        model: usize::from(rng.random_bool(0.3)),
        prompt: rng.random_range(20..600),
        cap: rng.random_bool(0.8).then(|| rng.random_range(20..600)),
        takes_ms: rng.random_range(5..2_500),
        used: if rng.random_bool(0.1) {
            0.0
        } else {
            rng.random_range(0.05..=1.0)
        },
    })
}

/// Callers of one node, for as long as there are faults.
pub(crate) async fn callers(world: Rc<World>, n: usize) {
    let mean = world.plan.request_every_ms;
    while !world.is_calm() {
        sleep(Duration::from_millis(
            world.draw(|rng| rng.random_range(mean / 4..mean * 2)),
        ))
        .await;
        let ask = random(&world);
        let burst = world.draw(|rng| if rng.random_bool(0.05) { 6 } else { 1 });
        for _ in 0..burst {
            spawn_local(one(world.clone(), n, ask.clone()));
        }
    }
}

/// One request to a node.
pub(crate) async fn one(world: Rc<World>, n: usize, ask: Ask) -> Ended {
    let process = world.nodes.borrow()[n].process.clone();
    let Some(process) = process.filter(|_| !world.draining.borrow()[n]) else {
        return Ended::Unavailable;
    };
    world.running.borrow_mut()[n] += 1;
    let ended = tokio::select! {
        biased;
        () = process.kill.cancelled() => Ended::Interrupted,
        ended = serve(&world, n, &process, &ask) => ended,
    };
    world.running.borrow_mut()[n] -= 1;
    world.ended(n, &ask, &ended);
    ended
}

struct Limit<'a> {
    budget: &'a Budget,
    terms: Cow<'a, Terms>,
}

/// The leased budgets of the path that count the model.
fn on_path<'a>(snapshot: &'a Snapshot, path: &TenantPath, model: &ModelId, capped: bool) -> Vec<Limit<'a>> {
    let scopes = BudgetScope::of_path(path, std::iter::once(path.key.clone()));
    let views = scopes.filter_map(|scope| snapshot.budgets.get(&scope)).flatten();
    let leased = views.filter(|view| view.budget.leased() && view.budget.counts(model));
    leased
        .map(|view| {
            let terms = &view.budget.terms;
            let terms = if capped || terms.mode == Mode::Clamp {
                Cow::Borrowed(terms)
            } else {
                Cow::Owned(Terms {
                    mode: Mode::Clamp,
                    ..terms.clone()
                })
            };
            Limit {
                budget: &view.budget,
                terms,
            }
        })
        .collect()
}

async fn serve(world: &Rc<World>, n: usize, process: &Process, ask: &Ask) -> Ended {
    let snapshot = process.snapshot.borrow().clone();
    let key = ApiKeyId::trusted(format!("k{}", ask.key));
    let path = super::catalog::path(ask.key);
    let model = ModelId::trusted(format!("sim/m{}", ask.model));
    let stops = BudgetScope::of_path(&path, std::iter::once(key)).find_map(|scope| {
        let views = snapshot.budgets.get(&scope)?.iter();
        let mut stopped =
            views.filter(|view| view.budget.counts(&model) && view.stops(process.clock.now()).is_some());
        stopped.next().map(|view| view.budget.id.clone())
    });
    if let Some(budget) = stops {
        return Ended::Stopped(budget);
    }
    let price = |endpoint: &usize| {
        let id = EndpointId::trusted(format!("p/e{endpoint}"));
        snapshot.prices_at(&id, process.clock.now()).cloned()
    };
    let prices: Vec<_> = endpoints(ask.model).iter().filter_map(price).collect();
    let most = Most {
        prompt_tokens: ask.prompt,
        output_tokens: OUTPUT_TOKENS_MAX,
    };
    let rates = prices.iter().map(|price| Rates::of(&price.prices, most));
    let mut bounds = Bounds {
        prompt_tokens: ask.prompt,
        answers: 1,
        cap: ask.cap,
        rates: rates.collect(),
    };
    plant::bounds(world, &mut bounds);
    let held = match worst_case(process, &snapshot, &path, &model, ask.cap.is_some(), &mut bounds).await {
        Ok(held) => held,
        Err(ended) => return ended,
    };
    let price = &prices[world.draw(|rng| rng.random_range(0..prices.len()))];
    let mut event = event(world, n, ask, &path, &model, price, process.clock.now());
    event.tokens.input = ask.prompt;
    event.revision = snapshot.revision;
    let written = match &held {
        Some(held) => plant::intent(world, process, &event, &held.held),
        None => process.writer.intent(&event),
    };
    if written.is_err() {
        held.into_iter().for_each(|held| held.hold.release());
        return Ended::Unavailable;
    }
    let Some(OnHold { hold, held, parts }) = held else {
        sleep(Duration::from_millis(ask.takes_ms)).await;
        process.writer.outcome(event);
        return Ended::Served;
    };
    world.check(|truth| truth.begin(held.incarnation, &parts));
    let mut sent = Sent {
        world: world.clone(),
        held: held.clone(),
        parts,
        ended: false,
    };
    sleep(Duration::from_millis(ask.takes_ms)).await;
    sent.ended = true;
    let cap = bounds.cap.unwrap_or(OUTPUT_TOKENS_MAX);
    used(&mut event, ask, cap, price);
    event.finished_at = UnixMillisText(process.clock.now());
    let used = inherit::used(&event);
    process.writer.outcome(event);
    world.check(|truth| truth.end(held.incarnation, &sent.parts, |part| used.of(part.unit)));
    for part in hold.into_parts() {
        plant::settle(world, &part, inherit::share(&used, &model, part.unit, None));
    }
    Ended::Served
}

/// A request that was sent, until its end is written down: should its node die, it costs what it holds.
struct Sent {
    world: Rc<World>,
    held: Held,
    parts: Vec<Part>,
    ended: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.ended {
            self.world
                .truth
                .borrow_mut()
                .interrupt(self.held.incarnation, &self.parts);
        }
    }
}

/// The loop of the stage.
async fn worst_case(
    process: &Process,
    snapshot: &Snapshot,
    path: &TenantPath,
    model: &ModelId,
    capped: bool,
    bounds: &mut Bounds,
) -> Result<Option<OnHold>, Ended> {
    let mut levels = on_path(snapshot, path, model, capped);
    if bounds.cap.is_none() {
        bounds.cap = bounds.cap_under_ceilings(levels.iter().map(|level| &*level.terms));
    }
    let until = Instant::now() + PATIENCE;
    for _ in 0..TRIES_MAX {
        if levels.is_empty() {
            return Ok(None);
        }
        let (held, reach) = try_hold(process, &levels, bounds);
        match held {
            Ok(held) => return Ok(held),
            Err(Short::Lease(_)) if reach == Reach::Lost => return Err(Ended::Unavailable),
            Err(Short::Lease(wants)) => match process.desk.ask(wants, until).await {
                Told::Again(kept) => drop(kept),
                Told::Gone(budget) => levels.retain(|level| level.budget.id != budget),
                Told::Unreachable => return Err(Ended::Unavailable),
            },
            Err(Short::Clamp(most)) => {
                let cap = if capped {
                    bounds.cap_within(&most)
                } else {
                    share(bounds, &most)
                };
                match cap.filter(|cap| bounds.cap.is_none_or(|now| *cap < now)) {
                    Some(cap) => bounds.cap = Some(cap),
                    None => {
                        let clamps = |level: &&Limit<'_>| level.terms.mode == Mode::Clamp;
                        let level = levels.iter().find(clamps).expect("a level clamps");
                        let wanted = bounds.claim().least.of(level.terms.unit);
                        return Err(Ended::Refused(level.budget.id.clone(), wanted));
                    }
                }
            }
            Err(Short::Spent { level, .. }) => {
                let (level, claim) = (&levels[level], bounds.claim());
                let clamps = level.terms.mode == Mode::Clamp;
                let wanted = if clamps { claim.least } else { claim.worst };
                let wanted = wanted.of(level.terms.unit);
                return Err(Ended::Refused(level.budget.id.clone(), wanted));
            }
            Err(Short::PerRequest { .. }) => return Err(Ended::TooDear),
        }
    }
    Err(Ended::Unavailable)
}

fn share(bounds: &Bounds, most: &Amounts) -> Option<u64> {
    let part = Amounts {
        money: NanoUsd(most.money.0 / UNCAPPED_SHARE),
        tokens: most.tokens / UNCAPPED_SHARE,
        requests: most.requests,
    };
    let cap = bounds.cap_within(&part).filter(|cap| *cap >= UNCAPPED_LEAST);
    cap.or_else(|| Some(bounds.cap_within(most)?.min(UNCAPPED_LEAST)))
}

fn try_hold(
    process: &Process,
    levels: &[Limit<'_>],
    bounds: &Bounds,
) -> (Result<Option<OnHold>, Short>, Reach) {
    let (shelf, reach) = (process.desk.shelf(), process.desk.reach());
    let slices: Vec<Level<'_>> = levels
        .iter()
        .map(|level| Level {
            budget: &level.budget.id,
            terms: &level.terms,
            slice: shelf.slices.get(&level.budget.id),
        })
        .collect();
    let held = hold(&slices, &bounds.claim(), process.clock.now(), reach).map(|hold| {
        let parts = hold.parts().iter().map(|part| HeldPart {
            budget: part.slice.budget.clone(),
            epoch: part.slice.epoch,
            unit: part.unit,
            amount: part.amount,
            model: None,
        });
        let held = Held {
            incarnation: shelf.incarnation,
            mark: process.desk.mark(),
            parts: parts.collect(),
        };
        let parts = held.parts.iter().map(|part| Part {
            place: (part.budget.clone(), part.epoch),
            unit: part.unit,
            held: part.amount,
        });
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            hold.release();
            return None;
        }
        Some(OnHold { hold, held, parts })
    });
    (held, reach)
}

fn event(
    world: &World,
    n: usize,
    ask: &Ask,
    path: &TenantPath,
    model: &ModelId,
    price: &PriceVersion,
    now: UnixMillis,
) -> UsageEvent {
    let mut event = world.sample.clone();
    let number = world.next_request();
    event.id = format!("event-{number}");
    event.request_id = RequestId::trusted(format!("r-{number}"));
    event.node = world.nodes.borrow()[n].id.clone();
    event.tenant = path.clone();
    (event.started_at, event.finished_at) = (UnixMillisText(now), UnixMillisText(now));
    event.model = model.clone();
    event.endpoint = price.endpoint.clone();
    event.provider = super::catalog::provider();
    (event.price_version, event.prices) = (price.id.clone(), price.prices.clone());
    event.attempts.clear();
    (event.charge, event.billed) = (Charge::default(), NanoUsd::ZERO);
    event.end = if ask.used > 0.0 {
        EndState::Completed
    } else {
        EndState::Failed
    };
    event.tokens = TokenCounts::default();
    event
}

/// What the provider counts.
fn used(event: &mut UsageEvent, ask: &Ask, cap: u64, price: &PriceVersion) {
    if ask.used == 0.0 {
        event.usage_source = UsageSource::None;
        event.tokens = TokenCounts::default();
        return;
    }
    let output = ((cap as f64 * ask.used) as u64).clamp(1, cap);
    event.tokens.output = output;
    event.usage_source = UsageSource::Provider;
    event.charge = cost::charge(&event.tokens, &price.prices).expect("small numbers");
    event.billed = event.charge.total;
}
