//! What a period would have cost at other prices. Pure, and changes nothing.
//!
//! A meter whose price stays costs what it did, exactly. One whose price differs is an hour's sum of counts × the new price, rounded
//! once, where requests would have been rounded one by one: each of them half a nano-dollar away at most.
//!
//! Old prices are those that were in force for a line's requests, of whatever tier; new ones have no tiers, because a line does not say
//! how long each prompt was.

use std::collections::BTreeMap;

use tollway_proto::admin::report::{ReRated, ReRatedRow};
use tollway_proto::admin::text::Text;
use tollway_shared::cost::Prices;
use tollway_shared::ids::{EndpointId, ModelId, OrganizationId};
use tollway_shared::money::MoneyFault;

use super::invoice::usd;
use super::line::Line;
use super::meter::{self, Meter};

/// Most rows of an answer.
pub const ROWS_MAX: usize = 20_000;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReRateFault {
    /// More than [`ROWS_MAX`].
    #[error("the answer would have more than {ROWS_MAX} rows; name an organization, or fewer endpoints")]
    Rows,
    /// A sum that leaves the range of money.
    #[error("a sum {0}")]
    Money(#[from] MoneyFault),
}

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    requests: u64,
    recorded: i128,
    re_rated: i128,
    /// In halves of a nano-dollar.
    exact_to_halves: i128,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.recorded += other.recorded;
        self.re_rated += other.re_rated;
        self.exact_to_halves += other.exact_to_halves;
    }

    fn exact_to(&self) -> i128 {
        self.exact_to_halves.div_euclid(2) + self.exact_to_halves.rem_euclid(2)
    }
}

/// An answer in the making: takes lines in any order.
#[derive(Debug, Default)]
pub struct ReRating {
    rates: BTreeMap<EndpointId, Prices>,
    rows: BTreeMap<(OrganizationId, ModelId, EndpointId), Sums>,
}

impl ReRating {
    /// Begins, with the prices of each endpoint that is asked for.
    pub fn new(rates: BTreeMap<EndpointId, Prices>) -> Self {
        Self {
            rates,
            rows: BTreeMap::new(),
        }
    }

    /// Takes a line; one of an endpoint without a rate is left out.
    pub fn push(&mut self, line: &Line) -> Result<(), ReRateFault> {
        let Some(prices) = self.rates.get(&line.endpoint) else {
            return Ok(());
        };
        let sums = re_rated(line, prices);
        let place = (
            line.path.organization.clone(),
            line.model.clone(),
            line.endpoint.clone(),
        );
        self.rows.entry(place).or_default().add(&sums);
        if self.rows.len() > ROWS_MAX {
            return Err(ReRateFault::Rows);
        }
        Ok(())
    }

    /// Whether it has taken a line of this endpoint.
    pub fn has(&self, endpoint: &EndpointId) -> bool {
        self.rows.keys().any(|(.., of)| of == endpoint)
    }

    /// The answer.
    pub fn finish(self) -> Result<ReRated, ReRateFault> {
        let mut total = Sums::default();
        let mut data = Vec::with_capacity(self.rows.len());
        for ((organization, model, endpoint), sums) in self.rows {
            total.add(&sums);
            data.push(ReRatedRow {
                organization: Text(organization),
                model: Text(model),
                endpoint: Text(endpoint),
                requests: sums.requests,
                recorded: usd(sums.recorded)?,
                re_rated: usd(sums.re_rated)?,
                difference: usd(sums.re_rated - sums.recorded)?,
                exact_to: usd(sums.exact_to())?,
            });
        }
        Ok(ReRated {
            data,
            recorded: usd(total.recorded)?,
            re_rated: usd(total.re_rated)?,
            difference: usd(total.re_rated - total.recorded)?,
            exact_to: usd(total.exact_to())?,
        })
    }
}

fn re_rated(line: &Line, prices: &Prices) -> Sums {
    let mut sums = Sums {
        requests: line.requests,
        recorded: line.charge.total.0.into(),
        re_rated: fixed_parts(line, prices),
        exact_to_halves: 0,
    };
    for metered in meter::meters(line).filter(|metered| metered.meter != Meter::Requests) {
        let price = metered.meter.price(prices);
        if price == metered.unit_price {
            sums.re_rated += metered.charged;
        } else {
            sums.re_rated += meter::cost_of(metered.quantity, price);
            sums.exact_to_halves += i128::from(line.requests) + 1;
        }
    }
    sums
}

/// The fixed parts of a line. How many requests pay them is known where the old prices have one; otherwise all are taken for paying,
/// those that no provider answered too.
fn fixed_parts(line: &Line, prices: &Prices) -> i128 {
    let paying = match line.prices.request {
        Some(fixed) if fixed.0 > 0 => i128::from(line.charge.request.0) / i128::from(fixed.0),
        _ => i128::from(line.requests),
    };
    paying * i128::from(prices.request.unwrap_or_default().0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tollway_shared::cost;
    use tollway_shared::money::{NanoUsd, Price};
    use tollway_shared::tokens::TokenCounts;

    use super::*;
    use crate::report::sample;

    fn one(line: Line, prices: Prices) -> ReRatedRow {
        let mut rating = ReRating::new(BTreeMap::from([(line.endpoint.clone(), prices)]));
        rating.push(&line).unwrap();
        rating.finish().unwrap().data.remove(0)
    }

    #[test]
    fn at_the_prices_it_was_charged_at_nothing_differs_by_a_single_nano_dollar() {
        let row = one(sample::line(), sample::prices());
        assert_eq!((row.difference.0.0, row.exact_to.0.0), (0, 0));
    }

    #[test]
    fn an_endpoint_that_nobody_asked_about_is_left_out() {
        let mut rating = ReRating::new(BTreeMap::new());
        rating.push(&sample::line()).unwrap();
        assert!(rating.finish().unwrap().data.is_empty());
    }

    proptest! {
        /// Against the requests themselves, charged one by one at the new prices.
        #[test]
        fn the_answer_is_as_close_to_requests_charged_one_by_one_as_it_says(
            old in prop::collection::vec(0..20_000_000_000i64, 4),
            new in prop::collection::vec(0..20_000_000_000i64, 4),
            same_input in any::<bool>(),
            events in prop::collection::vec((0..9_000u64, 0..9_000u64, 0..900u64), 1..50),
        ) {
            let prices = |of: &[i64]| Prices {
                input_cache_read: Some(Price(of[2])),
                request: Some(NanoUsd(of[3] % 1_000_000 + 1)),
                ..Prices::flat(Price(of[0]), Price(of[1]))
            };
            let (old, mut new) = (prices(&old), prices(&new));
            if same_input {
                new.input = old.input;
            }
            let mut line = Line { prices: old.clone(), billed: NanoUsd(0), requests: 0, tokens: Default::default(), charge: Default::default(), ..sample::line() };
            let mut exact = 0i128;
            for (input, input_cache_read, output) in events {
                let tokens = TokenCounts { input, input_cache_read, output, ..TokenCounts::default() };
                let charge = cost::charge(&tokens, &old).unwrap();
                exact += i128::from(cost::charge(&tokens, &new).unwrap().total.0);
                let event = Line { requests: 1, tokens, charge, ..line.clone() };
                prop_assert!(line.absorb(&event));
            }
            let row = one(line, new);
            let off = (i128::from(row.re_rated.0.0) - exact).abs();
            prop_assert!(off <= i128::from(row.exact_to.0.0), "{off} {row:?}");
        }
    }
}
