//! The worst that a request can cost, in every unit that budgets count. PURE.
//!
//! A token is at least one byte of text, so the bytes of what is sent bound its prompt; what is no text is counted flat
//! ([`crate::dialects::estimate::Prompt::tokens_max`]). The answer is bounded by the caller's cap, or the endpoint's, or the model's
//! context. Each candidate of the plan is priced at its dearest prices, and the dearest candidate counts.

use tollway_shared::budget::terms::Terms;
use tollway_shared::cost::Prices;
use tollway_shared::lease::hold::{Amounts, Claim};
use tollway_shared::money::{NanoUsd, Price, UNITS_PER_PRICE};

/// Lines of a charge are rounded one by one, each up by at most half a nano-dollar: more than that for all of them.
const ROUNDING: i64 = 5;
/// Basis points in one.
const ONE: i128 = 10_000;

/// The most tokens that one candidate has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of one answer.
    pub output_tokens: u64,
}

/// What one candidate can cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    input: Price,
    output: Price,
    request: NanoUsd,
    /// The most tokens in one of its answers, when the caller has no cap.
    pub output_tokens_max: u64,
    /// What is owed of the list price, hundredths of a percent.
    owed_bps: i128,
}

impl Rates {
    /// The dearest that an endpoint charges for each token of such a request.
    ///
    /// - `bounds`: the most prompt tokens, which tiers of prices depend on, and the most tokens of one answer without a cap of the
    ///   caller's.
    pub fn of(prices: &Prices, bounds: Most) -> Self {
        let dearest = prices.dearest(bounds.prompt_tokens);
        Self {
            input: dearest.dearest_input(),
            output: dearest.dearest_output(),
            request: prices.request.unwrap_or_default(),
            output_tokens_max: bounds.output_tokens,
            owed_bps: ONE,
        }
    }

    /// The same with a markup or discount; [`bill::BPS_MIN`] of what is free.
    ///
    /// [`bill::BPS_MIN`]: tollway_shared::bill::BPS_MIN
    pub fn billed(mut self, bps: i32) -> Self {
        self.owed_bps = (ONE + i128::from(bps)).max(0);
        self
    }

    /// The most that is owed; beyond the range of money the largest amount, which no budget has.
    fn cost(&self, prompt: u64, completion: u64) -> NanoUsd {
        let owed = i128::from(self.list(prompt, completion).0) * self.owed_bps;
        let up = i128::from(owed % ONE != 0);
        NanoUsd(i64::try_from(owed / ONE + up).unwrap_or(i64::MAX))
    }

    /// The most that it charges at list price.
    fn list(&self, prompt: u64, completion: u64) -> NanoUsd {
        let lines = self
            .input
            .charge_up(prompt)
            .and_then(|input| input.plus(self.output.charge_up(completion)?))
            .and_then(|tokens| match tokens {
                NanoUsd::ZERO => Ok(tokens),
                tokens => tokens.plus(NanoUsd(ROUNDING)),
            });
        lines
            .and_then(|tokens| tokens.plus(self.request))
            .unwrap_or(NanoUsd(i64::MAX))
    }

    /// The most completion tokens that `money` pays for besides the prompt: as many as [`Rates::cost`] lets fit.
    fn completion(&self, prompt: u64, money: NanoUsd) -> u64 {
        if self.owed_bps == 0 {
            return u64::MAX;
        }
        match self.output {
            _ if self.cost(prompt, 0) > money => 0,
            Price(price) if price <= 0 => u64::MAX,
            Price(price) => {
                let input = self.input.charge_up(prompt).unwrap_or(NanoUsd(i64::MAX));
                let besides = i128::from(input.0) + i128::from(self.request.0) + i128::from(ROUNDING);
                let list = i128::from(money.0.max(0)) * ONE / self.owed_bps;
                let rest = (list - besides).max(0);
                u64::try_from(rest * UNITS_PER_PRICE / i128::from(price)).unwrap_or(u64::MAX)
            }
        }
    }
}

/// A request as far as its cost goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// The most prompt tokens.
    pub prompt_tokens: u64,
    /// How many answers it wants.
    pub answers: u64,
    /// The cap on one answer, the caller's or a clamped one.
    pub cap: Option<u64>,
    /// Its candidates.
    pub rates: Vec<Rates>,
}

impl Bounds {
    /// The claim.
    pub fn claim(&self) -> Claim {
        Claim {
            worst: self.amounts(self.cap),
            least: self.amounts(Some(1)),
        }
    }

