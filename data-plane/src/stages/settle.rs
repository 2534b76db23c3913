//! Real token counts → the charge, at the prices pinned at admission. PURE.

use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::cost::{self, Prices};
use tollway_shared::money::NanoUsd;
use tollway_shared::tokens::TokenCounts;

use crate::dialects::{Tally, estimate};

/// Writes counts, their source and the charge into the event.
///
/// - `reached`: whether a provider may have worked on the request. A request that every provider turned away used nothing.
pub fn charge(event: &mut UsageEvent, tally: &Tally, prompt_tokens: u64, reached: bool) {
    (event.tokens, event.usage_source) = counts(tally, prompt_tokens, reached);
    event.estimator = (event.usage_source == UsageSource::Estimated).then(|| estimate::NAME.to_owned());
    event.charge = price(event);
}

/// What was used, and who says so.
///
/// Counts that a provider gave before it was done are kept for the prompt; the completion is then the larger of both counts.
pub fn counts(tally: &Tally, prompt_tokens: u64, reached: bool) -> (TokenCounts, UsageSource) {
    let estimated = estimate::counts(prompt_tokens, tally.text_bytes);
    match tally.usage {
        _ if !reached => (TokenCounts::default(), UsageSource::None),
        Some(counts) if tally.usage_is_final => (counts, UsageSource::Provider),
        Some(so_far) => {
            let output = so_far.output.max(estimated.output);
            (TokenCounts { output, ..so_far }, UsageSource::Estimated)
        }
        None => (estimated, UsageSource::Estimated),
    }
}

/// What [`charge`] would write as the total. `None` when it is out of range: that is said once, at the end.
pub fn total(prices: &Prices, tally: &Tally, prompt_tokens: u64, reached: bool) -> Option<NanoUsd> {
    if !reached {
        return Some(NanoUsd::ZERO);
    }
    let (tokens, _) = counts(tally, prompt_tokens, reached);
    cost::charge(&tokens, prices).ok().map(|charge| charge.total)
}

fn price(event: &UsageEvent) -> cost::Charge {
    event.due().unwrap_or_else(|fault| {
        // Nine billion dollars for one request: the counts stay in the event, so it can be priced by hand.
        tracing::error!(request = %event.request_id, %fault, "a charge is out of range and was left at zero");
        cost::Charge::default()
    })
}
