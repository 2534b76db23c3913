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
