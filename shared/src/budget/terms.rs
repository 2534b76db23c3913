//! What a budget says in full: unit, limit, cycle, mode, thresholds, ceiling per request, temporary raises, standby.
//!
//! Amounts are integers in the budget's unit: nano-dollars, tokens or requests. Limits come from people and are checked here
//! once; what is spent is counted in [`crate::lease`].

use serde::{Deserialize, Serialize};

use crate::ids::AdminId;
use crate::money::NanoUsd;
use crate::time::UnixMillis;
use crate::window::{Cycle, WindowFault};

/// Most raises that a budget keeps, expired ones included.
pub const RAISES_MAX: usize = 64;
/// Most thresholds.
pub const THRESHOLDS_MAX: usize = 16;
/// Largest limit, raises included: far from where sums would overflow.
pub const LIMIT_MAX: i64 = i64::MAX / 4;
/// Parts in a whole of [`Terms::standby_ppm`].
pub const PPM: i64 = 1_000_000;

/// What a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nano-dollars.
    Money,
    /// Tokens of every kind.
    Tokens,
    /// Requests that were sent to a provider.
    Requests,
}

/// What happens when a budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Refuse.
    Hard,
    /// Lower the output cap to what remains; refuse when that is too little for any answer.
    Clamp,
    /// Count and alert. Needs no lease: the ledger counts it.
    Soft,
}

/// More money until a day, and who said so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Raise {
    /// How much more.
    pub amount: i64,
    /// From when it is gone.
    pub until: UnixMillis,
    /// Who.
    pub author: AdminId,
    /// Why.
    pub reason: String,
}

/// A budget's conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// What is counted.
    pub unit: Unit,
    /// The most in one window, before raises.
    pub limit: i64,
    /// When it starts again.
    pub cycle: Cycle,
    /// What happens at the limit.
    pub mode: Mode,
    /// The most that one request may hold. A soft budget holds nothing, so it has none.
    pub per_request_max: Option<i64>,
    /// Shares of the limit, in percent and ascending, at which somebody is told.
    pub thresholds_percent: Vec<u8>,
    /// Temporary raises.
    pub raises: Vec<Raise>,
    /// The share of the limit, in parts per million, that each node keeps for the time when the control plane is gone; 0 = none.
    pub standby_ppm: u32,
}

/// Why terms are not sound. The field is named first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsFault {
    /// The limit.
    #[error("`limit` must be above zero and at most {LIMIT_MAX}")]
    Limit,
    /// The cycle.
    #[error("`cycle` {0}")]
    Cycle(#[from] WindowFault),
    /// The ceiling per request.
    #[error("`per_request_max` must be above zero")]
    PerRequest,
    /// A ceiling per request where requests hold nothing.
    #[error("`per_request_max` needs the mode `hard` or `clamp`: a `soft` budget holds no request")]
    PerRequestSoft,
    /// The thresholds.
    #[error("`thresholds_percent` must be at most {THRESHOLDS_MAX} ascending numbers above zero")]
    Thresholds,
    /// The raises.
    #[error(
        "`raises` must be at most {RAISES_MAX} amounts above zero, and with the limit at most what a limit may be"
    )]
    Raises,
    /// The standby share.
    #[error("`standby_ppm` must be at most 500000, half of the limit")]
    Standby,
}

impl Terms {
    /// A hard limit on money that never starts again.
    pub fn money(limit: NanoUsd) -> Self {
        Self {
            unit: Unit::Money,
            limit: limit.0,
            cycle: crate::time::Period::Lifetime.into(),
            mode: Mode::Hard,
            per_request_max: None,
            thresholds_percent: Vec::new(),
            raises: Vec::new(),
            standby_ppm: 0,
        }
    }

    /// What is wrong with them as somebody asks for them, if anything.
    pub fn check(&self) -> Result<(), TermsFault> {
        self.check_numbers()?;
        if self.mode == Mode::Soft && self.per_request_max.is_some() {
            return Err(TermsFault::PerRequestSoft);
        }
        Ok(self.cycle.check()?)
    }

