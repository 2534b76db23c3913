//! The workloads, and what is taken down in each round of each.
//!
//! Rounds of the targets alternate, so that a ratio compares neighbours in time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::load::{Target, Times, Work, closed_loop, hold_open, open_loop};
use crate::proc::{Cpu, resident_kib};
use crate::report::{Figures, quantile};

/// Requests kept in flight by the closed loops.
const CONCURRENCY: usize = 64;
/// Requests a second in the open loops: far below what any target can do.
const LOW_RATE_PER_S: u32 = 100;
/// Streams held open for the memory figure.
const OPEN_STREAMS: usize = 200;
/// Requests that wake every part up before anything is measured.
const WAKE_UP_REQUESTS: usize = 8;

/// Most rounds that can be asked for.
const ROUNDS_MAX: usize = 100;

/// How long things take.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    rounds: usize,
    warm_up: Duration,
    closed_window: Duration,
    /// Rounds of the open loops for each round of a closed one: latency drifts faster than processor time.
    open_per_closed: usize,
    open_window: Duration,
    idle_window: Duration,
}

impl Plan {
    /// The full size, or the short one for pipelines; `rounds` overrides the number of rounds.
    pub(crate) fn new(short: bool, rounds: Option<usize>) -> Self {
        let millis = Duration::from_millis;
        // Many short rounds rather than few long ones: a neighbour's burst then spoils a round, not the median.
        let mut plan = if short {
            Self {
                rounds: 5,
                warm_up: millis(150),
                closed_window: millis(500),
                open_per_closed: 2,
                open_window: millis(500),
                idle_window: millis(1000),
            }
        } else {
            Self {
                rounds: 9,
                warm_up: millis(400),
                closed_window: millis(1500),
                open_per_closed: 2,
                open_window: millis(1200),
                idle_window: millis(3000),
            }
        };
        plan.rounds = rounds.unwrap_or(plan.rounds).clamp(1, ROUNDS_MAX);
        plan
    }
}

/// Something that is measured: where it is and whose processor time it costs.
pub(crate) struct Measured {
    pub(crate) target: Target,
    pub(crate) pid: Option<u32>,
}

/// A closed-loop workload.
struct Closed {
    name: &'static str,
    work: Work,
    /// How long the provider takes over one answer on purpose: a window in which none can end measures nothing.
    lasts: Duration,
}

/// Runs every workload whose name contains `only` against all targets: the provider itself, the floor, the gateway.
pub(crate) async fn measure(only: &str, plan: Plan, model: &str, all: [Measured; 3]) -> Result<Figures> {
    let chat = |directives, bytes, stream| Work::chat(model, directives, bytes, stream);
    let plain = chat("[[tw:chunks=60]]", 1 << 10, false);
    let closed = [
        Closed {
            name: "plain 1 KB",
            work: plain.clone(),
            lasts: Duration::ZERO,
        },
        Closed {
            name: "plain 100 KB",
            work: chat("[[tw:chunks=60]]", 100 << 10, false),
            lasts: Duration::ZERO,
        },
        Closed {
            name: "stream 100",
            work: chat("[[tw:chunks=100]]", 1 << 10, true),
            lasts: Duration::ZERO,
        },
        Closed {
            name: "stream 100 paced",
            work: chat("[[tw:chunks=100]][[tw:delay_ms=10]]", 1 << 10, true),
            lasts: Duration::from_millis(100 * 10),
        },
    ];
    let wanted = |name: &str| name.contains(only);
    let mut figures = Figures::default();

    for each in &all {
        let work = chat("[[tw:chunks=10]]", 1 << 10, true);
        wake_up(each, &plain, &mut figures).await?;
        wake_up(each, &work, &mut figures).await?;
    }
    if wanted("memory") {
        memory_and_idle(
            plan,
            &chat("[[tw:chunks=2]][[tw:stall_after=1]]", 1 << 10, true),
            &all[1..],
            &mut figures,
        )
        .await?;
    }
    for workload in closed.iter().filter(|closed| wanted(closed.name)) {
        let name = workload.name;
        eprintln!("{name}: {} rounds at concurrency {CONCURRENCY}", plan.rounds);
        for round in 0..plan.rounds {
            for each in in_turn(&all[1..], round) {
                closed_round(plan, workload, each, &mut figures).await?;
            }
        }
    }
    for (name, stream) in [("plain at 100/s", false), ("stream at 100/s", true)] {
        if wanted(name) {
            let rounds = plan.rounds * plan.open_per_closed;
            eprintln!("{name}: {rounds} rounds");
            let work = if stream {
                chat("[[tw:chunks=10]]", 1 << 10, true)
            } else {
                plain.clone()
            };
            let mut pooled = BTreeMap::new();
            for round in 0..rounds {
                let turns = in_turn(&all, round);
                open_round(plan, name, &work, turns, &mut pooled, &mut figures).await?;
            }
            added_p99(name, stream, &pooled, &mut figures);
        }
    }
    for each in &all[1..] {
        figures.add(
            "memory",
            "resident KiB, after load",
            each.target.name,
            resident_kib(pid(each)?)?,
        );
    }
    Ok(figures)
}

