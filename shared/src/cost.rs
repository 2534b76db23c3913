//! Counts × prices: the one price function. Admission, settlement and the ledger's recomputation all call it.

mod prices;

use serde::{Deserialize, Serialize};

pub use self::prices::{
    CHARGE_MAX, PRICE_MAX, PriceFault, Prices, REQUEST_PRICE_MAX, Rates, TIERS_MAX, TOKENS_MAX, Tier,
};
use crate::money::{MoneyFault, NanoUsd};
use crate::tokens::TokenCounts;

/// The charge of one attempt, line by line. Every line is rounded once; the total is their exact sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// Prompt tokens at full price.
    pub input: NanoUsd,
    /// Cache reads.
    pub input_cache_read: NanoUsd,
    /// Cache writes.
    pub input_cache_write: NanoUsd,
    /// Cache writes that are kept for an hour.
    #[serde(default)]
    pub input_cache_write_1h: NanoUsd,
    /// Visible completion tokens.
    pub output: NanoUsd,
    /// Hidden reasoning tokens.
    pub output_reasoning: NanoUsd,
    /// The fixed part.
    pub request: NanoUsd,
    /// The sum of the lines above.
    pub total: NanoUsd,
}

/// Prices one attempt.
///
/// - `counts`: what the provider says was used (or the estimate).
/// - Errors: `Range` when a line or the sum leaves ±9.2 billion dollars.
pub fn charge(counts: &TokenCounts, prices: &Prices) -> Result<Charge, MoneyFault> {
    let rates = prices.rates(counts.prompt());
    let mut charge = Charge {
        input: rates.input.charge(counts.input)?,
        input_cache_read: rates.input_cache_read.charge(counts.input_cache_read)?,
        input_cache_write: rates.input_cache_write.charge(counts.input_cache_write)?,
        input_cache_write_1h: rates.input_cache_write_1h.charge(counts.input_cache_write_1h)?,
        output: rates.output.charge(counts.output)?,
        output_reasoning: rates.output_reasoning.charge(counts.output_reasoning)?,
        request: prices.request.unwrap_or_default(),
        total: NanoUsd::ZERO,
    };
    charge.total = [
        charge.input,
        charge.input_cache_read,
        charge.input_cache_write,
        charge.input_cache_write_1h,
        charge.output,
        charge.output_reasoning,
        charge.request,
    ]
    .into_iter()
    .try_fold(NanoUsd::ZERO, NanoUsd::plus)?;
    Ok(charge)
}

