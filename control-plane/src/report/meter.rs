//! A line by meter: what each kind of token cost, and the fixed part. Pure.
//!
//! Every event is rounded by itself, so what a meter charged in an hour misses its sum of counts × price by at most half a nano-dollar
//! per event. Both are kept: `charged` is what the ledger has, `product` what a reader of counts and prices computes.

use tollway_shared::cost::Prices;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::tokens::TokenCounts;

use super::line::Line;

/// What is counted and priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meter {
    /// Prompt tokens at full price.
    Input,
    /// Prompt tokens read from the provider's cache.
    CacheRead,
    /// Prompt tokens written to the provider's cache.
    CacheWrite,
    /// Those of them that are kept for an hour.
    CacheWriteHour,
    /// Visible completion tokens.
    Output,
    /// Hidden reasoning tokens.
    Reasoning,
    /// Requests with a fixed part.
    Requests,
}

impl Meter {
    /// Every meter, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Input,
        Self::CacheRead,
        Self::CacheWrite,
        Self::CacheWriteHour,
        Self::Output,
        Self::Reasoning,
        Self::Requests,
    ];

    /// For people, and FOCUS's `SkuMeter`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Input => "Input Tokens",
            Self::CacheRead => "Cache Read Input Tokens",
            Self::CacheWrite => "Cache Write Input Tokens",
            Self::CacheWriteHour => "One-Hour Cache Write Input Tokens",
            Self::Output => "Output Tokens",
            Self::Reasoning => "Reasoning Output Tokens",
            Self::Requests => "Requests",
        }
    }

    /// The name in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CacheRead => "input_cache_read",
            Self::CacheWrite => "input_cache_write",
            Self::CacheWriteHour => "input_cache_write_1h",
            Self::Output => "output",
            Self::Reasoning => "output_reasoning",
            Self::Requests => "requests",
        }
    }

    pub(crate) fn tokens(self, tokens: &TokenCounts) -> u64 {
        match self {
            Self::Input => tokens.input,
            Self::CacheRead => tokens.input_cache_read,
            Self::CacheWrite => tokens.input_cache_write,
            Self::CacheWriteHour => tokens.input_cache_write_1h,
            Self::Output => tokens.output,
            Self::Reasoning => tokens.output_reasoning,
            Self::Requests => 0,
        }
    }

    fn charge(self, line: &Line) -> NanoUsd {
        match self {
            Self::Input => line.charge.input,
            Self::CacheRead => line.charge.input_cache_read,
            Self::CacheWrite => line.charge.input_cache_write,
            Self::CacheWriteHour => line.charge.input_cache_write_1h,
            Self::Output => line.charge.output,
            Self::Reasoning => line.charge.output_reasoning,
            Self::Requests => line.charge.request,
        }
    }

    /// The price per million units; for requests, a million times the price of one.
    pub(crate) fn price(self, prices: &Prices) -> i128 {
        let of = |own: Option<Price>, parent: Price| i128::from(own.unwrap_or(parent).0);
        match self {
            Self::Input => of(None, prices.input),
            Self::CacheRead => of(prices.input_cache_read, prices.input),
            Self::CacheWrite => of(prices.input_cache_write, prices.input),
            Self::CacheWriteHour => of(
                prices.input_cache_write_1h.or(prices.input_cache_write),
                prices.input,
            ),
            Self::Output => of(None, prices.output),
            Self::Reasoning => of(prices.output_reasoning, prices.output),
            Self::Requests => i128::from(prices.request.unwrap_or_default().0) * MILLION,
        }
    }
}

const MILLION: i128 = 1_000_000;

/// One meter of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// Which.
    pub meter: Meter,
    /// How many tokens; for [`Meter::Requests`], how many requests paid the fixed part.
    pub quantity: u64,
    /// Nano-dollars per million tokens, or per request.
    pub unit_price: i128,
    /// Nano-dollars: the sum of what the events were charged, each rounded by itself.
    pub charged: i128,
    /// Nano-dollars: quantity × price, rounded once, half to even.
    pub product: i128,
}

