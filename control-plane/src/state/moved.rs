//! What was moved by month, usage aside: it outlives the transfers, so reports of a month do not depend on how many of those are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tollway_shared::credit::{AccountName, CreditMove, Leg, PayMethod};
use tollway_shared::time::{Day, UnixMillis};

use super::account::{Cause, Transfer};

/// Kinds of movements.
///
/// The order is on disk: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementKind {
    /// Credit was bought.
    TopUp,
    /// Credit was given.
    Grant,
    /// Money went back.
    Refund,
    /// A correction.
    Adjustment,
}

impl MovementKind {
    /// The kind of a movement.
    pub fn of(made: &CreditMove) -> Self {
        match made {
            CreditMove::TopUp {
                method: PayMethod::Promo,
                ..
            } => Self::Grant,
            CreditMove::TopUp { .. } => Self::TopUp,
            CreditMove::Refund { .. } | CreditMove::TakenBack { .. } => Self::Refund,
            CreditMove::Adjustment { .. } => Self::Adjustment,
        }
    }

    /// The name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TopUp => "top_up",
            Self::Grant => "grant",
            Self::Refund => "refund",
            Self::Adjustment => "adjustment",
        }
    }
}

/// A sum of movements. `i128`, as balances are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// How many.
    pub moves: u64,
    /// Nano-dollars: how much credit they are about; taken away when negative.
    pub amount: i128,
    /// Nano-dollars: the fees on it.
    pub fee: i128,
}

impl Moved {
    /// One movement.
    pub fn of(legs: &[Leg]) -> Self {
        let moved = |account| {
            let legs = legs.iter().filter(|(name, _)| *name == account);
            legs.map(|(_, amount)| i128::from(amount.0)).sum()
        };
        Self {
            moves: 1,
            amount: moved(AccountName::Available),
            fee: moved(AccountName::RevenueFee),
        }
    }
}

/// Sums by month, named by its first day, and kind: all there ever was. Months are those of the log's own time, so there are few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedByMonth(BTreeMap<(Day, MovementKind), Moved>);

impl MovedByMonth {
    /// Counts a movement.
    pub(super) fn add(&mut self, at: UnixMillis, made: &CreditMove, legs: &[Leg]) {
        let (one, place) = (Moved::of(legs), (at.day().month(), MovementKind::of(made)));
        let sums = self.0.entry(place).or_default();
        sums.moves += 1;
        sums.amount = sums.amount.saturating_add(one.amount);
        sums.fee = sums.fee.saturating_add(one.fee);
    }

    /// The fees of all months.
    pub fn fees(&self) -> i128 {
        self.0.values().map(|sums| sums.fee).sum()
    }

    /// What these transfers, the newest, do not tell.
    pub fn beside<'a>(
        &self,
        transfers: impl Iterator<Item = &'a Transfer>,
    ) -> BTreeMap<(Day, MovementKind), Moved> {
        let mut rest = self.0.clone();
        for transfer in transfers {
            let Cause::Moved(made) = &transfer.cause else {
                continue;
            };
            let place = (transfer.at.day().month(), MovementKind::of(made));
            let (sums, one) = (rest.entry(place).or_default(), Moved::of(&transfer.legs));
            sums.moves = sums.moves.saturating_sub(1);
            sums.amount -= one.amount;
            sums.fee -= one.fee;
        }
        rest.retain(|_, sums| sums.moves > 0);
        rest
    }
}