/// Every other round goes the other way round, so that no target always follows the same one.
fn in_turn(all: &[Measured], round: usize) -> Vec<&Measured> {
    if round.is_multiple_of(2) {
        all.iter().collect()
    } else {
        all.iter().rev().collect()
    }
}

fn pid(measured: &Measured) -> Result<u32> {
    measured
        .pid
        .ok_or_else(|| anyhow!("`{}` has no process of its own", measured.target.name))
}

async fn wake_up(each: &Measured, work: &Work, figures: &mut Figures) -> Result<()> {
    let window = Duration::from_secs(1) / LOW_RATE_PER_S * WAKE_UP_REQUESTS as u32;
    let outcome = open_loop(&each.target, work, LOW_RATE_PER_S, window, || {}).await;
    figures.add_failures("wake-up", each.target.name, &outcome);
    match outcome.first_failure {
        Some(failure) => Err(anyhow!("the {} does not answer: {failure}", each.target.name)),
        None => Ok(()),
    }
}

async fn memory_and_idle(plan: Plan, held: &Work, all: &[Measured], figures: &mut Figures) -> Result<()> {
    for each in all {
        let (name, pid) = (each.target.name, pid(each)?);
        let start = Cpu::read(pid)?;
        tokio::time::sleep(plan.idle_window).await;
        let used = Cpu::read(pid)?.since(start);
        figures.add(
            "memory",
            "idle cpu ms/s",
            name,
            used.run_us / 1e3 / plan.idle_window.as_secs_f64(),
        );
        let idle_kib = resident_kib(pid)?;
        figures.add("memory", "resident KiB, idle", name, idle_kib);
        let open_kib = hold_open(&each.target, held, OPEN_STREAMS, || resident_kib(pid))
            .await
            .map_err(|failure| anyhow!("{OPEN_STREAMS} open streams at the {name}: {failure}"))??;
        figures.add(
            "memory",
            "KiB per open stream",
            name,
            (open_kib - idle_kib) / OPEN_STREAMS as f64,
        );
    }
    Ok(())
}

async fn closed_round(
    plan: Plan,
    &Closed {
        name,
        ref work,
        lasts,
    }: &Closed,
    each: &Measured,
    figures: &mut Figures,
) -> Result<()> {
    let target = each.target.name;
    let pid = pid(each)?;
    let mut edges = Vec::with_capacity(2);
    let outcome = closed_loop(
        &each.target,
        work,
        CONCURRENCY,
        plan.warm_up.max(lasts),
        plan.closed_window.max(2 * lasts),
        || {
            edges.push(Cpu::read(pid));
        },
    )
    .await;
    figures.add_failures(name, target, &outcome);
    let used = used(edges)?;
    cross_check(used, name, target, figures);
    if work.stream {
        figures.add(name, "cpu us/event", target, used.run_us / outcome.events as f64);
    } else {
        figures.add(
            name,
            "cpu us/request",
            target,
            used.run_us / outcome.requests as f64,
        );
    }
    figures.add(
        name,
        "requests/s",
        target,
        outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
    );
    figures.add(
        name,
        "p50 us",
        target,
        quantile(&outcome.times, 0.5, |times| times.total_us),
    );
    figures.add(
        name,
        "p99 us",
        target,
        quantile(&outcome.times, 0.99, |times| times.total_us),
    );
    if work.stream {
        figures.add(
            name,
            "first byte p50 us",
            target,
            quantile(&outcome.times, 0.5, |times| times.first_us),
        );
    }
    Ok(())
}