/// The meters of a line that counted or charged something.
pub fn meters(line: &Line) -> impl Iterator<Item = Metered> + '_ {
    Meter::ALL.into_iter().filter_map(|meter| {
        let charged = i128::from(meter.charge(line).0);
        let price = meter.price(&line.prices);
        if meter == Meter::Requests {
            // A request that used nothing pays no fixed part: what was paid says how many did.
            let fixed = (price / MILLION).max(1);
            let quantity = u64::try_from(charged / fixed).unwrap_or(0);
            return (charged != 0).then_some(Metered {
                meter,
                quantity,
                unit_price: fixed,
                charged,
                product: i128::from(quantity) * fixed,
            });
        }
        let quantity = meter.tokens(&line.tokens);
        (quantity != 0 || charged != 0).then(|| Metered {
            meter,
            quantity,
            unit_price: price,
            charged,
            product: cost_of(quantity, price),
        })
    })
}

/// What tokens cost at a price per million, in nano-dollars, rounded half to even.
pub(crate) fn cost_of(tokens: u64, price: i128) -> i128 {
    half_even(i128::from(tokens) * price, MILLION)
}

/// What a kind of cached tokens cost less than the same tokens at full price, in nano-dollars; below zero where it cost more. `None`
/// for meters that are not of the cache.
pub fn cache_savings(metered: &Metered, prices: &Prices) -> Option<i128> {
    let saved = Meter::Input.price(prices) - metered.unit_price;
    let cache = matches!(
        metered.meter,
        Meter::CacheRead | Meter::CacheWrite | Meter::CacheWriteHour
    );
    cache.then(|| cost_of(metered.quantity, saved))
}

/// A quotient, rounded half to even. `divisor` is above zero.
pub(crate) fn half_even(value: i128, divisor: i128) -> i128 {
    let (floor, rest) = (value.div_euclid(divisor), value.rem_euclid(divisor));
    floor
        + match (rest * 2).cmp(&divisor) {
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Equal => floor & 1,
            std::cmp::Ordering::Less => 0,
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tollway_shared::cost;
    use tollway_shared::money::NanoUsd;

    use super::super::sample;
    use super::*;

    proptest! {
        /// Events are charged and rounded one by one, as nodes do; the hour's line is their sum.
        #[test]
        fn the_meters_of_any_hour_charge_what_its_events_did_and_stay_beside_quantity_times_price(
            prices in prop::collection::vec(0..50_000_000_000i64, 5),
            fixed in prop_oneof![Just(0i64), 1..1_000_000i64],
            events in prop::collection::vec((0..5_000u64, 0..5_000u64, 0..50u64, 0..900u64, 0..700u64, any::<bool>()), 1..60),
        ) {
            let prices = Prices {
                input_cache_read: Some(Price(prices[2])),
                input_cache_write: Some(Price(prices[3])),
                output_reasoning: Some(Price(prices[4])),
                request: (fixed > 0).then_some(NanoUsd(fixed)),
                ..Prices::flat(Price(prices[0]), Price(prices[1]))
            };
            let mut line = Line { prices: prices.clone(), billed: NanoUsd(0), requests: 0, tokens: Default::default(), charge: Default::default(), ..sample::line() };
            let mut answered = 0u64;
            for (input, input_cache_read, input_cache_write, output, output_reasoning, failed) in events {
                let mut event = Line { requests: 1, tokens: Default::default(), charge: Default::default(), ..line.clone() };
                if !failed {
                    answered += 1;
                    event.tokens = TokenCounts { input, input_cache_read, input_cache_write, input_cache_write_1h: input_cache_write / 2, output, output_reasoning };
                    event.charge = cost::charge(&event.tokens, &prices).unwrap();
                }
                prop_assert!(line.absorb(&event));
            }
            let (mut charged, mut paid) = (0, 0);
            for metered in meters(&line) {
                charged += metered.charged;
                prop_assert!((metered.charged - metered.product).unsigned_abs() * 2 <= u128::from(line.requests) + 1, "{:?}", metered);
                if metered.meter == Meter::Requests {
                    paid = metered.quantity;
                }
            }
            prop_assert_eq!(charged, i128::from(line.charge.total.0));
            prop_assert_eq!(paid, if fixed > 0 { answered } else { 0 });
        }
    }

    #[test]
    fn what_the_cache_saved_is_the_difference_of_the_two_prices() {
        let metered = |meter, unit_price| Metered {
            meter,
            quantity: 1_000_000,
            unit_price,
            charged: 0,
            product: 0,
        };
        let mut prices = sample::prices();
        prices.input = Price(2_000);
        for (meter, price, saved) in [
            (Meter::CacheRead, 500, Some(1_500)),
            (Meter::CacheWrite, 2_500, Some(-500)),
            (Meter::Input, 2_000, None),
        ] {
            assert_eq!(cache_savings(&metered(meter, price), &prices), saved);
        }
    }
}
