//! Compares the store with the replicated sums: every few minutes, and whenever somebody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tollway_shared::time::Day;

use super::progress::Progress;
use super::reconcile::{Reconciliation, compare, question};
use super::{Billing, StoreFault};
use crate::report::fee::{self, Apart};
use crate::state::State;
use crate::state::usage::DAYS_KEPT;

/// Gauge of nano-dollars by which the store and the replicated sums differ, added up without signs: an alarm above 0.
pub const DRIFT: &str = "tollway_billing_drift_nano_usd";
/// Gauge of cells (day, tenant path, model, provider) on which they differ in anything: an alarm above 0.
pub const DRIFT_CELLS: &str = "tollway_billing_drift_cells";
/// Counter of comparisons.
pub const CHECKS_TOTAL: &str = "tollway_billing_checks_total";

/// How often the last days are compared.
const EVERY: Duration = Duration::from_secs(300);
/// Days that are compared every time: today and yesterday.
const DAYS: i32 = 2;
/// How long the replicated sums may take to reach what the store has.
const STATE_WITHIN: Duration = Duration::from_secs(10);

/// A comparison and what it was of.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What it came to.
    pub found: Reconciliation,
    /// The first day.
    pub from: Day,
    /// The last day.
    pub to: Day,
    /// The replicated sums.
    pub state: Arc<State>,
    /// What of the accounts does not agree with the replicated sums.
    pub apart: Vec<Apart>,
    /// How far the store was.
    pub progress: Vec<Progress>,
}

/// Compares both at the same offsets of the usage log.
///
/// - `from`, `to`: the wanted days. Those before either side has everything are left out.
pub async fn check(
    billing: &Billing,
    states: &mut watch::Receiver<Arc<State>>,
    from: Day,
    to: Day,
) -> Result<Checked, StoreFault> {
    let mut holder = billing.hold().await?;
    let stands = holder.stands().await?;
    let has_all = |state: &Arc<State>| {
        let counted = |partition: &i32| state.usage_offsets.get(partition).copied().unwrap_or(0);
        stands
            .iter()
            .all(|(partition, offset)| counted(partition) >= *offset)
    };
    let state = tokio::time::timeout(STATE_WITHIN, states.wait_for(has_all))
        .await
        .map_err(|_| StoreFault::Slow)?
        .map_err(|_| StoreFault::Absent)?
        .clone();
    let offsets: BTreeMap<i32, i64> = state.usage_offsets.iter().map(|(p, o)| (*p, *o)).collect();
    holder.stops(offsets).await?;
    let kept = Day(state.now.day().0.saturating_sub(DAYS_KEPT - 1));
    let from = from.max(kept).max(state.usage_since);
    let from = billing
        .freshness()
        .values()
        .filter_map(|fresh| fresh.progress.whole_from())
        .fold(from, Day::max);
    let answer = billing.query(&question(from, to)).await?;
    drop(holder);
    let summed = state.clone();
    let (found, apart) = tokio::task::spawn_blocking(move || {
        let found = compare(&summed, from, to, &answer.groups);
        (found, fee::apart(&summed))
    })
    .await?;
    counter!(CHECKS_TOTAL).increment(1);
    if found.differing > 0 {
        let (differing, drift) = (found.differing, found.drift);
        tracing::error!(
            differing,
            drift,
            first = ?found.differences.first(),
            "the billing store and the replicated sums differ"
        );
    }
    if let Some(apart) = apart.first() {
        tracing::error!(?apart, "an account and the usage that it was charged for differ");
    }
    Ok(Checked {
        found,
        from,
        to,
        state,
        apart,
        progress: answer.progress,
    })
}

/// Compares the last days every few minutes, until `stop`.
pub async fn run(billing: Billing, mut states: watch::Receiver<Arc<State>>, stop: CancellationToken) {
    loop {
        if stop
            .run_until_cancelled(tokio::time::sleep(EVERY))
            .await
            .is_none()
        {
            return;
        }
        let today = states.borrow().now.day();
        let from = Day(today.0.saturating_sub(DAYS - 1));
        let checked = stop.run_until_cancelled(check(&billing, &mut states, from, Day(i32::MAX - 1)));
        match checked.await {
            None => return,
            Some(Ok(checked)) => publish(&checked.found),
            Some(Err(StoreFault::Elsewhere)) => {}
            Some(Err(fault)) => tracing::info!(error = %fault, "the billing store is not compared this time"),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; what is exact is in the admin API"
)]
fn publish(found: &Reconciliation) {
    gauge!(DRIFT).set(found.drift as f64);
    gauge!(DRIFT_CELLS).set(found.differing as f64);
}
