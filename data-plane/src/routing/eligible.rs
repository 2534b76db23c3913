//! The filter: what is left out is counted with its reason, so that `no_endpoints` can say why.

use std::fmt;

use tollway_shared::ids::ModelId;
use tollway_shared::notice::Notice;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::tenant::ApiKey;
use tollway_shared::time::UnixMillis;

use super::Candidate;
use crate::ask::Preferences;

/// How many endpoints were left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Excluded {
    /// The endpoint or its provider is switched off.
    pub disabled: usize,
    /// No price is in force: an unknown price is never zero.
    pub unpriced: usize,
    /// This endpoint was retired by a notice.
    pub retired: usize,
    /// The request's own `provider` preferences.
    pub preferences: usize,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.disabled, "disabled"),
            (self.unpriced, "without a price in force"),
            (self.retired, "retired"),
            (
                self.preferences,
                "excluded by the request's `provider` preferences",
            ),
        ];
        let mut first = true;
        for (count, reason) in reasons.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{}{count} {reason}", if first { "" } else { ", " })?;
            first = false;
        }
        if first {
            f.write_str("it has no endpoints")
        } else {
            Ok(())
        }
    }
}

/// The endpoints of `model` that may serve, in id order.
pub fn candidates(
    snapshot: &Snapshot,
    model: &ModelId,
    wishes: &Preferences,
    now: UnixMillis,
) -> (Vec<Candidate>, Excluded) {
    let (mut found, mut excluded) = (Vec::new(), Excluded::default());
    for endpoint in snapshot
        .endpoints
        .get(model)
        .into_iter()
        .flat_map(|all| all.values())
    {
        let provider = snapshot
            .providers
            .get(&endpoint.provider)
            .filter(|provider| provider.enabled);
        let Some(provider) = provider.filter(|_| endpoint.enabled) else {
            excluded.disabled += 1;
            continue;
        };
        let notices = snapshot.notices.get(model);
        if notices.is_some_and(|all| {
            all.values()
                .any(|notice| notice.endpoint.as_ref() == Some(&endpoint.id) && notice.retired(now))
        }) {
            excluded.retired += 1;
            continue;
        }
        if !wished(wishes, provider.id.as_str()) {
            excluded.preferences += 1;
            continue;
        }
        let Some(price) = snapshot.prices_at(&endpoint.id, now) else {
            excluded.unpriced += 1;
            continue;
        };
        found.push(Candidate {
            endpoint: endpoint.clone(),
            provider: provider.clone(),
            price: price.clone(),
        });
    }
    (found, excluded)
}

/// What a key may ask for and get: the model is one of its own, is not retired, and some endpoint serves it. The cheapest of the first
/// ones, then.
pub fn offered(snapshot: &Snapshot, key: &ApiKey, model: &ModelId, now: UnixMillis) -> Option<Candidate> {
    if !key.models.is_empty() && !key.models.contains(model) {
        return None;
    }
    if notices(snapshot, model).any(|notice| notice.retired(now)) {
        return None;
    }
    let (candidates, _) = candidates(snapshot, model, &Preferences::default(), now);
    candidates
        .into_iter()
        .min_by_key(|c| (c.endpoint.rank, c.price.prices.input, c.price.prices.output))
}

/// Of the whole model, not of one of its endpoints.
pub fn notices<'a>(snapshot: &'a Snapshot, model: &ModelId) -> impl Iterator<Item = &'a Notice> {
    let all = snapshot.notices.get(model).into_iter();
    all.flat_map(|all| all.values())
        .map(AsRef::as_ref)
        .filter(|notice| notice.endpoint.is_none())
}

fn wished(wishes: &Preferences, provider: &str) -> bool {
    let names = |list: &Option<Vec<String>>| {
        list.as_ref()
            .is_some_and(|list| list.iter().any(|name| name == provider))
    };
    let only_ordered = wishes.allow_fallbacks == Some(false) && wishes.order.is_some();
    (wishes.only.is_none() || names(&wishes.only))
        && !names(&wishes.ignore)
        && (!only_ordered || names(&wishes.order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use tollway_shared::catalog::Dialect;
    use tollway_shared::snapshot::Resource;

    #[test]
    fn an_endpoint_without_a_price_is_said_to_lack_one() {
        let mut snapshot = Snapshot::default();
        let provider = sample::provider("p", Dialect::OpenAi, "http://127.0.0.1:1/v1");
        snapshot.put(Resource::Provider(provider), [1; 32]);
        snapshot.put(Resource::Endpoint(sample::endpoint("p", 0)), [2; 32]);
        let reason = |snapshot: &Snapshot| {
            let model = ModelId::trusted("a/b");
            let (found, excluded) = candidates(snapshot, &model, &Preferences::default(), UnixMillis(1));
            (found.len(), excluded.to_string())
        };
        assert_eq!(reason(&snapshot), (0, "1 without a price in force".to_owned()));
        snapshot.put(Resource::Price(sample::price("p", 1)), [3; 32]);
        assert_eq!(reason(&snapshot).0, 1);
        assert_eq!(
            reason(&Snapshot::default()),
            (0, "it has no endpoints".to_owned())
        );
    }
}
