//! What holds an organization to its credit, and that free models cost it nothing.

use serde_json::{Value, json};
use tollway_provider::Provider as Scripted;
use tollway_shared::budget::terms::Terms;
use tollway_shared::budget::{Budget, BudgetScope, BudgetView};
use tollway_shared::catalog::{Dialect, Endpoint};
use tollway_shared::credit::budget_id;
use tollway_shared::ids::{EndpointId, ModelId, OrganizationId, PriceId};
use tollway_shared::money::NanoUsd;
use tollway_shared::snapshot::Resource;

use crate::grantor::Grantor;
use crate::node::{MODEL, Node, header, model};

const FREE: &str = "acme/gift:free";
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
async fn without_credit_a_request_is_402_and_a_free_model_goes_on() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::rough());
    let providers = [(&provider, "a", Dialect::OpenAi)];
    let node = Node::start_leased(&providers, Some((&grantor, "one")), |_| {}).await;
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
    let free = node.ask("x", json!({"model": FREE, "max_tokens": 40})).await;
    assert_eq!(free.status(), 200);
    let body: Value = free.json().await.unwrap();
    assert_eq!(body["usage"]["cost"], 0);
    let events = node.events(2).await;
    let free: Vec<_> = events.iter().filter(|event| event.free).collect();
    assert_eq!(free.len(), 1);
    assert!(
        free.iter()
            .all(|event| event.billed == NanoUsd::ZERO && event.charge.total > NanoUsd::ZERO)
    );
}