    /// What every replica checks again as it applies them. No look at the time zone: replicas with two editions of the rules must
    /// agree. And nothing that an older log may have in it: a budget that was taken is not refused when it is read again.
    pub fn check_numbers(&self) -> Result<(), TermsFault> {
        let at_most = |sum: i64, raise: &Raise| sum.checked_add(raise.amount).filter(|sum| *sum <= LIMIT_MAX);
        if self.limit <= 0 || self.limit > LIMIT_MAX {
            Err(TermsFault::Limit)
        } else if self.per_request_max.is_some_and(|most| most <= 0) {
            Err(TermsFault::PerRequest)
        } else if self.thresholds_percent.len() > THRESHOLDS_MAX
            || self.thresholds_percent.first() == Some(&0)
            || !self.thresholds_percent.is_sorted_by(|a, b| a < b)
        {
            Err(TermsFault::Thresholds)
        } else if self.raises.len() > RAISES_MAX
            || self.raises.iter().any(|raise| raise.amount <= 0)
            || self.raises.iter().try_fold(self.limit, at_most).is_none()
        {
            Err(TermsFault::Raises)
        } else if i64::from(self.standby_ppm) > PPM / 2 {
            Err(TermsFault::Standby)
        } else {
            Ok(())
        }
    }

    /// The limit at `now`, with the raises that have not expired.
    pub fn limit_at(&self, now: UnixMillis) -> i64 {
        let valid = self.raises.iter().filter(|raise| now < raise.until);
        valid
            .fold(self.limit, |sum, raise| sum.saturating_add(raise.amount))
            .min(LIMIT_MAX)
    }

    /// The highest limit that any instant can have: with every raise that is kept, expired or not.
    pub fn limit_max(&self) -> i64 {
        let amounts = self.raises.iter().map(|raise| raise.amount);
        amounts.fold(self.limit, i64::saturating_add).min(LIMIT_MAX)
    }

    /// What each node keeps for the time without a control plane.
    pub fn standby(&self, limit: i64) -> i64 {
        let share = i128::from(limit) * i128::from(self.standby_ppm) / i128::from(PPM);
        i64::try_from(share).unwrap_or(0)
    }

    /// The highest threshold that `spent` has reached, if any.
    pub fn threshold(&self, spent: i128, limit: i64) -> Option<u8> {
        let reached = |percent: &&u8| spent * 100 >= i128::from(limit) * i128::from(**percent);
        self.thresholds_percent.iter().rev().find(reached).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(amount: i64, until: i64) -> Raise {
        Raise {
            amount,
            until: UnixMillis(until),
            author: AdminId::trusted("ada"),
            reason: "launch".into(),
        }
    }

    #[test]
    fn a_raise_counts_until_it_expires_and_not_at_that_instant() {
        let mut terms = Terms::money(NanoUsd(100));
        terms.raises = vec![raise(50, 10), raise(7, 20)];
        for (now, limit) in [(9, 157), (10, 107), (20, 100)] {
            assert_eq!(terms.limit_at(UnixMillis(now)), limit, "at {now}");
        }
    }

    #[test]
    fn terms_that_are_not_sound_name_their_field() {
        type Spoil = fn(&mut Terms);
        let cases: [(&str, Spoil); 10] = [
            ("`limit`", |t| t.limit = 0),
            ("`limit`", |t| t.limit = LIMIT_MAX + 1),
            ("`per_request_max`", |t| t.per_request_max = Some(0)),
            ("`per_request_max`", |t| {
                (t.mode, t.per_request_max) = (Mode::Soft, Some(1));
            }),
            ("`cycle`", |t| {
                t.cycle.every = crate::window::Every::Days {
                    count: 0,
                    from: crate::time::Day(0),
                };
            }),
            ("`thresholds_percent`", |t| t.thresholds_percent = vec![50, 50]),
            ("`thresholds_percent`", |t| t.thresholds_percent = vec![0]),
            ("`raises`", |t| t.raises = vec![raise(-1, 10)]),
            ("`raises`", |t| t.raises = vec![raise(LIMIT_MAX, 10)]),
            ("`standby_ppm`", |t| t.standby_ppm = 500_001),
        ];
        for (field, spoil) in cases {
            let mut terms = Terms::money(NanoUsd(100));
            assert_eq!(terms.check(), Ok(()));
            spoil(&mut terms);
            let text = terms.check().unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
        }
    }

    #[test]
    fn the_highest_threshold_reached_is_told() {
        let mut terms = Terms::money(NanoUsd(200));
        terms.thresholds_percent = vec![50, 80, 100, 120];
        for (spent, percent) in [
            (99, None),
            (100, Some(50)),
            (199, Some(80)),
            (200, Some(100)),
            (240, Some(120)),
        ] {
            assert_eq!(terms.threshold(spent, 200), percent, "{spent}");
        }
    }
}
