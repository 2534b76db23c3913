//! Sets the worst case of a request aside on every leased budget of its path, and settles it when the request has ended.
//!
//! No network, but for one bounded wait when the node has no money left: the last grant before a refusal. What cannot be known in
//! that time is 503, never 403. A budget that clamps, and any budget for a request without a cap of its own, lowers the answer's
//! cap to what remains, in the request that is sent, and says so in a header.

use std::borrow::Cow;
use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;
use tollway_proto::spool::{Held, HeldPart};
use tollway_shared::bill::BPS_MIN;
use tollway_shared::budget::terms::{Mode, Terms};
use tollway_shared::budget::{BudgetScope, BudgetView};
use tollway_shared::catalog::Turn;
use tollway_shared::credit;
use tollway_shared::fault::Fault;
use tollway_shared::ids::ModelId;
use tollway_shared::lease::hold::{self, Amounts, Hold, Left, Level, Short};
use tollway_shared::lease::slice::Reach;
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;

use super::plan::Plan;
use crate::api::reply;
use crate::ask::Ask;
use crate::clock;
use crate::dialects;
use crate::lease::claim::{Bounds, Most, Rates};
use crate::lease::desk::Told;
use crate::lease::{Desk, inherit};
use crate::metrics::{LEASE_CLAMPED_TOTAL, LEASE_WAITS_TOTAL};
use crate::pipeline::{Caller, Context};
use crate::routing::Candidate;

/// How long a request waits for a grant: longer than an election usually takes, and than the control plane waits for nodes that do
/// not give back what they were told to ([`tollway_shared::lease::size::RECALL_PATIENCE_MS`]).
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it tries again within that time: others may take what it was granted.
const TRIES_MAX: usize = 64;
/// A request without a cap takes one part in so many of what is left, where it must be cut.
const UNCAPPED_SHARE: i64 = 4;
/// But not fewer tokens than this, if there are so many.
const UNCAPPED_LEAST: u64 = 1_024;
/// The cap that a budget has put on an answer.
const CLAMPED: &str = "x-tollway-max-tokens";

/// What a request has set aside. Dropped without an end it is spent whole.
#[derive(Debug)]
pub struct Holding {
    hold: Hold,
    /// What goes into the intent.
    pub held: Held,
}

impl Holding {
    /// The request has used this much of a model.
    pub fn settle(self, used: &Amounts, served: &ModelId) {
        for (part, noted) in self.hold.into_parts().into_iter().zip(&self.held.parts) {
            let actual = inherit::share(used, served, part.unit, noted.model.as_ref());
            part.slice.settle(part.amount, actual);
        }
    }

    /// Nothing was sent to anybody.
    pub fn release(self) {
        self.hold.release();
    }
}

/// A budget on the path.
struct Budget<'a> {
    view: &'a BudgetView,
    level: &'static str,
    terms: Cow<'a, Terms>,
}

/// Holds what the request can cost at most; the record settles it. Lowers the ask's cap if it must, and takes models out of the plan
/// whose own budget is spent.
pub async fn worst_case(
    cx: &mut Context,
    caller: &Caller,
    plan: &mut Plan,
    ask: &mut Ask,
) -> Result<(), Fault> {
    if cx.snapshot.budgets.is_empty() {
        return Ok(());
    }
    let snapshot = cx.snapshot.clone();
    let capped = ask.output_tokens_max.is_some();
    let mut budgets = on_path(&snapshot, caller, plan, capped);
    if budgets.is_empty() {
        return Ok(());
    }
    let desk = cx.plane.desk.clone();
    let mut bounds = bounds_of(&snapshot, caller, plan, ask, &budgets);
    let until = Instant::now() + PATIENCE;
    let (mut waited, mut fault) = (false, Fault::BudgetUnavailable);
    for _ in 0..TRIES_MAX {
        let (held, reach) = try_hold(&desk, &budgets, &bounds, clock::now());
        let spent = match held {
            Ok(holding) => {
                ask.is_held = holding.is_some();
                cx.record.holding = holding;
                clamp(cx, ask, bounds.cap);
                return Ok(());
            }
            Err(Short::Lease(_)) if reach == Reach::Lost => return Err(Fault::BudgetUnavailable),
            Err(Short::Lease(wants)) => {
                if !std::mem::replace(&mut waited, true) {
                    counter!(LEASE_WAITS_TOTAL).increment(1);
                }
                match desk.ask(wants, until).await {
                    Told::Again(kept) => drop(kept),
                    Told::Gone(budget) => budgets.retain(|known| known.view.budget.id != budget),
                    Told::Unreachable => return Err(Fault::BudgetUnavailable),
                }
                continue;
            }
            Err(Short::Clamp(most)) => {
                let cap = if capped {
                    bounds.cap_within(&most)
                } else {
                    share(&bounds, &most)
                };
                if let Some(cap) = cap {
                    // One that is no lower fits by now: another request has given something back in the meantime.
                    bounds.cap = Some(bounds.cap.map_or(cap, |now| now.min(cap)));
                    continue;
                }
                // Other requests took it between two looks: the next try says which budget is spent.
                let clamps = |budget: &&Budget<'_>| budget.terms.mode == Mode::Clamp;
                if let Some(budget) = budgets.iter().find(clamps) {
                    fault = budget.exhausted(Left::Nothing, None);
                }
                continue;
            }
            Err(Short::Spent {
                level,
                left,
                resets_at,
            }) => {
                let budget = budgets.get(level);
                budget.map(|budget| (budget, budget.exhausted(left, resets_at)))
            }
            Err(Short::PerRequest { level, .. }) => {
                let budget = budgets.get(level);
                budget.map(|budget| (budget, budget.too_dear()))
            }
        };
        let (budget, spent) = spent.ok_or(Fault::Internal)?;
        // A model with a budget of its own leaves the others to be tried, and credit those that are free.
        let only = budget.view.budget.model.as_ref();
        let is_credit = credit::is_credit(&budget.view.budget.id);
        let other = |candidate: &Candidate| {
            let model = &candidate.endpoint.model;
            only.is_some_and(|only| !only.includes(model)) || (is_credit && model.is_free())
        };
        if !plan.attempts.iter().any(other) {
            return Err(spent);
        }
        plan.attempts.retain(other);
        budgets = on_path(&snapshot, caller, plan, capped);
        bounds = bounds_of(&snapshot, caller, plan, ask, &budgets);
    }
    Err(fault)
}

