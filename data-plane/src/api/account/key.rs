//! `GET /v1/key`: how the calling key stands.

use serde::Serialize;
use tollway_proto::push::v1::{BudgetCycle, BudgetStanding, KeyStanding};
use tollway_shared::time::UnixMillis;

use super::shape::{Data, Usd};

/// What OpenRouter writes where there is no limit.
const NO_LIMIT: i64 = -1;

/// OpenRouter's shape of October 2026, which has everything that older ones had.
#[derive(Debug, Serialize)]
pub struct KeyOut<'a> {
    label: String,
    limit: Option<Usd>,
    limit_remaining: Option<Usd>,
    limit_reset: Option<&'static str>,
    usage: Usd,
    usage_daily: Usd,
    usage_weekly: Usd,
    usage_monthly: Usd,
    byok_usage: Usd,
    byok_usage_daily: Usd,
    byok_usage_weekly: Usd,
    byok_usage_monthly: Usd,
    include_byok_in_limit: bool,
    is_free_tier: bool,
    is_management_key: bool,
    is_provisioning_key: bool,
    creator_user_id: Option<()>,
    expires_at: Option<String>,
    rate_limit: RateLimit,
    organization_id: &'a str,
    workspace_id: &'a str,
    allowed_data_regions: [&'static str; 1],
    free_model_daily_requests: FreeRequests,
    budgets: Vec<BudgetOut<'a>>,
    effective_budget: Option<BudgetOut<'a>>,
}

/// Kept by OpenRouter for old clients.
#[derive(Debug, Serialize)]
struct RateLimit {
    requests: i64,
    interval: &'static str,
    note: &'static str,
}

#[derive(Debug, Serialize)]
struct FreeRequests {
    used: i64,
    limit: i64,
    remaining: i64,
}

#[derive(Debug, Clone, Serialize)]
struct BudgetOut<'a> {
    scope: &'a str,
    limit_usd: Usd,
    spend_usd: Usd,
    remaining_usd: Usd,
    reset_interval: Option<&'static str>,
    resets_at: Option<String>,
    include_byok: bool,
    guardrail_id: Option<()>,
    budget_id: &'a str,
}

/// The answer's body.
pub fn body(found: &KeyStanding) -> Data<KeyOut<'_>> {
    let budgets: Vec<BudgetOut<'_>> = found.budgets.iter().map(budget).collect();
    // The key's own limit is the one that stops it first.
    let own = budgets
        .iter()
        .filter(|budget| budget.scope == "key_limit")
        .min_by_key(|budget| budget.remaining_usd);
    let spent = budgets.iter().find(|budget| budget.remaining_usd.0 <= 0);
    let effective = spent.or_else(|| budgets.iter().min_by_key(|budget| budget.remaining_usd));
    let (billed, byok) = (found.billed.unwrap_or_default(), found.byok.unwrap_or_default());
    let free = found
        .free_limit
        .map_or(NO_LIMIT, |limit| (limit - found.free_used).max(0));
    Data {
        data: KeyOut {
            label: format!("sk-tw-v1-...{}", found.last4),
            limit: own.map(|budget| budget.limit_usd),
            limit_remaining: own.map(|budget| budget.remaining_usd),
            limit_reset: own.and_then(|budget| budget.reset_interval),
            usage: Usd(billed.ever),
            usage_daily: Usd(billed.day),
            usage_weekly: Usd(billed.week),
            usage_monthly: Usd(billed.month),
            byok_usage: Usd(byok.ever),
            byok_usage_daily: Usd(byok.day),
            byok_usage_weekly: Usd(byok.week),
            byok_usage_monthly: Usd(byok.month),
            include_byok_in_limit: false,
            is_free_tier: found.free_tier,
            is_management_key: false,
            is_provisioning_key: false,
            creator_user_id: None,
            expires_at: found.expires_at.map(|at| UnixMillis(at).rfc3339()),
            rate_limit: RateLimit {
                requests: NO_LIMIT,
                interval: "10s",
                note: "not used; there is no such limit",
            },
            organization_id: &found.organization,
            workspace_id: &found.project,
            allowed_data_regions: ["global"],
            free_model_daily_requests: FreeRequests {
                used: found.free_used,
                limit: found.free_limit.unwrap_or(NO_LIMIT),
                remaining: free,
            },
            effective_budget: effective.cloned(),
            budgets,
        },
    }
}

