//! How much to grant, and whom to ask for money back.
//!
//! Nothing here is about safety: any amount up to what is free is safe. It decides how seldom a request waits for the control
//! plane, and how much is stranded at nodes that do not need it.

use super::book::{Book, Lease};
use super::message::Want;
use crate::ids::Incarnation;
use crate::time::UnixMillis;

/// A lease lasts about this long at the node's present burn.
pub const LEASE_SECONDS: i64 = 10;
/// A node of which no burn is known gets this many requests like the one that waits.
pub const FIRST_REQUESTS: i64 = 8;
/// A recall that is not answered for this long is not waited for: what is out there is stranded until its node comes back.
pub const RECALL_PATIENCE_MS: i64 = 2_000;

/// What a want lacks once grants that are under way to the node are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lack {
    /// Up to what it wants.
    pub(super) wanted: i64,
    /// Up to what it must have.
    pub(super) least: i64,
}

/// What is lacking: `lease` is what the asker has of the current book.
pub(super) fn lack(book: &Book, lease: &Lease, want: &Want) -> Lack {
    // In an epoch that the node does not know yet, all that it was granted is still under way.
    let there = if want.epoch == book.epoch {
        want.room
            .saturating_add(lease.granted.saturating_sub(want.seen).max(0))
    } else {
        lease.outstanding()
    };
    let least = if want.urgent { want.least } else { 0 };
    Lack {
        wanted: want.amount.saturating_sub(there).max(0),
        least: least.saturating_sub(there).max(0),
    }
}

/// How much to grant: [`LEASE_SECONDS`] of burn, but at most half of an equal share of what is free, so that leases shrink as
/// the end comes near. A request that waits gets what it lacks while there is any: the last grant before a refusal.
pub(super) fn grant(free: i128, nodes: usize, want: &Want, lack: Lack) -> i64 {
    let free = i64::try_from(free.max(0)).unwrap_or(i64::MAX);
    let share = free / (2 * i64::try_from(nodes.max(1)).unwrap_or(i64::MAX / 2));
    if !want.urgent {
        return lack.wanted.min(share);
    }
    if lack.wanted == 0 {
        return 0;
    }
    let burst = want
        .burn
        .max(0)
        .saturating_mul(LEASE_SECONDS)
        .max(lack.wanted.saturating_mul(FIRST_REQUESTS));
    lack.wanted.max(burst.min(share)).min(free)
}

/// What other nodes could give back soon, recalls under way included.
pub(super) fn recallable(
    book: &Book,
    asker: Incarnation,
    live: impl Fn(&Incarnation) -> bool,
    now: UnixMillis,
) -> i128 {
    others(book, asker, live)
        .map(|(_, lease)| i128::from(lease.idle() - stranded(lease, now)))
        .sum()
}

/// What to ask back of the leases with most to spare, until `missing` comes back. What is on its way counts, and is asked again
/// together with more; what has been on its way for too long does not.
pub(super) fn recalls(
    book: &Book,
    asker: Incarnation,
    live: impl Fn(&Incarnation) -> bool,
    missing: i128,
    now: UnixMillis,
) -> Vec<(Incarnation, i64)> {
    let mut rest = missing;
    let mut spare = Vec::new();
    for (incarnation, lease) in others(book, asker, live).filter(|(_, lease)| stranded(lease, now) == 0) {
        rest -= i128::from(lease.recalled());
        spare.push((lease.idle() - lease.recalled(), *incarnation, lease.recalled()));
    }
    spare.sort_by(|a, b| b.cmp(a));
    let mut amounts = Vec::new();
    for (amount, incarnation, under_way) in spare {
        let take = i128::from(amount).min(rest);
        if take <= 0 {
            break;
        }
        rest -= take;
        amounts.push((incarnation, under_way + i64::try_from(take).unwrap_or(amount)));
    }
    amounts
}

fn others(
    book: &Book,
    asker: Incarnation,
    live: impl Fn(&Incarnation) -> bool,
) -> impl Iterator<Item = (&Incarnation, &Lease)> {
    let leases = book.leases.iter();
    leases.filter(move |(incarnation, lease)| **incarnation != asker && lease.idle() > 0 && live(incarnation))
}

/// What a recall that nobody answers has been waiting for too long.
fn stranded(lease: &Lease, now: UnixMillis) -> i64 {
    let late = now.0.saturating_sub(lease.recalled_at.0) >= RECALL_PATIENCE_MS;
    if lease.recalled() > 0 && late {
        lease.idle()
    } else {
        0
    }
}