/// Puts a lower cap into the request, and says so.
fn clamp(cx: &mut Context, ask: &mut Ask, cap: Option<u64>) {
    let lower = cap.filter(|cap| Some(*cap) != ask.output_tokens_max.map(u64::from));
    if let Some(cap) = lower {
        counter!(LEASE_CLAMPED_TOTAL).increment(1);
        reply::text(&mut cx.headers, CLAMPED, &cap.to_string());
        ask.clamp(u32::try_from(cap).unwrap_or(u32::MAX));
    }
}

impl Budget<'_> {
    fn exhausted(&self, left: Left, resets_at: Option<UnixMillis>) -> Fault {
        let now = clock::now();
        let resets_at = resets_at.or_else(|| self.view.budget.resets_at(now));
        Fault::spent(&self.view.budget, self.level, left, resets_at, now)
    }

    fn too_dear(&self) -> Fault {
        Fault::RequestTooDear {
            level: self.level,
            budget: self.view.budget.id.to_string(),
        }
    }
}

/// The cap for a request that has none of its own, where not everything fits: a part of what is left, because it will hardly use
/// that much, and others would be refused meanwhile for what it holds.
fn share(bounds: &Bounds, most: &Amounts) -> Option<u64> {
    let part = Amounts {
        money: NanoUsd(most.money.0 / UNCAPPED_SHARE),
        tokens: most.tokens / UNCAPPED_SHARE,
        requests: most.requests,
    };
    let cap = bounds.cap_within(&part).filter(|cap| *cap >= UNCAPPED_LEAST);
    cap.or_else(|| Some(bounds.cap_within(most)?.min(UNCAPPED_LEAST)))
}

/// The leased budgets of the path that count any of the plan's models, outermost first.
fn on_path<'a>(snapshot: &'a Snapshot, caller: &Caller, plan: &Plan, capped: bool) -> Vec<Budget<'a>> {
    let mut found = Vec::new();
    for scope in BudgetScope::of_path(&caller.path, snapshot.line(&caller.key)) {
        for view in snapshot.budgets.get(&scope).into_iter().flatten() {
            let counts = |candidate: &Candidate| view.budget.counts(&candidate.endpoint.model);
            if view.budget.leased() && plan.attempts.iter().any(counts) {
                found.push(Budget {
                    view,
                    level: scope.level(),
                    terms: terms(&view.budget.terms, capped),
                });
            }
        }
    }
    found
}

/// Without a cap of the caller's, every budget clamps: what remains is answered rather than refused.
fn terms(terms: &Terms, capped: bool) -> Cow<'_, Terms> {
    if capped || terms.mode == Mode::Clamp {
        return Cow::Borrowed(terms);
    }
    Cow::Owned(Terms {
        mode: Mode::Clamp,
        ..terms.clone()
    })
}

