//! What a tenant owes for a request, from what it cost at list price: markup or discount, own credentials, free models.
//!
//! The list price stays what [`crate::cost`] says, line by line; this is one more line below it. A markup rounds up, as fees do; a
//! discount rounds half to even, as charges do. What is owed is never negative.

use serde::{Deserialize, Serialize};

use crate::money::{MoneyFault, NanoUsd};

/// Basis points in one.
const ONE: i128 = 10_000;
/// The largest discount: everything.
pub const BPS_MIN: i32 = -10_000;
/// The largest markup: ten times the list price on top. More is a slip of the unit.
pub const BPS_MAX: i32 = 100_000;

/// A markup (positive) or a discount (negative) on the list price.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjustment {
    /// Hundredths of a percent of the list price.
    pub bps: i32,
    /// How much that is.
    pub amount: NanoUsd,
}

/// What decides, beside the list price, what is owed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Basis {
    /// Markup or discount of the organization, basis points.
    pub bps: i32,
    /// Served with the organization's own credential: the provider bills it there.
    pub byok: bool,
    /// The model is offered free.
    pub free: bool,
}

/// What is owed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bill {
    /// What lies between the list price and what is owed, unless nothing is owed at all.
    pub adjustment: Adjustment,
    /// What the tenant owes.
    pub billed: NanoUsd,
}

/// What using own credentials costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByokFee {
    /// Hundredths of a percent of the list price.
    pub bps: u32,
    /// What is free of it.
    pub free: Allowance,
}

/// What an organization has free of fees per UTC month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowance {
    /// So many requests.
    Requests(u64),
    /// So much at list price.
    ListPrice(NanoUsd),
}

/// What an organization has used of its own credentials in a month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByokUsed {
    /// Requests that a provider served.
    pub requests: u64,
    /// What they cost at list price.
    pub list: NanoUsd,
}

impl Default for ByokFee {
    /// 5 % after 1,000,000 requests. Source: OpenRouter's guides of 2025 and 2026.
    fn default() -> Self {
        Self {
            bps: 500,
            free: Allowance::Requests(1_000_000),
        }
    }
}

impl ByokFee {
    /// The fee on the next request, rounded up to a nano-dollar. Of one that crosses an allowance of money, on what lies above it.
    ///
    /// - `used`: what was used in the month before it; `list`: what it cost at list price, not below zero.
    pub fn on(&self, used: &ByokUsed, list: NanoUsd) -> NanoUsd {
        let above = match self.free {
            Allowance::Requests(free) if used.requests < free => 0,
            Allowance::Requests(_) => i128::from(list.0),
            Allowance::ListPrice(free) => {
                let over = i128::from(used.list.0) + i128::from(list.0) - i128::from(free.0);
                over.clamp(0, i128::from(list.0))
            }
        };
        let product = above * i128::from(self.bps);
        let fee = product.div_euclid(ONE) + i128::from(product.rem_euclid(ONE) != 0);
        NanoUsd(i64::try_from(fee).unwrap_or(i64::MAX))
    }
}

impl ByokUsed {
    /// Adds others.
    pub fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.list = self.list.plus(more.list).unwrap_or(NanoUsd(i64::MAX));
    }
}

/// Whether an organization may have this markup or discount.
pub fn admissible(bps: i32) -> bool {
    (BPS_MIN..=BPS_MAX).contains(&bps)
}