fn budget(found: &BudgetStanding) -> BudgetOut<'_> {
    BudgetOut {
        scope: match found.level.as_str() {
            "key" => "key_limit",
            "project" => "workspace",
            other => other, // `organization` and `team`, which OpenRouter has no budgets for
        },
        limit_usd: Usd(found.limit),
        spend_usd: Usd(found.spent),
        remaining_usd: Usd(found.limit.saturating_sub(found.spent)),
        reset_interval: match found.cycle() {
            BudgetCycle::Daily => Some("daily"),
            BudgetCycle::Weekly => Some("weekly"),
            BudgetCycle::Monthly => Some("monthly"),
            BudgetCycle::Days => Some("days"),
            BudgetCycle::Lifetime | BudgetCycle::Unspecified => None,
        },
        resets_at: found.resets_at.map(|at| UnixMillis(at).rfc3339()),
        include_byok: false,
        guardrail_id: None,
        budget_id: &found.budget,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tollway_proto::push::v1::WindowSums;

    use super::*;

    fn standing(level: &str, limit: i64, spent: i64) -> BudgetStanding {
        BudgetStanding {
            budget: format!("{level}-{limit}"),
            level: level.into(),
            limit,
            spent,
            cycle: BudgetCycle::Daily.into(),
            resets_at: Some(1_795_392_000_000),
        }
    }

    fn found(budgets: Vec<BudgetStanding>) -> KeyStanding {
        KeyStanding {
            organization: "o".into(),
            project: "p".into(),
            last4: "abcd".into(),
            expires_at: None,
            budgets,
            billed: Some(WindowSums {
                ever: 4_000_000_000,
                day: 1,
                week: 2,
                month: 3,
            }),
            byok: None,
            free_used: 51,
            free_limit: Some(50),
            free_tier: true,
        }
    }

    fn json(found: &KeyStanding) -> Value {
        serde_json::to_value(body(found)).unwrap()["data"].clone()
    }

    #[test]
    fn a_key_has_every_field_of_the_shape_that_strict_clients_want() {
        let budget = json!({
            "scope": "key_limit", "limit_usd": 10, "spend_usd": 4, "remaining_usd": 6, "reset_interval": "daily",
            "resets_at": "2026-11-23T00:00:00.000Z", "include_byok": false, "guardrail_id": null, "budget_id": "key-10000000000",
        });
        let expected = json!({
            "label": "sk-tw-v1-...abcd", "limit": 10, "limit_remaining": 6, "limit_reset": "daily", "usage": 4, "usage_daily": 1e-9,
            "usage_weekly": 2e-9, "usage_monthly": 3e-9, "byok_usage": 0, "byok_usage_daily": 0, "byok_usage_weekly": 0,
            "byok_usage_monthly": 0, "include_byok_in_limit": false, "is_free_tier": true, "is_management_key": false,
            "is_provisioning_key": false, "creator_user_id": null, "expires_at": null,
            "rate_limit": {"requests": -1, "interval": "10s", "note": "not used; there is no such limit"},
            "organization_id": "o", "workspace_id": "p", "allowed_data_regions": ["global"],
            "free_model_daily_requests": {"used": 51, "limit": 50, "remaining": 0},
            "budgets": [budget], "effective_budget": budget,
        });
        assert_eq!(
            json(&found(vec![standing("key", 10_000_000_000, 4_000_000_000)])),
            expected
        );
    }

    #[test]
    fn the_budget_that_stops_first_is_the_effective_one() {
        let none = json(&found(Vec::new()));
        assert_eq!(
            (&none["limit"], &none["effective_budget"]),
            (&Value::Null, &Value::Null)
        );
        let tight = json(&found(vec![
            standing("organization", 100, 0),
            standing("project", 9, 2),
            standing("key", 50, 0),
            standing("key", 30, 10),
        ]));
        assert_eq!(tight["effective_budget"]["budget_id"], "project-9");
        assert_eq!(tight["budgets"][1]["scope"], "workspace");
        assert_eq!(
            (&tight["limit"], &tight["limit_remaining"]),
            (&json!(3e-8), &json!(2e-8))
        );
        let spent = json(&found(vec![
            standing("organization", 5, 6),
            standing("key", 1, 9),
        ]));
        assert_eq!(
            spent["effective_budget"]["budget_id"], "organization-5",
            "the first that refuses"
        );
        assert_eq!(spent["effective_budget"]["remaining_usd"], -1e-9);
    }
}