async fn open_round(
    plan: Plan,
    name: &'static str,
    work: &Work,
    turns: Vec<&Measured>,
    pooled: &mut BTreeMap<&'static str, Vec<Times>>,
    figures: &mut Figures,
) -> Result<()> {
    let mut outcomes = Vec::with_capacity(turns.len());
    for each in turns {
        let mut edges = Vec::with_capacity(2);
        let outcome = open_loop(&each.target, work, LOW_RATE_PER_S, plan.open_window, || {
            edges.extend(each.pid.map(Cpu::read));
        })
        .await;
        figures.add_failures(name, each.target.name, &outcome);
        if each.pid.is_some() {
            let used = used(edges)?;
            figures.add(
                name,
                "cpu us/request",
                each.target.name,
                used.run_us / outcome.requests as f64,
            );
        }
        outcomes.push((each.target.name, outcome));
    }
    let direct = outcomes
        .iter()
        .find(|(target, _)| *target == "direct")
        .context("each round measures the provider")?;
    for (target, outcome) in &outcomes {
        let p50 = quantile(&outcome.times, 0.5, |times| times.total_us);
        figures.add(name, "p50 us", target, p50);
        if *target == "direct" {
            continue;
        }
        let added =
            |of: fn(&Times) -> f64| quantile(&outcome.times, 0.5, of) - quantile(&direct.1.times, 0.5, of);
        figures.add(name, "added p50 us", target, added(|times| times.total_us));
        if work.stream {
            figures.add(
                name,
                "added first byte p50 us",
                target,
                added(|times| times.first_us),
            );
        }
    }
    for (target, outcome) in outcomes {
        pooled.entry(target).or_default().extend(outcome.times);
    }
    Ok(())
}

/// The tail over all rounds together: one round alone has too few answers to have a 99th percentile.
fn added_p99(
    name: &'static str,
    stream: bool,
    pooled: &BTreeMap<&'static str, Vec<Times>>,
    figures: &mut Figures,
) {
    let Some(direct) = pooled.get("direct") else {
        return;
    };
    for (target, times) in pooled.iter().filter(|(target, _)| **target != "direct") {
        let added = |of: fn(&Times) -> f64| quantile(times, 0.99, of) - quantile(direct, 0.99, of);
        figures.add(name, "added p99 us", target, added(|times| times.total_us));
        if stream {
            figures.add(
                name,
                "added first byte p99 us",
                target,
                added(|times| times.first_us),
            );
        }
    }
}

fn used(edges: Vec<Result<Cpu>>) -> Result<Cpu> {
    let mut edges = edges.into_iter();
    let (start, end) = edges.next().zip(edges.next()).context("a round has two edges")?;
    Ok(end?.since(start?))
}

/// Says when the scheduler's figure lost threads that ended, or counts nothing at all.
fn cross_check(used: Cpu, name: &str, target: &str, figures: &mut Figures) {
    const TICK_SLACK_US: f64 = 50_000.0;
    let off = (used.run_us - used.ticks_us).abs();
    if off > TICK_SLACK_US + 0.15 * used.ticks_us {
        let (run, ticks) = (used.run_us, used.ticks_us);
        figures.warnings.push(format!(
            "{name} at {target}: threads ran {run:.0} us, the process {ticks:.0} us"
        ));
    }
}
