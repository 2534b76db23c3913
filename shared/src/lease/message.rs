//! What a node and the control plane tell each other about leases.
//!
//! Every number about money is a cumulative counter of one (budget, epoch, incarnation), so that a message may come twice, late,
//! out of order or not at all: what is merged by `max` is the same in any order.

use serde::{Deserialize, Serialize};

use crate::ids::{BudgetId, Incarnation, OrganizationId};
use crate::money::NanoUsd;
use crate::time::UnixMillis;
use crate::window::Span;

/// Most wants in one ask: more budgets than a tenant path has.
pub const WANTS_MAX: usize = 64;
/// Most leases in one confirmation; the next one brings more.
pub const GRANTS_MAX: usize = 256;

/// One window of one budget, numbered by the grantor. Never used twice, not even by a budget that was removed and made again.
/// 0 = none yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Node → control: money for a whole tenant path, or a top-up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// Who asks.
    pub incarnation: Incarnation,
    /// Counts this incarnation's asks, from 1; the answer repeats it.
    pub serial: u64,
    /// One per budget on the path, outermost level first; at most [`WANTS_MAX`].
    pub wants: Vec<Want>,
}

/// What one budget's slice lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Want {
    /// The budget.
    pub budget: BudgetId,
    /// The epoch of the slice that the node has; 0 when it has none.
    pub epoch: Epoch,
    /// What the node has been granted in that epoch, as far as it knows.
    pub seen: i64,
    /// What is free of it.
    pub room: i64,
    /// What should be free.
    pub amount: i64,
    /// What must be free to be of any use; equals `amount` unless the budget clamps.
    pub least: i64,
    /// Whether a request waits for it: then the last of the budget is given. A top-up takes only its share.
    pub urgent: bool,
    /// Spend per second of late, in the budget's unit.
    pub burn: i64,
}

/// Control → node: the answer to one [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// Who asked.
    pub incarnation: Incarnation,
    /// The ask that is answered.
    pub serial: u64,
    /// How it went.
    pub verdict: Verdict,
    /// What the asker now has of every budget it named.
    pub grants: Vec<Grant>,
}

/// How an ask went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Every level has what it must have.
    Granted,
    /// Nothing was granted: the money of this budget is out at other nodes, which have been told to give back. Ask again.
    Recalling(BudgetId),
    /// Nothing was granted: this budget is spent, held by requests in flight, or out at nodes that do not answer.
    Exhausted(BudgetId),
    /// This incarnation gets nothing any more: fenced, superseded, closed, or never heard of. Start a new one.
    Fenced,
    /// There is no such budget any more: a newer snapshot does not name it.
    Unknown(BudgetId),
}

/// One lease as the grantor keeps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// The window's end, if it has one.
    pub ends_at: Option<UnixMillis>,
    /// Everything granted in this epoch so far.
    pub granted: i64,
    /// Everything reported spent.
    pub spent: i64,
    /// Everything given back.
    pub returned: i64,
    /// The part of `granted` that was given for the time without a control plane: a connected node leaves it alone. Counter.
    pub reserve: i64,
    /// Nothing is free any more, or not as much as was asked for: the node may use what it has of the reserve.
    pub open: bool,
    /// Whether a waiting request wants more than this and there is none: a clamping budget clamps now.
    pub short: bool,
    /// The newest recall of this lease, and what it asks back; obeyed like a [`Recall`].
    pub recall: i64,
    /// See `recall`.
    pub recall_amount: i64,
}

/// Node → control: the counters of some of its slices. Sent also when there is nothing to say: the answer may bring what was
/// lost on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Report {
    /// Whose.
    pub incarnation: Incarnation,
    /// Counts this incarnation's asks and reports together.
    pub serial: u64,
    /// The slices.
    pub lines: Vec<Line>,
}

/// The counters of one slice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Line {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// Everything spent in this epoch so far. Counter.
    pub spent: i64,
    /// Everything given back. Counter; what is counted here will never be spent.
    pub returned: i64,
    /// The grant that the node knows. Counter.
    pub seen: i64,
    /// Set aside for requests in flight. A hint.
    pub held: i64,
    /// The highest recall that was obeyed. Counter.
    pub recall: i64,
}

/// Control → node: a report has been applied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Confirmed {
    /// Whose.
    pub incarnation: Incarnation,
    /// The report that is confirmed.
    pub serial: u64,
    /// Whether the incarnation may still ask.
    pub live: bool,
    /// Leases of which the node seems not to have heard everything: a grant or a recall. At most [`GRANTS_MAX`].
    pub grants: Vec<Grant>,
}

/// Node → control: an incarnation is over and this is all that it spent. From its own hand after draining, or from the spool
/// by its successor on the same disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Closing {
    /// Whose.
    pub incarnation: Incarnation,
    /// What it spent, requests without an outcome at their whole hold. Slices that are not named keep what was reported.
    pub lines: Vec<ClosedLine>,
    /// Set when the disk may have lost the newest records (power loss): then what is out stays charged.
    pub doubtful: bool,
}

/// What a closed incarnation spent of one budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClosedLine {
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// Everything.
    pub spent: i64,
}

/// Control → node: give back up to this much of what is idle. Told again with every confirmation until a report says that it was
/// obeyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recall {
    /// Who.
    pub incarnation: Incarnation,
    /// The budget.
    pub budget: BudgetId,
    /// Which of its windows.
    pub epoch: Epoch,
    /// Counts the recalls of this lease; an older one than the last obeyed is void.
    pub recall: i64,
    /// How much.
    pub amount: i64,
}

/// What the control plane must do after a command, as data.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Send it to the node.
    Recall(Recall),
    /// Tell somebody: an organization has little credit left. Once, until it has clearly more.
    LowBalance {
        /// Whose.
        organization: OrganizationId,
        /// What is left, before any credit line.
        available: NanoUsd,
        /// How much more the payment system is asked to buy.
        top_up: Option<NanoUsd>,
    },
    /// Tell somebody: a window's settled spend has reached this share of the limit. Comes once per share and window.
    Crossed {
        /// The budget.
        budget: BudgetId,
        /// The window.
        span: Span,
        /// The highest share reached, percent.
        percent: u8,
    },
}
