//! What a replica does about leased budgets besides applying what nodes say: the leader begins windows that nobody asks about,
//! fences lives that have gone silent, forgets closed and released ones, shows sums; every replica notes thresholds.
//!
//! | file | what |
//! |---|---|
//! | [`silent`] | pure: who has been connected to nobody for how long |
//! | [`sums`] | pure: what is out, by unit |
//!
//! None of it frees money: a fenced life's leases stay charged until its spool is read or somebody releases them.

pub mod silent;
pub mod sums;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tollway_proto::command::Command;
use tollway_shared::lease::member::Standing;
use tollway_shared::lease::message::Effect;
use tollway_shared::time::UnixMillis;

use self::silent::Silent;
use self::sums::Sums;
use crate::admin::Fleet;
use crate::metrics;
use crate::raft::{Cluster, Proposal};

/// How often the leader looks for windows that have to begin.
const WINDOWS_EVERY: Duration = Duration::from_secs(1);
/// How often it looks at nodes and sums.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often it looks for lives to forget.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);
/// A closed or released life is remembered for this long, so that none of its messages can be on the way any more.
const FORGET_AFTER_MS: i64 = 7 * 86_400_000;

/// Runs until `stop`.
pub async fn run(cluster: Cluster, fleet: Arc<dyn Fleet>, now: fn() -> UnixMillis, stop: CancellationToken) {
    let mut windows = interval(WINDOWS_EVERY);
    let mut look = interval(LOOK_EVERY);
    let mut forget = interval(FORGET_EVERY);
    for timer in [&mut windows, &mut look, &mut forget] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut silent = Silent::default();
    let mut effects = Some(cluster.effects());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            effect = next(&mut effects) => note(&cluster, &effect),
            _ = windows.tick() => cluster.begin_due_windows(Instant::now() + WINDOWS_EVERY).await,
            _ = look.tick() => {
                show(&cluster).await;
                if cluster.is_leader() {
                    fence(&cluster, fleet.as_ref(), &mut silent).await;
                } else {
                    silent = Silent::default();
                }
            }
            _ = forget.tick() => if cluster.is_leader() {
                forget_over(&cluster, now()).await;
            },
        }
    }
}

/// The next effect; never, once there are no more.
async fn next(effects: &mut Option<broadcast::Receiver<Effect>>) -> Effect {
    while let Some(receiver) = effects {
        match receiver.recv().await {
            Ok(effect) => return effect,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *effects = None,
        }
    }
    std::future::pending().await
}

/// Once per cluster: the leader counts and logs. The audit trail has it for good.
fn note(cluster: &Cluster, effect: &Effect) {
    match effect {
        Effect::Crossed { budget, percent, .. } if cluster.is_leader() => {
            metrics::threshold(*percent);
            tracing::info!(%budget, percent, "a budget has reached a threshold");
        }
        Effect::LowBalance {
            organization,
            available,
            top_up,
        } if cluster.is_leader() => {
            metrics::low_balance(top_up.is_some());
            tracing::info!(%organization, %available, ?top_up, "an organization has little credit left");
        }
        Effect::Crossed { .. } | Effect::LowBalance { .. } | Effect::Recall(_) => {}
    }
}

async fn show(cluster: &Cluster) {
    if !cluster.is_leader() {
        metrics::leases(&Sums::default());
        return;
    }
    let state = cluster.state();
    // A million budgets are walked: not on a runtime thread.
    if let Ok(sums) = tokio::task::spawn_blocking(move || Sums::of(&state)).await {
        metrics::leases(&sums);
    }
}

async fn fence(cluster: &Cluster, fleet: &dyn Fleet, silent: &mut Silent) {
    let view = fleet.view().await;
    let connected: BTreeSet<&str> = view.connections.iter().map(|one| one.node.as_str()).collect();
    let state = cluster.state();
    let live = state.books.members.iter();
    let live = live.filter(|(_, member)| member.standing == Standing::Live);
    let lost = silent.look(
        live.map(|(incarnation, member)| (*incarnation, connected.contains(member.node.as_str()))),
        Instant::now(),
    );
    for incarnation in lost {
        tracing::warn!(%incarnation, "no replica has heard of this life of a node for long; it is fenced, and what it has out stays charged");
        propose(cluster, Command::FenceIncarnation(incarnation)).await;
    }
}

async fn forget_over(cluster: &Cluster, now: UnixMillis) {
    let before = now.plus_ms(-FORGET_AFTER_MS);
    let state = cluster.state();
    let mut members = state.books.members.values();
    let mut former = state.books.former.values();
    if members.any(|member| member.is_over(before)) || former.any(|former| former.is_over(before)) {
        propose(cluster, Command::ForgetIncarnations { before }).await;
    }
}

/// What is not written now is tried again with the next look.
async fn propose(cluster: &Cluster, command: Command) {
    let name = command.name();
    if let Err(fault) = cluster.propose(Proposal::system(command)).await {
        tracing::debug!(%fault, command = name, "not written");
    }
}
