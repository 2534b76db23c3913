//! What an endpoint charges: prices by kind of token, and by the length of the prompt.

use serde::{Deserialize, Serialize};

use crate::money::{NANO_PER_USD, NanoUsd, Price, UNITS_PER_PRICE};

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
    /// Those of them that the cache keeps for an hour; default: `input_cache_write`.
    #[serde(default)]
    pub input_cache_write_1h: Option<Price>,
    /// Hidden reasoning tokens; default: `output`.
    #[serde(default)]
    pub output_reasoning: Option<Price>,
    /// A fixed part per request, US dollars; default: none.
    #[serde(default)]
    pub request: Option<NanoUsd>,
    /// Other prices for longer prompts, shorter ones first, at most [`TIERS_MAX`]. The last one that a prompt is long enough for prices
    /// every token of its request; the fixed part stays.
    #[serde(default)]
    pub tiers: Vec<Tier>,
}

/// Prices of requests with more than so many prompt tokens. Kinds without a price of their own cost what the tier's parent kind costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Begins above this many prompt tokens, those of the cache included.
    pub above_prompt_tokens: u64,
    /// As [`Prices::input`].
    pub input: Price,
    /// As [`Prices::output`].
    pub output: Price,
    /// As [`Prices::input_cache_read`].
    #[serde(default)]
    pub input_cache_read: Option<Price>,
    /// As [`Prices::input_cache_write`].
    #[serde(default)]
    pub input_cache_write: Option<Price>,
    /// As [`Prices::input_cache_write_1h`].
    #[serde(default)]
    pub input_cache_write_1h: Option<Price>,
    /// As [`Prices::output_reasoning`].
    #[serde(default)]
    pub output_reasoning: Option<Price>,
}

/// The price of each kind of token of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Prompt tokens at full price.
    pub input: Price,
    /// Cache reads.
    pub input_cache_read: Price,
    /// Cache writes.
    pub input_cache_write: Price,
    /// Cache writes that are kept for an hour.
    pub input_cache_write_1h: Price,
    /// Visible completion tokens.
    pub output: Price,
    /// Hidden reasoning tokens.
    pub output_reasoning: Price,
}

/// Most prompt tokens, and most completion tokens, that one request is billed for: ten times the longest context that is sold.
pub const TOKENS_MAX: u64 = 100_000_000;
/// Highest price of a token: one cent, ten times and more what the dearest ones cost. More is a slip of the unit.
pub const PRICE_MAX: Price = Price(10_000 * NANO_PER_USD);
/// Most tiers that an endpoint's prices may have.
pub const TIERS_MAX: usize = 8;
/// Highest price per request: a thousand dollars.
pub const REQUEST_PRICE_MAX: NanoUsd = NanoUsd(1_000 * NANO_PER_USD);
/// Most that a request can cost at admissible prices:
/// 2 × [`TOKENS_MAX`] × [`PRICE_MAX`] / 1,000,000 + [`REQUEST_PRICE_MAX`], and five nano-dollars, which is more than the rounding of its lines.
///
/// That is two million dollars, of which a sum of `i64` nano-dollars holds 4,609. Counted in tokens, it holds 922 billion at the
/// highest price: more than ten million a second for a whole day, in one sum.
pub const CHARGE_MAX: NanoUsd =
    NanoUsd(2 * (TOKENS_MAX / UNITS_PER_PRICE as u64) as i64 * PRICE_MAX.0 + REQUEST_PRICE_MAX.0 + 5);

/// Why a price is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PriceFault {
    /// Below zero.
    #[error("must not be negative")]
    Negative,
    /// Above [`PRICE_MAX`].
    #[error("must not be above {PRICE_MAX} dollars per million tokens")]
    TooHigh,
    /// Above [`REQUEST_PRICE_MAX`].
    #[error("must not be above {REQUEST_PRICE_MAX} dollars per request")]
    RequestTooHigh,
    /// More than [`TIERS_MAX`].
    #[error("must not be more than {TIERS_MAX}")]
    TooManyTiers,
    /// A tier begins where an earlier one does, or before it, or has all prompts.
    #[error("must begin above 0 prompt tokens, each above more than the one before")]
    TiersOrder,
}