fn bounds_of(snapshot: &Snapshot, caller: &Caller, plan: &Plan, ask: &Ask, budgets: &[Budget<'_>]) -> Bounds {
    let prompt_tokens = prompt_tokens_max(snapshot, plan, ask);
    let rates = plan.attempts.iter().map(|candidate| {
        let most = output_tokens_max(snapshot, candidate);
        Rates::of(
            &candidate.price.prices,
            Most {
                prompt_tokens,
                output_tokens: most.map_or(u64::from(u32::MAX), u64::from),
            },
        )
        .billed(owed_bps(snapshot, caller, candidate))
    });
    let mut bounds = Bounds {
        prompt_tokens,
        answers: u64::from(ask.answers),
        cap: ask.output_tokens_max.map(u64::from),
        rates: rates.collect(),
    };
    if bounds.cap.is_none() {
        let ceilings = budgets.iter().map(|budget| &*budget.terms);
        bounds.cap = bounds.cap_under_ceilings(ceilings);
    }
    bounds
}

/// The most tokens of the prompt. Of a file nobody knows more than what the largest of the models takes in.
fn prompt_tokens_max(snapshot: &Snapshot, plan: &Plan, ask: &Ask) -> u64 {
    if !ask.prompt.measure.has_files {
        return ask.prompt_tokens_max;
    }
    let context = |candidate: &Candidate| {
        let model = snapshot.models.get(&candidate.endpoint.model);
        u64::from(model.map_or(u32::MAX, |model| model.context_tokens))
    };
    plan.attempts
        .iter()
        .map(context)
        .max()
        .unwrap_or(ask.prompt_tokens_max)
}

/// The most completion tokens of one answer to a caller without a cap, as far as anybody knows.
pub fn output_tokens_max(snapshot: &Snapshot, candidate: &Candidate) -> Option<u32> {
    dialects::output_tokens_max(&candidate.endpoint, &candidate.provider).or_else(|| {
        let model = snapshot.models.get(&candidate.endpoint.model)?;
        Some(model.context_tokens)
    })
}

/// The most that is owed of a candidate's list price, hundredths of a percent from the whole of it.
///
/// An own credential may serve or everybody's. The fee on an own one, which the ledger decides, is at most the whole list price
/// ([`FEE_BPS_MAX`]): only a discount could be less than that.
///
/// [`FEE_BPS_MAX`]: tollway_shared::credit::FEE_BPS_MAX
fn owed_bps(snapshot: &Snapshot, caller: &Caller, candidate: &Candidate) -> i32 {
    if candidate.endpoint.model.is_free() {
        return BPS_MIN;
    }
    let bps = caller.adjustment_bps;
    let own = || {
        let all = snapshot.credentials.get(&candidate.provider.id);
        let turns = all.into_iter().flat_map(|all| all.values());
        let mut turns = turns.map(|credential| credential.turn(&caller.path.organization));
        turns.any(|turn| matches!(turn, Some(Turn::Own | Turn::Fallback)))
    };
    if bps < 0 && own() { 0 } else { bps }
}

/// One try, on one shelf. `None`: there is nothing to hold.
fn try_hold(
    desk: &Desk,
    budgets: &[Budget<'_>],
    bounds: &Bounds,
    now: UnixMillis,
) -> (Result<Option<Holding>, Short>, Reach) {
    let (shelf, reach) = (desk.shelf(), desk.reach());
    let levels: Vec<Level<'_>> = budgets
        .iter()
        .map(|budget| Level {
            budget: &budget.view.budget.id,
            terms: &budget.terms,
            slice: shelf.slices.get(&budget.view.budget.id),
        })
        .collect();
    let held = hold::hold(&levels, &bounds.claim(), now, reach).map(|hold| {
        let parts = hold.parts().iter().map(|part| HeldPart {
            budget: part.slice.budget.clone(),
            epoch: part.slice.epoch,
            unit: part.unit,
            amount: part.amount,
            model: budgets
                .iter()
                .find(|budget| budget.view.budget.id == part.slice.budget)
                .and_then(|budget| budget.view.budget.model.clone()),
        });
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            hold.release();
            return None;
        }
        let held = Held {
            incarnation: shelf.incarnation,
            mark: desk.mark(),
            parts,
        };
        Some(Holding { hold, held })
    });
    (held, reach)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::Arc;

    use bytes::Bytes;
    use tollway_shared::budget::Budget as Stored;
    use tollway_shared::ids::{ApiKeyId, BudgetId, Incarnation, OrganizationId, ProjectId, TeamId};
    use tollway_shared::lease::holder::Holder;
    use tollway_shared::lease::message::{Answer, Epoch, Grant, Verdict};
    use tollway_shared::snapshot::Resource;
    use tollway_shared::tenant::{ApiKey, TenantPath};

    use super::*;
    use crate::sample;

    /// Keys with a budget each; a release build has as many as the promise names.
    const KEYS: usize = if cfg!(debug_assertions) { 10_000 } else { 1_000_000 };
    const ROUNDS: usize = if cfg!(debug_assertions) { 20_000 } else { 200_000 };
    /// The promise: half of the checks take at most this long, ...
    const HALF_WITHIN: Duration = Duration::from_micros(10);
    /// ... and 99 of 100 this long. Code that is not optimized has five times as much.
    const MOST_WITHIN: Duration = Duration::from_micros(50);

    /// The caller with this key: 20 keys a project, 5 projects a team, 5 teams an organization.
    fn caller(number: usize) -> Caller {
        let key = ApiKeyId::trusted(format!("key-{number}"));
        let project = ProjectId::trusted(format!("project-{}", number / 20));
        let path = TenantPath {
            organization: OrganizationId::trusted(format!("organization-{}", number / 500)),
            team: Some(TeamId::trusted(format!("team-{}", number / 100))),
            project: project.clone(),
            key: key.clone(),
        };
        let key = ApiKey {
            id: key,
            project,
            name: String::new(),
            digest: [1; 32],
            pepper_version: 1,
            last4: "wxyz".into(),
            models: Vec::new(),
            created_at: UnixMillis(0),
            expires_at: None,
            revoked_at: None,
            rotated_from: None,
            labels: tollway_shared::labels::Labels::new(),
        };
        let key = Arc::new(key);
        Caller {
            key,
            path,
            adjustment_bps: 0,
        }
    }

    /// A snapshot with a budget on every level of every key's path, and slices of all of them.
    fn world() -> (Snapshot, Desk) {
        let mut snapshot = Snapshot::default();
        let mut grants = Vec::new();
        for number in 0..KEYS {
            let Caller { key, path, .. } = caller(number);
            for (scope, every) in
                BudgetScope::of_path(&path, [key.id.clone()].into_iter()).zip([500, 100, 20, 1])
            {
                if !number.is_multiple_of(every) {
                    continue;
                }
                let id = BudgetId::trusted(format!("budget-{}", grants.len()));
                let budget = Stored {
                    id: id.clone(),
                    scope,
                    model: None,
                    terms: Terms::money(NanoUsd(i64::MAX / 8)),
                };
                let view = BudgetView {
                    budget,
                    exhausted_window: None,
                };
                snapshot.put(Resource::Budget(view), [0; 32]);
                grants.push(Grant {
                    budget: id,
                    epoch: Epoch(1),
                    ends_at: None,
                    granted: i64::MAX / 8,
                    spent: 0,
                    returned: 0,
                    reserve: 0,
                    open: false,
                    short: false,
                    recall: 0,
                    recall_amount: 0,
                });
            }
        }
        let mut holder = Holder::new(Incarnation(1));
        let answer = Answer {
            incarnation: Incarnation(1),
            serial: 1,
            verdict: Verdict::Granted,
            grants,
        };
        holder.take(&answer, UnixMillis(0));
        let desk = Desk::with(Incarnation(1), holder.slices());
        (snapshot, desk)
    }

    #[test]
    fn a_budget_check_on_four_levels_takes_microseconds() {
        let (snapshot, desk) = world();
        let plan = Plan {
            attempts: vec![sample::candidate("a", 0, 1), sample::candidate("b", 1, 2)],
            attempts_max: 2,
        };
        let body = r#"{"model":"a/b","max_tokens":100,"messages":[{"role":"user","content":"hello"}]}"#;
        let ask = Ask::parse(Bytes::from_static(body.as_bytes())).unwrap();
        let served = ModelId::trusted("a/b");
        let mut took = Vec::with_capacity(ROUNDS);
        let mut draw = 1_u64;
        for _ in 0..ROUNDS {
            // Any key, one after the other: nothing of its path is in a cache.
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let caller = caller((draw >> 33) as usize % KEYS);
            let begun = std::time::Instant::now();
            let budgets = on_path(&snapshot, &caller, &plan, true);
            let bounds = bounds_of(&snapshot, &caller, &plan, &ask, &budgets);
            let (held, _) = try_hold(&desk, black_box(&budgets), &bounds, UnixMillis(0));
            let holding = held.unwrap().unwrap();
            assert_eq!(holding.held.parts.len(), 4);
            holding.settle(&Amounts::default(), &served);
            took.push(begun.elapsed());
        }
        took.sort();
        let (half, most) = (took[ROUNDS / 2], took[ROUNDS / 100 * 99]);
        println!("four levels of {KEYS} keys, looked up, held and settled: p50 {half:?}, p99 {most:?}");
        let slack = if cfg!(debug_assertions) { 5 } else { 1 };
        assert!(half <= HALF_WITHIN * slack, "p50 is {half:?}");
        assert!(most <= MOST_WITHIN * slack, "p99 is {most:?}");
    }
}