/// The same where nothing may fail any more, because the request was served: where [`charge`] has no answer, [`CHARGE_MAX`], as a price
/// per request. Admissible prices always have one.
pub fn charge_or_most(counts: &TokenCounts, prices: &Prices) -> Charge {
    charge(counts, prices).unwrap_or_else(|_| Charge {
        request: CHARGE_MAX,
        total: CHARGE_MAX,
        ..Charge::default()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::money::Price;

    fn all(price: i64, request: i64) -> Prices {
        Prices {
            input: Price(price),
            output: Price(price),
            input_cache_read: Some(Price(price)),
            input_cache_write: Some(Price(price)),
            input_cache_write_1h: Some(Price(price)),
            output_reasoning: Some(Price(price)),
            request: Some(NanoUsd(request)),
            tiers: Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn no_admissible_price_and_counts_leave_the_range_of_money(
            // The ends of the ranges more often than chance would have it.
            prices in prop::collection::vec(prop_oneof![Just(PRICE_MAX.0), 0..=PRICE_MAX.0], 6),
            request in prop_oneof![Just(REQUEST_PRICE_MAX.0), 0..=REQUEST_PRICE_MAX.0],
            (prompt, completion) in (prop_oneof![Just(TOKENS_MAX), 0..=TOKENS_MAX], prop_oneof![Just(TOKENS_MAX), 0..=TOKENS_MAX]),
            cuts in prop::array::uniform4(0.0..=1.0f64),
        ) {
            let prices = Prices {
                input: Price(prices[0]),
                output: Price(prices[1]),
                input_cache_read: Some(Price(prices[2])),
                input_cache_write: Some(Price(prices[3])),
                output_reasoning: Some(Price(prices[4])),
                input_cache_write_1h: Some(Price(prices[5])),
                request: Some(NanoUsd(request)),
                tiers: Vec::new(),
            };
            prop_assert_eq!(prices.inadmissible(), None);
            let part = |all: u64, cut: f64| ((all as f64 * cut) as u64).min(all);
            let (read, reasoning) = (part(prompt, cuts[0]), part(completion, cuts[2]));
            let written = part(prompt - read, cuts[1]);
            let hour = part(written, cuts[3]);
            let counts = TokenCounts {
                input: prompt - read - written,
                input_cache_read: read,
                input_cache_write: written - hour,
                input_cache_write_1h: hour,
                output: completion - reasoning,
                output_reasoning: reasoning,
            };
            let charge = charge(&counts, &prices);
            prop_assert!(charge.is_ok_and(|charge| (NanoUsd::ZERO..=CHARGE_MAX).contains(&charge.total)), "{:?}", charge);
        }
    }

    #[test]
    fn a_charge_beyond_all_money_is_the_highest_one() {
        let counts = |output| TokenCounts {
            output,
            ..TokenCounts::default()
        };
        for (output, total) in [(1_000_000, PRICE_MAX.0 + 7), (u64::MAX, CHARGE_MAX.0)] {
            let charge = charge_or_most(&counts(output), &all(PRICE_MAX.0, 7));
            assert_eq!(
                (charge.total.0, charge.output.0 + charge.request.0),
                (total, total)
            );
        }
    }

    #[test]
    fn a_price_beyond_its_bounds_is_named() {
        assert_eq!(all(0, 0).inadmissible(), None);
        assert_eq!(all(PRICE_MAX.0, REQUEST_PRICE_MAX.0).inadmissible(), None);
        let named = |set: fn(&mut Prices)| {
            let mut prices = all(0, 0);
            set(&mut prices);
            prices.inadmissible()
        };
        for (found, field, fault) in [
            (named(|p| p.input.0 = -1), "input", PriceFault::Negative),
            (
                named(|p| p.output.0 = PRICE_MAX.0 + 1),
                "output",
                PriceFault::TooHigh,
            ),
            (
                named(|p| p.input_cache_read = Some(Price(i64::MAX))),
                "input_cache_read",
                PriceFault::TooHigh,
            ),
            (
                named(|p| p.input_cache_write = Some(Price(i64::MAX))),
                "input_cache_write",
                PriceFault::TooHigh,
            ),
            (
                named(|p| p.output_reasoning = Some(Price(-1))),
                "output_reasoning",
                PriceFault::Negative,
            ),
            (
                named(|p| p.request = Some(NanoUsd(-1))),
                "request",
                PriceFault::Negative,
            ),
            (
                named(|p| p.request = Some(NanoUsd(REQUEST_PRICE_MAX.0 + 1))),
                "request",
                PriceFault::RequestTooHigh,
            ),
        ] {
            assert_eq!(found, Some((field, fault)));
        }
        assert_eq!(
            PriceFault::TooHigh.to_string(),
            "must not be above 10000 dollars per million tokens"
        );
    }

    #[test]
    fn a_kind_without_its_own_price_costs_what_its_parent_costs() {
        let prices = Prices {
            input: Price::parse("2").unwrap(),
            output: Price::parse("8").unwrap(),
            input_cache_read: Some(Price::parse("0.5").unwrap()),
            input_cache_write: None,
            input_cache_write_1h: None,
            output_reasoning: None,
            request: Some(NanoUsd(7)),
            tiers: Vec::new(),
        };
        let counts = TokenCounts {
            input: 10,
            input_cache_read: 4,
            input_cache_write: 1,
            input_cache_write_1h: 2,
            output: 5,
            output_reasoning: 2,
        };
        let charge = charge(&counts, &prices).unwrap();
        assert_eq!(charge.input, NanoUsd(20_000));
        assert_eq!(charge.input_cache_read, NanoUsd(2_000));
        assert_eq!(charge.input_cache_write, NanoUsd(2_000));
        assert_eq!(charge.input_cache_write_1h, NanoUsd(4_000));
        assert_eq!(charge.output, NanoUsd(40_000));
        assert_eq!(charge.output_reasoning, NanoUsd(16_000));
        assert_eq!(charge.total, NanoUsd(84_007));
    }
}
