//! Holders as the grantor knows them: incarnations of nodes, and whether they may have money.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::book::Book;
use crate::ids::{BudgetId, Incarnation, NodeId};
use crate::time::UnixMillis;

/// Whether an incarnation may have money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// It is granted what it asks for.
    Live,
    /// Its node runs under another incarnation now. What it has out stays charged until its spool is read.
    Superseded,
    /// Somebody declared it dead. What it has out stays charged until its spool is read or it is released.
    Fenced,
    /// Somebody took it upon them that it spends nothing more than it reported. What was out is free again.
    Released,
    /// All that it spent is known.
    Closed,
}

/// One incarnation of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Whose.
    pub node: NodeId,
    /// What it may have.
    pub standing: Standing,
    /// Since when.
    pub since: UnixMillis,
    /// Budgets of which it has, or had, a lease.
    pub leases: BTreeSet<BudgetId>,
    /// Those of which it is not known to have heard everything.
    pub untold: BTreeSet<BudgetId>,
}

impl Member {
    /// Whether nothing has been heard of it, or will be, since it was closed or released before `before`.
    pub fn is_over(&self, before: UnixMillis) -> bool {
        matches!(self.standing, Standing::Closed | Standing::Released) && self.since < before
    }
}

/// Whether an incarnation is live.
pub(super) fn live(members: &OrdMap<Incarnation, Arc<Member>>) -> impl Fn(&Incarnation) -> bool {
    |id| {
        members
            .get(id)
            .is_some_and(|member| member.standing == Standing::Live)
    }
}

/// Live incarnations that share a book, the asker included.
pub(super) fn holders(members: &OrdMap<Incarnation, Arc<Member>>, book: &Book, asker: Incarnation) -> usize {
    let live = live(members);
    let others = book.leases.keys().filter(|id| **id != asker && live(id));
    others.count() + 1
}