impl Price {
    /// Whether tokens may be sold at this price.
    pub fn check(self) -> Result<(), PriceFault> {
        match self {
            price if price < Self::ZERO => Err(PriceFault::Negative),
            price if price > PRICE_MAX => Err(PriceFault::TooHigh),
            _ => Ok(()),
        }
    }
}

impl Prices {
    /// Prices of a prompt token and of a completion token, of whatever kind, and nothing else.
    pub fn flat(input: Price, output: Price) -> Self {
        Self {
            input,
            output,
            input_cache_read: None,
            input_cache_write: None,
            input_cache_write_1h: None,
            output_reasoning: None,
            request: None,
            tiers: Vec::new(),
        }
    }

    /// What the tokens of a request with so many prompt tokens cost.
    pub fn rates(&self, prompt_tokens: u64) -> Rates {
        let applies = |tier: &&Tier| prompt_tokens > tier.above_prompt_tokens;
        let tier = self.tiers.iter().take_while(applies).last();
        tier.map_or_else(|| self.base(), Tier::rates)
    }

    /// The prices that a request with so many prompt tokens has, without those of other requests.
    #[must_use]
    pub fn in_force(&self, prompt_tokens: u64) -> Self {
        let applies = |tier: &&Tier| prompt_tokens > tier.above_prompt_tokens;
        let tier = self.tiers.iter().take_while(applies).last();
        Self {
            request: self.request,
            ..tier.map_or_else(
                || Self {
                    tiers: Vec::new(),
                    ..self.clone()
                },
                Tier::alone,
            )
        }
    }

    /// The highest price of each kind for any prompt up to so many tokens.
    pub fn dearest(&self, prompt_tokens_max: u64) -> Rates {
        let applies = |tier: &&Tier| prompt_tokens_max > tier.above_prompt_tokens;
        let tiers = self.tiers.iter().take_while(applies).map(Tier::rates);
        tiers.fold(self.base(), Rates::or_dearer)
    }

    fn base(&self) -> Rates {
        Rates {
            input: self.input,
            input_cache_read: self.input_cache_read.unwrap_or(self.input),
            input_cache_write: self.input_cache_write.unwrap_or(self.input),
            input_cache_write_1h: self
                .input_cache_write_1h
                .or(self.input_cache_write)
                .unwrap_or(self.input),
            output: self.output,
            output_reasoning: self.output_reasoning.unwrap_or(self.output),
        }
    }

    /// The first field whose price is not admissible, if any: below zero, or so high that sums of charges could leave their range
    /// ([`CHARGE_MAX`]).
    pub fn inadmissible(&self) -> Option<(&'static str, PriceFault)> {
        let request = match self.request.unwrap_or_default() {
            price if price < NanoUsd::ZERO => Err(PriceFault::Negative),
            price if price > REQUEST_PRICE_MAX => Err(PriceFault::RequestTooHigh),
            _ => Ok(()),
        };
        let rates = self.base();
        [
            ("input", rates.input.check()),
            ("output", rates.output.check()),
            ("input_cache_read", rates.input_cache_read.check()),
            ("input_cache_write", rates.input_cache_write.check()),
            ("input_cache_write_1h", rates.input_cache_write_1h.check()),
            ("output_reasoning", rates.output_reasoning.check()),
            ("request", request),
            ("tiers", self.check_tiers()),
        ]
        .into_iter()
        .find_map(|(name, checked)| checked.err().map(|fault| (name, fault)))
    }

    fn check_tiers(&self) -> Result<(), PriceFault> {
        if self.tiers.len() > TIERS_MAX {
            return Err(PriceFault::TooManyTiers);
        }
        let mut before = 0;
        for tier in &self.tiers {
            if tier.above_prompt_tokens <= before {
                return Err(PriceFault::TiersOrder);
            }
            before = tier.above_prompt_tokens;
            tier.rates().each().into_iter().try_for_each(Price::check)?;
        }
        Ok(())
    }
}

impl Tier {
    fn rates(&self) -> Rates {
        self.alone().base()
    }

    /// A tier is a set of prices of its own.
    fn alone(&self) -> Prices {
        Prices {
            input_cache_read: self.input_cache_read,
            input_cache_write: self.input_cache_write,
            input_cache_write_1h: self.input_cache_write_1h,
            output_reasoning: self.output_reasoning,
            ..Prices::flat(self.input, self.output)
        }
    }
}

