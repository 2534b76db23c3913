//! Which budget a fault is about.

use super::Fault;
use crate::budget::Budget;
use crate::credit;
use crate::lease::hold::Left;
use crate::time::UnixMillis;

/// Which budget stopped a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitNote<'a> {
    /// The level of the tenant path.
    pub source: &'static str,
    /// The budget's id.
    pub budget: &'a str,
    /// When its next window starts, if one does.
    pub resets_at: Option<UnixMillis>,
}

impl Fault {
    /// A spent budget, by what it stands for.
    pub fn spent(
        budget: &Budget,
        level: &'static str,
        left: Left,
        resets_at: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Self {
        if credit::is_credit(&budget.id) {
            return Self::InsufficientCredits {
                left,
                organization: budget.scope.id().to_owned(),
            };
        }
        if credit::is_quota(&budget.id) {
            return Self::FreeQuota {
                limit: budget.terms.limit,
                window: "day",
                resets_at: resets_at.or_else(|| budget.resets_at(now)).unwrap_or(now),
            };
        }
        Self::BudgetExhausted {
            left,
            level,
            budget: budget.id.to_string(),
            resets_at,
        }
    }

    /// The budget that it is about, for `error.metadata`.
    pub fn limit(&self) -> Option<LimitNote<'_>> {
        let (source, budget, resets_at) = match self {
            Self::BudgetExhausted {
                level,
                budget,
                resets_at,
                ..
            } => (level, budget, *resets_at),
            Self::RequestTooDear { level, budget } => (level, budget, None),
            _ => return None,
        };
        Some(LimitNote {
            source,
            budget,
            resets_at,
        })
    }
}
