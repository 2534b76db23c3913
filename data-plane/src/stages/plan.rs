//! Ask → ordered attempts. Thin: [`crate::routing`] decides.

use tollway_shared::fault::Fault;
use tollway_shared::ids::ModelId;

use crate::ask::Ask;
use crate::pipeline::Context;
use crate::routing::{Candidate, eligible, order};

/// What will be tried, in order.
#[derive(Debug)]
pub struct Plan {
    /// Never empty.
    pub attempts: Vec<Candidate>,
    /// Most attempts in all; one more with another credential at the same endpoint is one of them.
    pub attempts_max: usize,
}

/// Orders the endpoints of every model that may answer; a fallback model's come after those of the one before.
pub fn order(cx: &Context, ask: &Ask, models: &[ModelId]) -> Result<Plan, Fault> {
    let now = cx.arrival.at;
    let mut attempts = Vec::new();
    let mut reason = None;
    for model in models {
        let (found, excluded) = eligible::candidates(&cx.snapshot, model, &ask.provider, now);
        if found.is_empty() {
            reason.get_or_insert(excluded);
        }
        let health = cx.plane.health.borrow();
        attempts.extend(order::order(
            found,
            ask.provider.order.as_deref(),
            |candidate| health.ailing(&candidate.endpoint.id, now),
            || cx.plane.dice.chance(),
        ));
    }
    let single = ask.provider.allow_fallbacks == Some(false);
    let attempts_max = if single { 1 } else { cx.plane.limits.attempts_max };
    match (attempts.is_empty(), models.first()) {
        (false, _) => Ok(Plan {
            attempts,
            attempts_max,
        }),
        (true, model) => Err(Fault::NoEndpoints {
            model: model
                .cloned()
                .unwrap_or_else(|| ModelId::trusted(ask.model.as_str())),
            reason: reason.unwrap_or_default().to_string(),
        }),
    }
}
