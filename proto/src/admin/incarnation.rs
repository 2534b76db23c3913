//! Lives of nodes, and what each holds of budgets.

use serde::{Deserialize, Serialize};
use tollway_shared::ids;
use tollway_shared::lease::member::{self, Member};
use utoipa::ToSchema;

use super::budget::Amount;
use super::text::{self, Text, Textual, mirror};

/// One life of a node's process.
pub type IncarnationId = Text<ids::Incarnation>;

/// Most leases that one answer lists.
pub const LEASES_MAX: usize = 1_000;

impl Textual for ids::Incarnation {
    const NAME: &'static str = "IncarnationId";
    const ABOUT: &'static str = "One life of a node's process: 32 hex digits.";
    const EXAMPLE: &'static str = "0190d7d2a1b2c3d4e5f60718293a4b5c";

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("`{text}` is not 32 hex digits"))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

mirror! {
    /// Whether a life of a node may have money.
    Standing = member::Standing {
        /// It is granted what it asks for.
        Live "live",
        /// Its node runs under another one now. What it has out stays charged until its spool is read.
        Superseded "superseded",
        /// It was declared dead, by hand or after half an hour without a connection. What it has out stays charged until its spool is read
        /// or it is released.
        Fenced "fenced",
        /// Somebody has said that it spends nothing more than it reported. What it had out is free again.
        Released "released",
        /// All that it spent is known.
        Closed "closed",
    }
}

/// One life of a node's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Incarnation {
    /// Its id.
    pub id: IncarnationId,
    /// Whose.
    pub node: text::NodeId,
    /// Whether it may have money.
    pub standing: Standing,
    /// Since when.
    pub since: text::Instant,
    /// Of how many budgets it has, or had, a lease.
    pub budgets: u64,
}

impl Incarnation {
    /// The JSON form of a member of the grantor's books.
    pub fn of(id: ids::Incarnation, member: &Member) -> Self {
        Self {
            id: Text(id),
            node: Text(member.node.clone()),
            standing: member.standing.into(),
            since: Text(member.since),
            budgets: member.leases.len() as u64,
        }
    }
}

/// What a life of a node has of one window of one budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Held {
    /// The budget.
    pub budget: text::BudgetId,
    /// When the window began.
    pub starts_at: text::Instant,
    /// Given to it so far, in the budget's unit.
    pub granted: Amount,
    /// Reported spent.
    pub spent: Amount,
    /// Given back.
    pub returned: Amount,
    /// What it may still spend: the rest.
    pub outstanding: Amount,
}

/// One life of a node's process, with its leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncarnationLeases {
    /// The life.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// Its leases in windows that are kept, the first 1,000.
    pub leases: Vec<Held>,
}