impl Rates {
    /// The dearest of all kinds of prompt tokens.
    pub fn dearest_input(&self) -> Price {
        let cache = self.input_cache_read.max(self.input_cache_write);
        self.input.max(cache).max(self.input_cache_write_1h)
    }

    /// The dearest of both kinds of completion tokens.
    pub fn dearest_output(&self) -> Price {
        self.output.max(self.output_reasoning)
    }

    fn each(&self) -> [Price; 6] {
        [
            self.input,
            self.input_cache_read,
            self.input_cache_write,
            self.input_cache_write_1h,
            self.output,
            self.output_reasoning,
        ]
    }

    fn or_dearer(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            input_cache_read: self.input_cache_read.max(other.input_cache_read),
            input_cache_write: self.input_cache_write.max(other.input_cache_write),
            input_cache_write_1h: self.input_cache_write_1h.max(other.input_cache_write_1h),
            output: self.output.max(other.output),
            output_reasoning: self.output_reasoning.max(other.output_reasoning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(above_prompt_tokens: u64, input: i64, output: i64) -> Tier {
        Tier {
            above_prompt_tokens,
            input: Price(input),
            output: Price(output),
            input_cache_read: None,
            input_cache_write: None,
            input_cache_write_1h: None,
            output_reasoning: None,
        }
    }

    fn tiered(tiers: &[Tier]) -> Prices {
        Prices {
            tiers: tiers.to_vec(),
            ..Prices::flat(Price(10), Price(50))
        }
    }

    #[test]
    fn the_last_tier_that_a_prompt_is_long_enough_for_prices_the_request() {
        let prices = tiered(&[tier(100, 20, 75), tier(200, 30, 40)]);
        for (prompt, input, output) in [
            (0, 10, 50),
            (100, 10, 50),
            (101, 20, 75),
            (200, 20, 75),
            (201, 30, 40),
        ] {
            let rates = prices.rates(prompt);
            assert_eq!((rates.input.0, rates.output.0), (input, output), "{prompt}");
            let alone = prices.in_force(prompt);
            assert_eq!((alone.rates(0), alone.tiers.len()), (rates, 0), "{prompt}");
        }
        // A shorter prompt may be dearer than the longest one.
        for (prompt, input, output) in [(100, 10, 50), (150, 20, 75), (u64::MAX, 30, 75)] {
            let rates = prices.dearest(prompt);
            assert_eq!((rates.input.0, rates.output.0), (input, output), "{prompt}");
        }
    }

    #[test]
    fn a_tier_takes_no_price_from_the_one_before_it() {
        let mut prices = tiered(&[tier(100, 20, 75)]);
        prices.input_cache_read = Some(Price(1));
        prices.input_cache_write_1h = Some(Price(2));
        assert_eq!(
            prices.rates(100).each().map(|price| price.0),
            [10, 1, 10, 2, 50, 50]
        );
        assert_eq!(
            prices.rates(101).each().map(|price| price.0),
            [20, 20, 20, 20, 75, 75]
        );
        prices.tiers[0].input_cache_write = Some(Price(9));
        assert_eq!(
            prices.rates(101).each().map(|price| price.0),
            [20, 20, 9, 9, 75, 75]
        );
        assert_eq!(
            (
                prices.rates(101).dearest_input().0,
                prices.rates(1).dearest_input().0
            ),
            (20, 10)
        );
    }

    #[test]
    fn tiers_out_of_order_or_too_many_or_too_dear_are_refused() {
        let many: Vec<_> = (1..=TIERS_MAX as u64 + 1).map(|n| tier(n, 1, 1)).collect();
        for (tiers, fault) in [
            (&many[..TIERS_MAX], None),
            (&many[..], Some(PriceFault::TooManyTiers)),
            (&[tier(0, 1, 1)], Some(PriceFault::TiersOrder)),
            (&[tier(7, 1, 1), tier(7, 1, 1)], Some(PriceFault::TiersOrder)),
            (&[tier(7, -1, 1)], Some(PriceFault::Negative)),
            (&[tier(7, 1, PRICE_MAX.0 + 1)], Some(PriceFault::TooHigh)),
        ] {
            assert_eq!(tiered(tiers).inadmissible(), fault.map(|fault| ("tiers", fault)));
        }
    }
}
