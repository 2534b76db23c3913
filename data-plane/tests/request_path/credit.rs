//! What an organization owes and is held to: its credit, its markup or discount, and free models.

use serde_json::{Value, json};
use tollway_provider::{Behaviour, Provider as Scripted, fingerprint};
use tollway_shared::bill::Adjustment;
use tollway_shared::budget::terms::{Terms, Unit};
use tollway_shared::budget::{Budget, BudgetScope, BudgetView};
use tollway_shared::catalog::{CredentialOwner, Dialect, Endpoint};
use tollway_shared::credit::{budget_id, quota_id};
use tollway_shared::ids::{EndpointId, ModelId, OrganizationId, PriceId};
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::Resource;
use tollway_shared::tenant::Organization;
use tollway_shared::time::Period;

use crate::grantor::Grantor;
use crate::node::{MODEL, Node, header, model};

const FREE: &str = "acme/gift:free";
/// The node's limit in these tests: far from what a slow machine asks in a minute by chance.
const PER_MINUTE: u32 = 4;

fn organization() -> OrganizationId {
    OrganizationId::trusted("org")
}

fn credit(dollars: i64) -> Budget {
    Budget {
        id: budget_id(&organization()),
        scope: BudgetScope::Organization(organization()),
        model: None,
        terms: Terms::money(NanoUsd(dollars * 1_000_000_000)),
    }
}

fn put(grantor: &Grantor, node: &Node, budget: &Budget) {
    grantor.put(&budget.id, &budget.terms);
    node.put(Resource::Budget(BudgetView {
        budget: budget.clone(),
        exhausted_window: None,
    }));
}

