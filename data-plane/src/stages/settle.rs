//! Real token counts → the charge, at the prices pinned at admission. PURE.

use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::cost;
use tollway_shared::tokens::TokenCounts;

use crate::dialects::{Tally, estimate};

/// Writes counts, their source and the charge into the event.
///
/// - `reached`: whether a provider may have worked on the request. A request that every provider turned away used nothing.
/// - Counts that a provider gave before it was done are kept for the prompt; the completion is then the larger of both counts.
pub fn charge(event: &mut UsageEvent, tally: &Tally, prompt_tokens: u64, reached: bool) {
    let estimated = estimate::counts(prompt_tokens, tally.text_bytes);
    (event.tokens, event.usage_source) = match tally.usage {
        _ if !reached => (TokenCounts::default(), UsageSource::None),
        Some(counts) if tally.usage_is_final => (counts, UsageSource::Provider),
        Some(so_far) => {
            let output = so_far.output.max(estimated.output);
            (TokenCounts { output, ..so_far }, UsageSource::Estimated)
        }
        None => (estimated, UsageSource::Estimated),
    };
    event.estimator = (event.usage_source == UsageSource::Estimated).then(|| estimate::NAME.to_owned());
    event.charge = if reached {
        price(event)
    } else {
        cost::Charge::default()
    };
}

fn price(event: &UsageEvent) -> cost::Charge {
    cost::charge(&event.tokens, &event.prices).unwrap_or_else(|fault| {
        // Nine billion dollars for one request: the counts stay in the event, so it can be priced by hand.
        tracing::error!(request = %event.request_id, %fault, "a charge is out of range and was left at zero");
        cost::Charge::default()
    })
}