    fn amounts(&self, cap: Option<u64>) -> Amounts {
        let mut worst = Amounts {
            requests: 1,
            ..Amounts::default()
        };
        for rates in &self.rates {
            let each = cap.unwrap_or(rates.output_tokens_max);
            let completion = each.saturating_mul(self.answers);
            let tokens = self.prompt_tokens.saturating_add(completion);
            worst.money = worst.money.max(rates.cost(self.prompt_tokens, completion));
            worst.tokens = worst.tokens.max(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
        worst
    }

    /// The largest cap on one answer with which the claim fits into `most`; `None` when not even one token does.
    pub fn cap_within(&self, most: &Amounts) -> Option<u64> {
        let tokens = u64::try_from(most.tokens).unwrap_or(0);
        let completion = self
            .rates
            .iter()
            .map(|rates| rates.completion(self.prompt_tokens, most.money));
        let completion = completion
            .chain([tokens.saturating_sub(self.prompt_tokens)])
            .min()?;
        let each = completion / self.answers.max(1);
        (each > 0 && most.requests > 0).then_some(each)
    }

    /// The cap for a request that has none of its own, where all that it could cost is more than budgets allow for one request; `None`
    /// where it is not, and where not even one token is allowed.
    pub fn cap_under_ceilings<'a>(&self, terms: impl Iterator<Item = &'a Terms>) -> Option<u64> {
        let worst = self.claim().worst;
        let mut most = worst;
        for terms in terms {
            if let Some(ceiling) = terms.per_request_max {
                most.lower(terms.unit, ceiling);
            }
        }
        self.cap_within(&most).filter(|_| most != worst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tollway_shared::cost::{self, Tier};
    use tollway_shared::tokens::TokenCounts;

    use super::*;

    fn prices(input: i64, output: i64, write: Option<i64>, reasoning: Option<i64>) -> Prices {
        Prices {
            input_cache_write: write.map(Price),
            output_reasoning: reasoning.map(Price),
            request: Some(NanoUsd(7)),
            ..Prices::flat(Price(input), Price(output))
        }
    }

    fn rates(prices: &Prices, output_tokens: u64) -> Rates {
        Rates::of(
            prices,
            Most {
                prompt_tokens: 5_000,
                output_tokens,
            },
        )
    }

    fn bounds(cap: Option<u64>, rates: Vec<Rates>) -> Bounds {
        Bounds {
            prompt_tokens: 10,
            answers: 2,
            cap,
            rates,
        }
    }

    #[test]
    fn the_dearest_candidate_at_its_dearest_prices_is_claimed() {
        let cheap = rates(&prices(1_000_000, 2_000_000, None, None), 100);
        let dear = rates(
            &prices(1_000_000, 2_000_000, Some(3_000_000), Some(9_000_000)),
            50,
        );
        let claim = bounds(Some(4), vec![cheap, dear]).claim();
        // 10 × 3 + 8 × 9, the request's own price, and the rounding.
        assert_eq!(claim.worst.money, NanoUsd(30 + 72 + 7 + ROUNDING));
        assert_eq!((claim.worst.tokens, claim.worst.requests), (18, 1));
        assert_eq!(claim.least.money, NanoUsd(30 + 18 + 7 + ROUNDING));
        // Without a cap of the caller's, each endpoint's own counts.
        let claim = bounds(None, vec![cheap, dear]).claim();
        assert_eq!(claim.worst.money, NanoUsd(30 + 900 + 7 + ROUNDING));
        assert_eq!(claim.worst.tokens, 210);
    }

    /// What the least claims is granted to the nano-dollar at a budget's end: an answer of one token must fit into it.
    #[test]
    fn the_least_is_enough_for_one_token() {
        for (input, output) in [(1_000_000, 2_000_000), (0, 7), (3, 1), (5_000_000_000, 999_999)] {
            let bounds = bounds(None, vec![rates(&prices(input, output, None, None), 100)]);
            let one = Bounds { answers: 1, ..bounds };
            let least = one.claim().least;
            assert!(
                one.cap_within(&least) >= Some(1),
                "{input} and {output}: {least:?}"
            );
        }
    }

    #[test]
    fn a_request_without_a_cap_may_cost_all_that_budgets_allow_for_one() {
        let free = bounds(None, vec![rates(&prices(0, 2_000_000, None, None), 100)]);
        let allowed = |most: &[i64]| {
            let terms: Vec<Terms> = most
                .iter()
                .map(|most| Terms {
                    per_request_max: Some(*most),
                    ..Terms::money(NanoUsd(1_000_000))
                })
                .collect();
            free.cap_under_ceilings(terms.iter())
        };
        let besides = 7 + ROUNDING;
        assert_eq!(allowed(&[]), None);
        assert_eq!(allowed(&[1_000_000]), None, "more than it can cost");
        assert_eq!(
            allowed(&[1_000_000, 2 * 2 * 30 + besides]),
            Some(30),
            "the whole of it, for each of two answers"
        );
        assert_eq!(allowed(&[besides]), None, "too dear with one token");
    }

    #[test]
    fn what_costs_nothing_claims_no_money() {
        let mut free = prices(0, 0, None, None);
        free.request = None;
        let claim = bounds(Some(4), vec![rates(&free, 9)]).claim();
        assert_eq!((claim.worst.money, claim.worst.tokens), (NanoUsd::ZERO, 18));
    }

    #[test]
    fn what_is_owed_is_claimed_and_not_the_list_price() {
        let dear = rates(&prices(1_000_000, 2_000_000, None, None), 9);
        let list = bounds(Some(4), vec![dear]).claim().worst.money.0;
        for (bps, owed) in [
            (0, list),
            (-10_000, 0),
            (10_000, 2 * list),
            (1, list + 1),
            (-1, list),
        ] {
            let billed = bounds(Some(4), vec![dear.billed(bps)]);
            assert_eq!(billed.claim().worst.money.0, owed, "{bps}");
            let most = billed.claim().worst;
            assert!(
                billed
                    .cap_within(&most)
                    .is_some_and(|cap| cap <= 4 || bps == -10_000),
                "{bps}"
            );
        }
    }

    #[test]
    fn a_claim_beyond_the_range_of_money_is_more_than_any_budget_has() {
        let claim = bounds(Some(u64::MAX), vec![rates(&prices(1, i64::MAX, None, None), 9)]).claim();
        assert_eq!((claim.worst.money.0, claim.worst.tokens), (i64::MAX, i64::MAX));
    }

    fn price() -> impl Strategy<Value = i64> {
        prop_oneof![Just(0), 1i64..50, 1i64..100_000_000_000]
    }

    proptest! {
        /// Whatever is used within the bounds is charged at most what was claimed.
        #[test]
        fn no_charge_is_above_its_claim(
            (input, output) in (price(), price()),
            (write, reasoning) in (proptest::option::of(price()), proptest::option::of(price())),
            tier in proptest::option::of((1u64..5_000, price(), price(), proptest::option::of(price()))),
            (prompt, cap, answers) in (0u64..5_000, 1u64..5_000, 1u64..4),
            split in proptest::array::uniform4(0.0f64..=1.0),
        ) {
            let mut prices = prices(input, output, write, reasoning);
            prices.tiers.extend(tier.map(|(above_prompt_tokens, input, output, hour)| Tier {
                above_prompt_tokens,
                input: Price(input),
                output: Price(output),
                input_cache_read: None,
                input_cache_write: None,
                input_cache_write_1h: hour.map(Price),
                output_reasoning: None,
            }));
            let bounds = Bounds { prompt_tokens: prompt, answers, cap: Some(cap), rates: vec![rates(&prices, 1)] };
            let part = |whole: u64, share: f64| (whole as f64 * share) as u64;
            let (written, reasoned) = (part(prompt, split[0]), part(cap * answers, split[1]));
            let (read, hour) = (part(prompt - written, split[2]), part(written, split[3]));
            let used = TokenCounts {
                input: prompt - written - read,
                input_cache_read: read,
                input_cache_write: written - hour,
                input_cache_write_1h: hour,
                output: cap * answers - reasoned,
                output_reasoning: reasoned,
            };
            let claim = bounds.claim();
            prop_assert!(cost::charge(&used, &prices).unwrap().total <= claim.worst.money);
            prop_assert!(i64::try_from(used.prompt() + used.completion()).unwrap() <= claim.worst.tokens);
        }

        /// A clamped claim fits, and one token more does not, but for the rounding.
        #[test]
        fn a_clamped_claim_fits(
            (input, output) in (price(), price()),
            (prompt, answers) in (0u64..5_000, 1u64..4),
            (money, tokens) in (0i64..1_000_000_000, 0i64..100_000),
        ) {
            let rates = vec![rates(&prices(input, output, None, None), 1_000)];
            let mut bounds = Bounds { prompt_tokens: prompt, answers, cap: None, rates };
            let most = Amounts { money: NanoUsd(money), tokens, requests: 1 };
            let fits = |bounds: &Bounds| {
                let worst = bounds.claim().worst;
                worst.money <= most.money && worst.tokens <= most.tokens
            };
            match bounds.cap_within(&most) {
                Some(cap) => {
                    bounds.cap = Some(cap);
                    prop_assert!(fits(&bounds));
                    bounds.cap = Some(cap + 1 + 20 * 1_000_000 / (output.max(1) as u64));
                    prop_assert!(!fits(&bounds));
                }
                None => {
                    bounds.cap = Some(1 + 20 * 1_000_000 / (output.max(1) as u64));
                    prop_assert!(!fits(&bounds));
                }
            }
        }
    }
}
