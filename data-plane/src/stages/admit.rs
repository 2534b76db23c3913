//! Whether this caller may ask for this model now: the model's life, the key's list, spent budgets.

use http::{HeaderMap, HeaderName, HeaderValue};
use tollway_shared::budget::BudgetScope;
use tollway_shared::credit;
use tollway_shared::fault::Fault;
use tollway_shared::ids::ModelId;
use tollway_shared::lease::hold::Left;
use tollway_shared::notice::Notice;
use tollway_shared::snapshot::Snapshot;
use tollway_shared::time::UnixMillis;

use crate::ask::Ask;
use crate::catalog::Stops;
use crate::pipeline::{Caller, Context};
use crate::routing::eligible;

/// Most names that a 404 suggests.
const CLOSE_MAX: usize = 3;
/// Farthest edit distance of a suggestion, as a share of the name: one in three characters.
const CLOSE_SHARE: usize = 3;

/// Checks the request and adds lifecycle headers to its answer. Returns the models to try, the one asked for first.
pub fn check(cx: &mut Context, caller: &Caller, ask: &Ask) -> Result<Vec<ModelId>, Fault> {
    let snapshot = cx.snapshot.clone();
    let now = cx.arrival.at;
    let first = model(&snapshot, caller, &ask.model, now, &mut cx.headers)?;
    let mut models = vec![first];
    for name in &ask.fallbacks {
        // A fallback that cannot be used is passed over; one that does not exist is a mistake.
        match model(&snapshot, caller, name, now, &mut HeaderMap::new()) {
            Ok(id) if !models.contains(&id) => models.push(id),
            Ok(_) | Err(Fault::ModelRetired { .. } | Fault::ModelForbidden { .. }) => {}
            Err(fault) => return Err(fault),
        }
    }
    spent(&snapshot, &cx.plane.live.stops(), caller, &models, now)?;
    if models[0].is_free() {
        free(cx, caller, now)?;
    }
    Ok(models)
}

fn model(
    snapshot: &Snapshot,
    caller: &Caller,
    name: &str,
    now: UnixMillis,
    headers: &mut HeaderMap,
) -> Result<ModelId, Fault> {
    let Some((id, _)) = snapshot.models.get_key_value(name) else {
        return Err(Fault::ModelNotFound {
            model: name.chars().take(tollway_shared::ids::ID_BYTES_MAX).collect(),
            close: close(snapshot, name, |id| {
                eligible::offered(snapshot, &caller.key, id, now).is_some()
            }),
        });
    };
    let notices = snapshot.notices.get(id);
    for notice in notices.into_iter().flat_map(|all| all.values()) {
        if notice.endpoint.is_some() {
            continue;
        }
        if notice.retired(now) {
            return Err(Fault::ModelRetired {
                model: id.clone(),
                at: notice.sunset_at.unwrap_or(now),
                successor: notice.successor.clone(),
            });
        }
        if notice.warns(now) {
            lifecycle(notice, headers);
        }
    }
    if !caller.key.models.is_empty() && !caller.key.models.contains(id) {
        return Err(Fault::ModelForbidden { model: id.clone() });
    }
    Ok(id.clone())
}

/// Headers of a model whose retirement is announced: `Deprecation` (RFC 9745), `Sunset` (RFC 8594), `Link`.
fn lifecycle(notice: &Notice, headers: &mut HeaderMap) {
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    };
    put(
        "deprecation",
        format!("@{}", notice.deprecated_at.0.div_euclid(1_000)),
    );
    if let Some(at) = notice.sunset_at {
        put("sunset", at.http_date());
    }
    if let Some(successor) = &notice.successor {
        put(
            "link",
            format!("</v1/models/{successor}>; rel=\"successor-version\""),
        );
        put("x-tollway-model-successor", successor.to_string());
    }
    if let Some(url) = notice.url.as_ref().filter(|url| !url.contains(['>', '"'])) {
        put(
            "link",
            format!("<{url}>; rel=\"deprecation\"; type=\"text/html\""),
        );
    }
    put("x-tollway-model-lifecycle", "deprecated".into());
}

/// So many requests for free models a minute, on this node.
fn free(cx: &Context, caller: &Caller, now: UnixMillis) -> Result<(), Fault> {
    let most = cx.plane.limits.free_per_minute;
    if most == 0 {
        return Ok(());
    }
    let taken = cx.plane.free.take(&caller.path.organization, most, now);
    taken.map_err(|resets_at| Fault::FreeQuota {
        limit: i64::from(most),
        window: "minute",
        resets_at,
    })
}

/// A hard budget on the tenant path that is spent, and that every model which may be tried counts for.
fn spent(
    snapshot: &Snapshot,
    stops: &Stops,
    caller: &Caller,
    models: &[ModelId],
    now: UnixMillis,
) -> Result<(), Fault> {
    if snapshot.budgets.is_empty() {
        return Ok(());
    }
    let path = &caller.path;
    let wide = [
        Some(BudgetScope::Project(path.project.clone())),
        path.team.clone().map(BudgetScope::Team),
        Some(BudgetScope::Organization(path.organization.clone())),
    ];
    let keys = snapshot.line(&caller.key).map(BudgetScope::Key);
    for scope in keys.chain(wide.into_iter().flatten()) {
        for view in snapshot.budgets.get(&scope).into_iter().flatten() {
            let free_goes = credit::is_credit(&view.budget.id) && models.iter().any(ModelId::is_free);
            if free_goes || !models.iter().all(|model| view.budget.counts(model)) {
                continue;
            }
            let told = stops
                .budgets
                .contains(view.budget.id.as_str())
                .then(|| view.budget.resets_at(now));
            if let Some(resets_at) = view.stops(now).or(told) {
                return Err(Fault::spent(
                    &view.budget,
                    scope.level(),
                    Left::Nothing,
                    resets_at,
                    now,
                ));
            }
        }
    }
    Ok(())
}

