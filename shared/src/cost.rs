//! Counts × prices: the one price function. Admission, settlement and the ledger's recomputation all call it.

use serde::{Deserialize, Serialize};

use crate::money::{MoneyFault, NanoUsd, Price};
use crate::tokens::TokenCounts;

/// What an endpoint charges. A kind without a price of its own costs what its parent kind costs, never zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Prompt tokens, US dollars per million.
    pub input: Price,
    /// Completion tokens, US dollars per million.
    pub output: Price,
    /// Prompt tokens read from the provider's cache; default: `input`.
    #[serde(default)]
    pub input_cache_read: Option<Price>,
    /// Prompt tokens written to the provider's cache; default: `input`.
    #[serde(default)]
    pub input_cache_write: Option<Price>,
    /// Hidden reasoning tokens; default: `output`.
    #[serde(default)]
    pub output_reasoning: Option<Price>,
    /// A fixed part per request, US dollars; default: none.
    #[serde(default)]
    pub request: Option<NanoUsd>,
}

impl Prices {
    /// The first field that holds a negative price, if any.
    pub fn negative_field(&self) -> Option<&'static str> {
        let below = |price: Option<i64>| price.is_some_and(|p| p < 0);
        [
            ("input", below(Some(self.input.0))),
            ("output", below(Some(self.output.0))),
            ("input_cache_read", below(self.input_cache_read.map(|p| p.0))),
            ("input_cache_write", below(self.input_cache_write.map(|p| p.0))),
            ("output_reasoning", below(self.output_reasoning.map(|p| p.0))),
            ("request", below(self.request.map(|p| p.0))),
        ]
        .into_iter()
        .find_map(|(name, bad)| bad.then_some(name))
    }
}

/// The charge of one attempt, line by line. Every line is rounded once; the total is their exact sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// Prompt tokens at full price.
    pub input: NanoUsd,
    /// Cache reads.
    pub input_cache_read: NanoUsd,
    /// Cache writes.
    pub input_cache_write: NanoUsd,
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
    let mut charge = Charge {
        input: prices.input.charge(counts.input)?,
        input_cache_read: prices
            .input_cache_read
            .unwrap_or(prices.input)
            .charge(counts.input_cache_read)?,
        input_cache_write: prices
            .input_cache_write
            .unwrap_or(prices.input)
            .charge(counts.input_cache_write)?,
        output: prices.output.charge(counts.output)?,
        output_reasoning: prices
            .output_reasoning
            .unwrap_or(prices.output)
            .charge(counts.output_reasoning)?,
        request: prices.request.unwrap_or_default(),
        total: NanoUsd::ZERO,
    };
    charge.total = [
        charge.input,
        charge.input_cache_read,
        charge.input_cache_write,
        charge.output,
        charge.output_reasoning,
        charge.request,
    ]
    .into_iter()
    .try_fold(NanoUsd::ZERO, NanoUsd::plus)?;
    Ok(charge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_its_own_price_costs_what_its_parent_costs() {
        let prices = Prices {
            input: Price::parse("2").unwrap(),
            output: Price::parse("8").unwrap(),
            input_cache_read: Some(Price::parse("0.5").unwrap()),
            input_cache_write: None,
            output_reasoning: None,
            request: Some(NanoUsd(7)),
        };
        let counts = TokenCounts {
            input: 10,
            input_cache_read: 4,
            input_cache_write: 3,
            output: 5,
            output_reasoning: 2,
        };
        let charge = charge(&counts, &prices).unwrap();
        assert_eq!(charge.input, NanoUsd(20_000));
        assert_eq!(charge.input_cache_read, NanoUsd(2_000));
        assert_eq!(charge.input_cache_write, NanoUsd(6_000));
        assert_eq!(charge.output, NanoUsd(40_000));
        assert_eq!(charge.output_reasoning, NanoUsd(16_000));
        assert_eq!(charge.total, NanoUsd(84_007));
    }
}
