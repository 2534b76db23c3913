//! Real token counts → the charge and what is owed of it, at the prices pinned at admission. PURE.
//!
//! What a provider counts is billed as it is, unless nobody could have used so much: then, as when it counts nothing, an estimate is.
//! Whatever it says, a request that a provider served is never billed at nothing for it. One that nobody served costs nothing, and no
//! price per request either.

use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::cost::{self, Charge, Prices, TOKENS_MAX};
use tollway_shared::tokens::TokenCounts;

use crate::dialects::estimate::Size;
use crate::dialects::{Tally, estimate};

/// What a request is billed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// What was used.
    pub tokens: TokenCounts,
    /// Who says so.
    pub source: UsageSource,
    /// What it costs.
    pub charge: Charge,
}

/// What is known of a request besides its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Basis {
    /// Its size.
    pub size: Size,
    /// Whether anything was used: an answer was begun, or a provider was left alone with the request.
    pub used: bool,
    /// The fewest completion tokens that are billed unless the provider has counted the whole answer: what it is expected to bill for
    /// an answer that nobody waited for.
    pub expected: u64,
}

/// Writes counts, their source, the charge and what is owed into the event.
pub fn charge(event: &mut UsageEvent, tally: &Tally, basis: Basis) {
    let settled = settled(&event.prices, tally, basis);
    if let Some(counts) = tally.usage.filter(|_| basis.used)
        && settled.source == UsageSource::Estimated
        && tally.usage_is_final
    {
        tracing::warn!(request = %event.request_id, provider = %event.provider, ?counts, "a provider's counts cannot be right; an estimate is billed");
    }
    event.tokens = settled.tokens;
    event.usage_source = settled.source;
    event.estimator = (settled.source == UsageSource::Estimated).then(|| basis.size.estimator().to_owned());
    event.state_charge(settled.charge);
}

/// What the answer so far is billed for.
pub fn settled(prices: &Prices, tally: &Tally, basis: Basis) -> Settled {
    if !basis.used {
        return Settled {
            tokens: TokenCounts::default(),
            source: UsageSource::None,
            charge: Charge::default(),
        };
    }
    let (mut tokens, source) = counts(tally, &basis.size);
    if source == UsageSource::Estimated {
        tokens = tokens.with_completion_of_at_least(basis.expected);
    }
    Settled {
        tokens,
        source,
        charge: cost::charge_or_most(&tokens, prices),
    }
}

/// What has been used if the answer breaks off here.
pub fn so_far(tally: &Tally, size: &Size) -> TokenCounts {
    counts(tally, size).0
}

/// What was used, and who says so.
///
/// Counts that a provider gave before it was done are kept for the prompt; the completion is then the larger of both counts.
fn counts(tally: &Tally, size: &Size) -> (TokenCounts, UsageSource) {
    let estimated = estimate::counts(size, tally.text_bytes);
    let Some(told) = tally.usage.filter(plausible) else {
        return (estimated, UsageSource::Estimated);
    };
    // Nothing is an answer to nothing: a provider that counts no prompt has left it out.
    let (input, source) = match told.prompt() {
        0 => (estimated.input, UsageSource::Estimated),
        _ => (told.input, UsageSource::Provider),
    };
    if tally.usage_is_final {
        return (TokenCounts { input, ..told }, source);
    }
    let visible = estimated.output.saturating_sub(told.output_reasoning);
    let output = told.output.max(visible);
    (
        TokenCounts {
            input,
            output,
            ..told
        },
        UsageSource::Estimated,
    )
}

/// Not even an empty answer to a prompt uses nothing: all zeros are a provider that does not count. More than anybody sells is its
/// mistake.
fn plausible(counts: &TokenCounts) -> bool {
    (counts.prompt() > 0 || counts.completion() > 0)
        && counts.prompt() <= TOKENS_MAX
        && counts.completion() <= TOKENS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratios::Learned;
    use crate::sample;

    const SERVED: Basis = Basis {
        size: Size {
            prompt_bytes: 40,
            attachment_tokens: 0,
            prompt_tokens_max: 100,
            completion_tokens_max: 6,
            learned: Learned::PRIOR,
        },
        used: true,
        expected: 0,
    };

    fn tally(input: u64, output: u64, usage_is_final: bool) -> Tally {
        Tally {
            usage: Some(TokenCounts {
                input,
                output,
                ..TokenCounts::default()
            }),
            usage_is_final,
            text_bytes: 400,
            finish_reason: None,
        }
    }

    #[test]
    fn counts_that_nobody_can_have_used_become_an_estimate() {
        let prices = sample::price("p", 2).prices;
        for (input, output, source, used) in [
            (7, 3, UsageSource::Provider, (7, 3)),
            (7, 0, UsageSource::Provider, (7, 0)),
            (0, 0, UsageSource::Estimated, (10, 6)),
            (0, 9, UsageSource::Estimated, (10, 9)), // the prompt alone was left out
            (7, TOKENS_MAX, UsageSource::Provider, (7, TOKENS_MAX)),
            (7, TOKENS_MAX + 1, UsageSource::Estimated, (10, 6)),
            (TOKENS_MAX + 1, 3, UsageSource::Estimated, (10, 6)),
            (u64::MAX, 3, UsageSource::Estimated, (10, 6)),
            (u64::MAX, u64::MAX, UsageSource::Estimated, (10, 6)),
        ] {
            let settled = settled(&prices, &tally(input, output, true), SERVED);
            assert_eq!(
                (
                    settled.source,
                    settled.tokens.prompt(),
                    settled.tokens.completion()
                ),
                (source, used.0, used.1)
            );
            assert!(settled.charge.total.0 > 0);
            assert_eq!(Ok(settled.charge), cost::charge(&settled.tokens, &prices));
        }
    }

    #[test]
    fn counts_of_a_broken_answer_are_the_larger_ones() {
        let prices = sample::price("p", 2).prices;
        let used = |output| {
            let settled = settled(&prices, &tally(7, output, false), SERVED);
            assert_eq!(settled.source, UsageSource::Estimated);
            (settled.tokens.prompt(), settled.tokens.completion())
        };
        assert_eq!((used(3), used(9)), ((7, 6), (7, 9)));
    }

    #[test]
    fn an_answer_that_nobody_waited_for_is_billed_as_long_as_expected_and_one_that_was_counted_as_counted() {
        let prices = sample::price("p", 2).prices;
        let basis = Basis {
            expected: 5,
            ..SERVED
        };
        for (output, usage_is_final, billed) in [(3, false, 6), (9, false, 9), (3, true, 3)] {
            let settled = settled(&prices, &tally(7, output, usage_is_final), basis);
            assert_eq!(settled.tokens.completion(), billed);
        }
        let unheard = settled(&prices, &Tally::default(), basis);
        assert_eq!((unheard.tokens.prompt(), unheard.tokens.completion()), (10, 5));
    }

    #[test]
    fn what_nobody_served_costs_nothing_not_even_a_price_per_request() {
        let mut prices = sample::price("p", 2).prices;
        prices.request = Some(tollway_shared::money::NanoUsd(7));
        let basis = Basis {
            used: false,
            expected: 5,
            ..SERVED
        };
        let settled = settled(&prices, &tally(7, 3, true), basis);
        assert_eq!(
            (settled.source, settled.tokens, settled.charge),
            (UsageSource::None, TokenCounts::default(), Charge::default())
        );
    }
}
