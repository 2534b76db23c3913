//! The order of attempts: healthy before ailing, the caller's order, then rank, and a draw by price among equals.

use tollway_shared::cost::Prices;

use super::Candidate;

/// Prompt tokens per completion token that a price is judged by.
const PROMPT_SHARE: f64 = 3.0;

/// Relative weight of an endpoint in the price draw: one over the square of its price.
///
/// - Returns a positive, finite number; only ratios between endpoints of one ask mean anything.
///
/// Source: OpenRouter docs, `guides/routing/provider-selection`.
pub fn price_weight(prices: &Prices) -> f64 {
    let price = (PROMPT_SHARE * prices.input.0 as f64 + prices.output.0 as f64) / (PROMPT_SHARE + 1.0);
    price.max(1.0).powi(-2)
}

/// Sorts candidates. `chance` gives numbers in `0.0..1.0`.
pub fn order(
    candidates: Vec<Candidate>,
    preferred: Option<&[String]>,
    ailing: impl Fn(&Candidate) -> bool,
    mut chance: impl FnMut() -> f64,
) -> Vec<Candidate> {
    if candidates.len() < 2 {
        return candidates;
    }
    let place = |candidate: &Candidate| {
        let named = preferred.and_then(|list| {
            list.iter()
                .position(|name| name == candidate.provider.id.as_str())
        });
        named.unwrap_or(usize::MAX)
    };
    let mut keyed: Vec<_> = candidates
        .into_iter()
        .map(|candidate| {
            // Exponential races: the smallest of -ln(u)/w falls on each entry with a chance of its weight's share.
            let draw = -(1.0 - chance()).ln() / price_weight(&candidate.price.prices);
            let key = (ailing(&candidate), place(&candidate), candidate.endpoint.rank);
            (key, draw, candidate)
        })
        .collect();
    keyed.sort_by(|(a, draw_a, _), (b, draw_b, _)| a.cmp(b).then(draw_a.total_cmp(draw_b)));
    keyed.into_iter().map(|(_, _, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn names(list: &[Candidate]) -> Vec<String> {
        list.iter().map(|c| c.provider.id.to_string()).collect()
    }

    #[test]
    fn rank_comes_before_price_and_ailing_ones_come_last() {
        let list = vec![
            sample::candidate("cheap", 5, 1),
            sample::candidate("first", 0, 900),
            sample::candidate("ill", 0, 1),
        ];
        let ordered = order(list.clone(), None, |c| c.provider.id.as_str() == "ill", || 0.5);
        assert_eq!(names(&ordered), ["first", "cheap", "ill"]);
        let wish = ["cheap".to_owned()];
        let ordered = order(list, Some(&wish), |_| false, || 0.5);
        assert_eq!(names(&ordered)[0], "cheap");
    }

    #[test]
    fn equals_share_traffic_by_one_over_price_squared() {
        let mut state = 1u64;
        let mut chance = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut cheap = 0;
        for _ in 0..5_000 {
            let list = vec![
                sample::candidate("dear", 0, 200),
                sample::candidate("cheap", 0, 100),
            ];
            cheap += usize::from(names(&order(list, None, |_| false, &mut chance))[0] == "cheap");
        }
        assert!((3_850..4_150).contains(&cheap), "{cheap} of 5000, 4000 expected");
    }
}