/// The nearest names in the catalog of which `offered` is true, best first: a suggestion that is refused helps nobody, and what a key may
/// not use is not its business.
fn close(snapshot: &Snapshot, name: &str, offered: impl Fn(&ModelId) -> bool) -> Vec<ModelId> {
    let mut near: Vec<(usize, &ModelId)> = snapshot
        .models
        .keys()
        .filter_map(|id| {
            let slug = id.as_str().split_once('/').map_or(id.as_str(), |(_, slug)| slug);
            let distance = distance(name, id.as_str()).min(distance(name, slug) + 1);
            (distance <= 1 + name.len().min(64) / CLOSE_SHARE).then_some((distance, id))
        })
        .collect();
    near.sort();
    near.into_iter()
        .map(|(_, id)| id)
        .filter(|id| offered(id))
        .take(CLOSE_MAX)
        .cloned()
        .collect()
}

/// Levenshtein distance over bytes; texts far apart in length are not compared.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 24 {
        return usize::MAX - 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swapped = corner + usize::from(!x.eq_ignore_ascii_case(y));
            corner = row[j + 1];
            row[j + 1] = swapped.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tollway_shared::budget::terms::Terms;
    use tollway_shared::budget::{Budget, BudgetView};
    use tollway_shared::catalog::Model;
    use tollway_shared::ids::{ApiKeyId, BudgetId, OrganizationId, ProjectId};
    use tollway_shared::money::NanoUsd;
    use tollway_shared::snapshot::Resource;
    use tollway_shared::tenant::{ApiKey, TenantPath};
    use tollway_shared::window::Span;

    use super::*;

    #[test]
    fn a_spent_budget_of_a_key_stops_the_keys_that_replace_it() {
        let key = |id: &str, digest: u8, from: Option<&str>| ApiKey {
            id: ApiKeyId::trusted(id),
            project: ProjectId::trusted("j"),
            name: id.into(),
            digest: [digest; 32],
            pepper_version: 1,
            last4: "wxyz".into(),
            models: vec![],
            created_at: UnixMillis(0),
            expires_at: None,
            revoked_at: None,
            rotated_from: from.map(ApiKeyId::trusted),
            labels: tollway_shared::labels::Labels::new(),
        };
        let keys = [
            key("k1", 1, None),
            key("k2", 2, Some("k1")),
            key("k3", 3, Some("k2")),
        ];
        let mut snapshot = Snapshot::default();
        for (n, key) in (1..).zip(&keys) {
            snapshot.put(Resource::ApiKey(key.clone()), [n; 32]);
        }
        let budget = Budget {
            id: BudgetId::trusted("b"),
            scope: BudgetScope::Key(ApiKeyId::trusted("k2")),
            model: None,
            terms: Terms::money(NanoUsd(1)),
        };
        let view = BudgetView {
            budget,
            exhausted_window: Some(Span::LIFETIME),
        };
        snapshot.put(Resource::Budget(view), [9; 32]);
        let stops = |snapshot: &Snapshot, key: &ApiKey, models: &[&str]| {
            let path = TenantPath {
                organization: OrganizationId::trusted("o"),
                team: None,
                project: key.project.clone(),
                key: key.id.clone(),
            };
            let caller = Caller {
                key: Arc::new(key.clone()),
                path,
                adjustment_bps: 0,
            };
            let models: Vec<ModelId> = models.iter().map(|id| ModelId::trusted(*id)).collect();
            spent(snapshot, &Stops::default(), &caller, &models, UnixMillis(5)).is_err()
        };
        let stopped = [0, 1, 2].map(|place| stops(&snapshot, &keys[place], &["a/m"]));
        assert_eq!(stopped, [false, true, true]);

        // One that counts a single model stops that one.
        let budget = Budget {
            id: BudgetId::trusted("of-a-model"),
            scope: BudgetScope::Key(ApiKeyId::trusted("k1")),
            model: Some(ModelId::trusted("a/m")),
            terms: Terms::money(NanoUsd(1)),
        };
        let view = BudgetView {
            budget,
            exhausted_window: Some(Span::LIFETIME),
        };
        snapshot.put(Resource::Budget(view), [8; 32]);
        let asked: [&[&str]; 3] = [&["a/m"], &["a/n"], &["a/m", "a/n"]];
        let stopped = asked.map(|models| stops(&snapshot, &keys[0], models));
        assert_eq!(stopped, [true, false, false], "the other one may be tried");
    }

    #[test]
    fn a_near_miss_is_named_and_noise_is_not() {
        let mut snapshot = Snapshot::default();
        for id in [
            "openai/gpt-5",
            "openai/gpt-5-mini",
            "openai/gpt-5-nano",
            "anthropic/claude-9",
        ] {
            let model = Model {
                id: ModelId::trusted(id),
                name: id.into(),
                description: String::new(),
                context_tokens: 1,
                created_at: UnixMillis(0),
            };
            snapshot.put(Resource::Model(model), [id.len() as u8; 32]);
        }
        let names = |name: &str| {
            close(&snapshot, name, |id| id.as_str() != "openai/gpt-5-nano")
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("openai/gpt-5-nana"), ["openai/gpt-5-mini", "openai/gpt-5"]);
        assert_eq!(names("gpt-5")[0], "openai/gpt-5");
        assert_eq!(names("openai/gpt5")[0], "openai/gpt-5");
        assert_eq!(names("Anthropic/Claude-9"), ["anthropic/claude-9"]);
        assert!(names("zzzzzzzz").is_empty());
        assert!(names(&"x".repeat(5_000)).is_empty());
    }
}