/// The bill of a request.
///
/// - `list`: what it cost at list price.
/// - Errors: `Range` when it leaves ±9.2 billion dollars, which no admissible prices and basis points do.
pub fn bill(list: NanoUsd, basis: Basis) -> Result<Bill, MoneyFault> {
    let product = i128::from(list.0) * i128::from(basis.bps);
    let (floor, rest) = (product.div_euclid(ONE), product.rem_euclid(ONE));
    let up = if basis.bps > 0 {
        i128::from(rest != 0)
    } else {
        match (rest * 2).cmp(&ONE) {
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Equal => floor & 1,
            std::cmp::Ordering::Less => 0,
        }
    };
    let amount = i64::try_from(floor + up).map_err(|_| MoneyFault::Range)?;
    let adjustment = Adjustment {
        bps: basis.bps,
        amount: NanoUsd(amount),
    };
    let owed = list.plus(adjustment.amount)?;
    let nothing = basis.byok || basis.free;
    Ok(Bill {
        adjustment,
        billed: if nothing { NanoUsd::ZERO } else { owed },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::CHARGE_MAX;

    #[test]
    fn a_markup_rounds_up_and_a_discount_half_to_even() {
        for (list, bps, amount) in [
            (1_000_000_000, 0, 0),
            (1_000_000_000, 550, 55_000_000),
            (1, 1, 1), // any part of a nano-dollar is one
            (10_000, 1, 1),
            (10_001, 1, 2),
            (1_000_000_000, -100, -10_000_000),
            (1, -1, 0),
            (5_000, -1, 0), // half: to even
            (15_000, -1, -2),
            (25_000, -1, -2),
            (5_001, -1, -1),
            (7, BPS_MIN, -7),
            (7, BPS_MAX, 70),
        ] {
            let basis = Basis {
                bps,
                ..Basis::default()
            };
            let bill = bill(NanoUsd(list), basis).unwrap();
            assert_eq!(bill.adjustment.amount, NanoUsd(amount), "{list} at {bps}");
            assert_eq!(bill.billed, NanoUsd(list + amount), "{list} at {bps}");
        }
    }

    #[test]
    fn own_credentials_and_free_models_owe_nothing_and_still_show_the_adjustment() {
        for (byok, free) in [(true, false), (false, true), (true, true)] {
            let basis = Basis { bps: 100, byok, free };
            let bill = bill(NanoUsd(10_000), basis).unwrap();
            assert_eq!(
                (bill.adjustment.amount, bill.billed),
                (NanoUsd(100), NanoUsd::ZERO)
            );
        }
    }

    #[test]
    fn the_fee_on_own_credentials_is_to_the_nano_dollar() {
        use Allowance::{ListPrice, Requests};
        let dollars = |text: &str| NanoUsd::parse(text).unwrap();
        let seen = |requests, list| ByokUsed {
            requests,
            list: dollars(list),
        };
        let spend = ListPrice(dollars("25000"));
        for (bps, free, used, list, fee) in [
            (500, Requests(1_000_000), seen(0, "0"), "10", "0"),
            (500, Requests(1_000_000), seen(999_999, "90000"), "10", "0"), // the last free one
            (500, Requests(1_000_000), seen(1_000_000, "0"), "10", "0.5"),
            (
                500,
                Requests(1_000_000),
                seen(1_000_000, "0"),
                "0.000000001",
                "0.000000001",
            ),
            (
                500,
                Requests(1_000_000),
                seen(1_000_000, "0"),
                "0.00000002",
                "0.000000001",
            ),
            (
                500,
                Requests(1_000_000),
                seen(1_000_000, "0"),
                "0.000000021",
                "0.000000002",
            ),
            (500, Requests(1_000_000), seen(1_000_000, "0"), "0", "0"),
            (500, Requests(0), seen(0, "0"), "2", "0.1"),
            (500, spend, seen(5_000_000, "24999"), "1", "0"),
            (500, spend, seen(1, "24999"), "1.5", "0.025"), // on what is above
            (500, spend, seen(1, "25000"), "1.5", "0.075"),
            (
                500,
                spend,
                seen(1, "24999.999999999"),
                "0.000000002",
                "0.000000001",
            ),
            (0, Requests(0), seen(9, "9"), "9", "0"),
        ] {
            let rule = ByokFee { bps, free };
            assert_eq!(
                rule.on(&used, dollars(list)).to_string(),
                fee,
                "{rule:?} {used:?} {list}"
            );
        }
    }

    #[test]
    fn no_admissible_charge_and_markup_leave_the_range_of_money() {
        for bps in [BPS_MIN, BPS_MAX] {
            assert!(admissible(bps));
            let basis = Basis {
                bps,
                ..Basis::default()
            };
            assert!(bill(CHARGE_MAX, basis).is_ok_and(|bill| bill.billed >= NanoUsd::ZERO));
        }
        assert!(!admissible(BPS_MIN - 1) && !admissible(BPS_MAX + 1));
        let most = Basis {
            bps: BPS_MAX,
            ..Basis::default()
        };
        assert_eq!(bill(NanoUsd(i64::MAX), most), Err(MoneyFault::Range));
    }
}