/// The model's endpoint and price again, for a model that is offered free.
fn offer_free(node: &Node) {
    node.put(model(FREE));
    let snapshot = node.live.snapshot().unwrap();
    let (_, of) = snapshot
        .endpoints
        .iter()
        .find(|(model, _)| model.as_str() == MODEL)
        .unwrap();
    let paid = of.values().next().unwrap();
    let (_, prices) = snapshot
        .prices
        .iter()
        .find(|(endpoint, _)| **endpoint == paid.id)
        .unwrap();
    let mut price = prices.values().next().unwrap().as_ref().clone();
    let id = EndpointId::trusted("a/free");
    (price.id, price.endpoint) = (PriceId::trusted("price-free"), id.clone());
    let model = ModelId::trusted(FREE);
    node.put(Resource::Endpoint(Endpoint {
        id,
        model,
        ..paid.as_ref().clone()
    }));
    node.put(Resource::Price(price));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credit_a_request_is_402_and_a_free_model_goes_until_its_quota_is_used_up() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::rough());
    let providers = [(&provider, "a", Dialect::OpenAi)];
    let set = |config: &mut tollway_data::config::Config| config.api.free_requests_per_minute = PER_MINUTE;
    let node = Node::start_leased(&providers, Some((&grantor, "one")), set).await;
    offer_free(&node);
    put(&grantor, &node, &credit(1));
    assert_eq!(node.ask("x", json!({"max_tokens": 40})).await.status(), 200);
    // All of it is used, as the ledger says.
    let mut spent = credit(1);
    spent.terms.limit = 0;
    grantor.put(&spent.id, &spent.terms);
    node.put(Resource::Budget(BudgetView {
        exhausted_window: Some(tollway_shared::window::Span::LIFETIME),
        budget: spent,
    }));
    let refused = node.ask("x", json!({"max_tokens": 40})).await;
    assert_eq!(
        (refused.status().as_u16(), header(&refused, "x-should-retry")),
        (402, "false")
    );
    let body: Value = refused.json().await.unwrap();
    assert_eq!(
        (&body["error"]["code"], &body["error"]["type"]),
        (&json!("insufficient_credits"), &json!("insufficient_quota"))
    );
    let quota = Budget {
        id: quota_id(&organization()),
        model: Some(ModelId::every_free()),
        terms: Terms {
            unit: Unit::Requests,
            cycle: Period::Daily.into(),
            ..Terms::money(NanoUsd(2))
        },
        ..credit(1)
    };
    put(&grantor, &node, &quota);
    for _ in 0..2 {
        let free = node.ask("x", json!({"model": FREE, "max_tokens": 40})).await;
        assert_eq!(free.status(), 200);
        let body: Value = free.json().await.unwrap();
        assert_eq!(body["usage"]["cost"], 0);
    }
    let over = node.ask("x", json!({"model": FREE, "max_tokens": 40})).await;
    assert_eq!(
        (over.status().as_u16(), header(&over, "x-ratelimit-limit")),
        (429, "2")
    );
    let reset: i64 = header(&over, "x-ratelimit-reset").parse().unwrap();
    assert_eq!(reset % 86_400_000, 0, "midnight UTC");
    assert_eq!(
        over.json::<Value>().await.unwrap()["error"]["code"],
        "free_quota_exhausted"
    );
    // Also when a minute ends in between.
    let mut limits = Vec::new();
    for _ in 0..=2 * PER_MINUTE {
        let over = node.ask("x", json!({"model": FREE, "max_tokens": 40})).await;
        limits.push(header(&over, "x-ratelimit-limit").to_owned());
    }
    assert!(limits.contains(&PER_MINUTE.to_string()), "{limits:?}");
    let events = node.events(3).await;
    let free: Vec<_> = events.iter().filter(|event| event.free).collect();
    assert_eq!(free.len(), 2);
    assert!(
        free.iter()
            .all(|event| event.billed == NanoUsd::ZERO && event.charge.total > NanoUsd::ZERO)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_markup_is_in_the_event_in_the_answers_cost_and_in_what_is_taken_from_a_budget() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::rough());
    let providers = [(&provider, "a", Dialect::OpenAi)];
    let node = Node::start_leased(&providers, Some((&grantor, "one")), |_| {}).await;
    node.put(Resource::Organization(Organization {
        id: organization(),
        name: "org".into(),
        enabled: true,
        adjustment_bps: 2_500,
    }));
    put(&grantor, &node, &credit(1));
    let answer = node
        .ask("[[tw:completion_tokens=10]] x", json!({"max_tokens": 40}))
        .await;
    let body: Value = answer.json().await.unwrap();
    let events = node.events(1).await;
    let (charge, event) = (events[0].charge.total.0, &events[0]);
    let amount = NanoUsd((charge + 3) / 4); // a quarter, rounded up
    assert_eq!(event.adjustment, Adjustment { bps: 2_500, amount });
    assert_eq!(event.billed.0, charge + amount.0);
    assert_eq!(
        body["usage"]["cost"].to_string().parse::<f64>().unwrap(),
        event.billed.to_string().parse::<f64>().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_credential_goes_before_everybodys_a_fallback_after_it_and_anothers_never() {
    let provider = Scripted::start("a");
    let node = Node::start(&[(&provider, "a", Dialect::OpenAi)]).await;
    let own = |organization: &str, is_fallback| {
        Some(CredentialOwner {
            organization: OrganizationId::trusted(organization),
            is_fallback,
        })
    };
    node.add_own_credential("a", "a-other", "other-secret", own("other", false));
    node.add_own_credential("a", "a-late", "late-secret", own("org", true));
    let used = async |requests: usize| {
        let answer = node.ask("x", json!({"max_tokens": 40})).await;
        assert_eq!(answer.status(), 200);
        let event = node.events(requests).await.pop().unwrap();
        let zero = event.billed == NanoUsd::ZERO && event.charge.total > NanoUsd::ZERO;
        assert_eq!(event.byok, zero, "an own credential is billed by its provider");
        provider.seen().pop().unwrap().credential.unwrap()
    };
    assert_eq!(used(1).await, fingerprint("provider-secret"));
    let shared = fingerprint("provider-secret");
    provider.set_script(move |seen| {
        let is_shared = seen.credential.as_deref() == Some(shared.as_str());
        Behaviour::refuse(if is_shared { 401 } else { 200 })
    });
    assert_eq!(used(2).await, fingerprint("late-secret"));
    node.add_own_credential("a", "a-first", "first-secret", own("org", false));
    assert_eq!(used(3).await, fingerprint("first-secret"));
}
