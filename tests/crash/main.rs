//! `kill -9` at every system call of the request path, on a real node with a real spool and a real Kafka.
//!
//! strace stops a thread ahead of a call and kills the process there (`-e inject=CALL:signal=KILL:when=N`). First runs without a kill list
//! the calls that a thread makes while the same few requests pass: these are the points. For each the node is then killed there and
//! started again, and in the end everybody's books are compared: every request that a provider saw has exactly one final event,
//! what a provider counted is billed as counted, and the estimates are within 3 % of the provider's own count in sum: in a run with all
//! points also together with what was billed of requests that no provider saw, or that it refused.
//!
//! Before each run the node answers a few requests whose usage the providers count: a node that dies in its first second has learned
//! nothing yet, and is not what is meant to be measured here. What providers count is told to them by directives in the
//! prompts ([`workload`]), by a rule that the node does not know.
//!
//! [`POINTS`] in the default run, some of every phase; all of them with `TOLLWAY_CRASH_POINTS=all`, or as many as that says.

mod books;
mod node;
mod phase;
mod tracer;
mod workload;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::books::Books;
use crate::node::Node;
use crate::phase::Phase;
use crate::tracer::Point;

/// Points of the default run.
const POINTS: usize = 30;
/// How many of them a longer run may have; the traced calls are some hundreds.
const POINTS_MAX: usize = 10_000;
/// How far the sum of all estimates may be from the providers' own count.
const OFF_PERCENT_MAX: f64 = 3.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_a_node_dies_at_every_request_has_one_event_and_estimates_are_right_in_sum()
-> Result<()> {
    let wanted = points_wanted()?;
    let mut node = Node::start().await?;
    let mut points = Vec::new();
    for thread in tracer::THREADS {
        points.extend(node.points(thread).await?);
    }
    points.extend(node.points_of_start().await?);
    let chosen = chosen(&points, wanted);
    let whole = chosen.len() == points.len();
    println!("{} points, {} of them taken", points.len(), chosen.len());
    let begun = Instant::now();
    let mut books = Books::default();
    for (number, point) in (1..).zip(chosen) {
        let hit = node.run(point, number).await?;
        books.ran(number, hit);
    }
    println!("{} runs in {:?}", books.runs(), begun.elapsed());
    let (seen, records) = node.ended().await?;
    let found = books.compared(&seen, &records)?;
    println!("{found}");
    found.check(OFF_PERCENT_MAX, whole)
}

fn points_wanted() -> Result<usize> {
    match std::env::var("TOLLWAY_CRASH_POINTS").as_deref() {
        Err(_) => Ok(POINTS),
        Ok("all") => Ok(POINTS_MAX),
        Ok(number) => {
            let number: usize = number.parse()?;
            ensure!((1..=POINTS_MAX).contains(&number), "1 to {POINTS_MAX} points");
            Ok(number)
        }
    }
}

/// So many of the points, evenly from each phase, in their order.
fn chosen(points: &[Point], wanted: usize) -> Vec<Point> {
    let mut by_phase: BTreeMap<Phase, Vec<&Point>> = BTreeMap::new();
    for point in points {
        by_phase.entry(point.phase).or_default().push(point);
    }
    let (mut left, mut phases) = (wanted, by_phase.len());
    let mut smallest_first: Vec<_> = by_phase.into_values().collect();
    smallest_first.sort_by_key(Vec::len);
    let mut chosen = Vec::new();
    for of_phase in smallest_first {
        let share = left.div_ceil(phases.max(1)).min(of_phase.len());
        chosen.extend((0..share).map(|n| of_phase[(2 * n + 1) * of_phase.len() / (2 * share)].clone()));
        (left, phases) = (left - share, phases - 1);
    }
    chosen
}
