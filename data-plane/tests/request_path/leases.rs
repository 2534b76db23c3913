//! Budgets that are leased: nothing is spent beyond them, and what is refused is refused for want of money alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollway_provider::{End, Provider as Scripted, Seen};
use tollway_shared::budget::terms::{Mode, Terms, Unit};
use tollway_shared::budget::{Budget, BudgetScope, BudgetView};
use tollway_shared::catalog::{Dialect, Endpoint};
use tollway_shared::ids::{ApiKeyId, BudgetId, ModelId, OrganizationId};
use tollway_shared::money::NanoUsd;
use tollway_shared::seal::Key;
use tollway_shared::snapshot::Resource;

use crate::crash::copy;
use crate::grantor::Grantor;
use crate::node::{MODEL, Node, REGION_KEY, SOON, header, served_by};

/// Requests at once, on each node.
const CLIENTS: usize = 16;

fn organization(terms: Terms) -> Budget {
    Budget {
        id: BudgetId::trusted("spend"),
        scope: BudgetScope::Organization(OrganizationId::trusted("org")),
        model: None,
        terms,
    }
}

/// Makes a budget at the grantor and shows it to nodes.
fn put(grantor: &Grantor, nodes: &[&Node], budget: &Budget) {
    grantor.put(&budget.id, &budget.terms);
    for node in nodes {
        node.put(Resource::Budget(BudgetView {
            budget: budget.clone(),
            exhausted_window: None,
        }));
    }
}

/// What the provider counted, at the prices of these tests: one dollar per million in, two out.
fn cost(provider: &Scripted) -> i64 {
    cost_of(provider, |_| true)
}

fn cost_of(provider: &Scripted, which: impl Fn(&Seen) -> bool) -> i64 {
    let seen = provider.seen();
    seen.iter()
        .filter(|seen| which(seen))
        .map(|seen| (seen.used.prompt + 2 * seen.used.completion) as i64 * 1_000)
        .sum()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_budget_is_spent_on_two_nodes_to_the_last_request_that_fits() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::rough());
    let providers = [(&provider, "a", Dialect::OpenAi)];
    let one = Node::start_leased(&providers, Some((&grantor, "one")), |_| {}).await;
    let two = Node::start_leased(&providers, Some((&grantor, "two")), |_| {}).await;
    // Some hundred requests: each costs 20 to 30 thousandths of a cent and holds about ten times as much.
    let limit = 15_000_000;
    let budget = organization(Terms::money(NanoUsd(limit)));
    put(&grantor, &[&one, &two], &budget);
    let mut clients = Vec::new();
    for number in 0..2 * CLIENTS {
        let node = if number % 2 == 0 { &one } else { &two };
        clients.push(async move {
            let mut served = 0;
            loop {
                let response = node
                    .ask("[[tw:completion_tokens=10]] x", json!({"max_tokens": 40}))
                    .await;
                match response.status().as_u16() {
                    200 => served += 1,
                    // Whoever is told to try again does.
                    503 => tokio::time::sleep(Duration::from_millis(20)).await,
                    status => return (served, status, response.json::<Value>().await.unwrap()),
                }
            }
        });
    }
    let ended = futures::future::join_all(clients).await;
    for (_, status, body) in &ended {
        assert_eq!(*status, 403, "{body}");
        assert_eq!(body["error"]["code"], "budget_exhausted");
        assert_eq!(body["error"]["metadata"]["limit_source"], "organization");
        assert_eq!(body["error"]["metadata"]["budget"], "spend");
    }
    let mut served: usize = ended.iter().map(|(served, ..)| served).sum();
    // Some were refused for what others held. Now nobody holds anything, and one of the nodes must get at the rest.
    let mut refused = 0;
    while refused < 3 {
        let response = one
            .ask("[[tw:completion_tokens=10]] x", json!({"max_tokens": 40}))
            .await;
        if response.status() == 200 {
            (served, refused) = (served + 1, 0);
        } else {
            refused += 1;
            tokio::time::sleep(Duration::from_millis(600)).await; // longer than a refusal is remembered
        }
    }
    let spent = cost(&provider);
    assert_eq!(provider.seen().len(), served);
    assert!(spent <= limit, "{spent} spent of {limit}");
    let hold = 1_000_000;
    assert!(
        spent > limit - hold,
        "{spent} spent of {limit}: refused while there was money"
    );
    // And the books agree with the provider once everything is told.
    until("the books have heard of everything", || {
        grantor.book(&budget.id).settled == i128::from(spent)
    })
    .await;
    assert!(one.running.stop().await && two.running.stop().await);
    let book = grantor.book(&budget.id);
    assert_eq!((book.settled, book.outstanding), (i128::from(spent), 0));
}

#[tokio::test]
async fn a_clamping_budget_cuts_the_answer_to_what_remains_and_says_so() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    let terms = Terms {
        unit: Unit::Tokens,
        limit: 2_000,
        mode: Mode::Clamp,
        ..Terms::money(NanoUsd(1))
    };
    put(&grantor, &[&node], &organization(terms));
    let response = node
        .ask("[[tw:completion_tokens=9000]] x", json!({"max_tokens": 5_000}))
        .await;
    assert_eq!(response.status(), 200);
    let cap: u64 = header(&response, "x-tollway-max-tokens").parse().unwrap();
    assert!((500..1_500).contains(&cap), "{cap}");
    drop(response.bytes().await);
    assert_eq!(provider.seen()[0].used.completion, cap);
}

#[tokio::test]
async fn a_request_without_a_cap_is_answered_from_what_remains_rather_than_refused() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    // The model's context is a thousand tokens, which cost as much as this alone.
    let budget = organization(Terms::money(NanoUsd(2_000_000)));
    put(&grantor, &[&node], &budget);
    let response = node.ask("[[tw:completion_tokens=9000]] x", json!({})).await;
    assert_eq!(response.status(), 200);
    let cap: u64 = header(&response, "x-tollway-max-tokens").parse().unwrap();
    drop(response.bytes().await);
    assert_eq!(provider.seen()[0].used.completion, cap);
    assert!(cost(&provider) <= 2_000_000);
    let refused = node.ask("x", json!({"max_tokens": 1_000})).await;
    assert_eq!(
        refused.status(),
        403,
        "with a cap of its own it is taken at its word"
    );
}

#[tokio::test]
async fn a_spent_budget_of_one_model_leaves_the_fallback_model_to_answer() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    for resource in served_by(&provider, "b", Dialect::OpenAi, 0, &Key::new(REGION_KEY)) {
        node.put(match resource {
            Resource::Endpoint(endpoint) => Resource::Endpoint(Endpoint {
                model: ModelId::trusted("acme/empty"),
                ..endpoint
            }),
            other => other,
        });
    }
    let mut budget = organization(Terms {
        unit: Unit::Requests,
        limit: 1,
        ..Terms::money(NanoUsd(1))
    });
    budget.model = Some(ModelId::trusted(MODEL));
    put(&grantor, &[&node], &budget);
    let fallback = json!({"models": ["acme/empty"]});
    for (extra, status, model) in [
        (fallback.clone(), 200, MODEL),
        (fallback, 200, "acme/empty"),
        (json!({}), 403, ""),
    ] {
        let response = node.ask("x", extra).await;
        let found = (
            response.status().as_u16(),
            header(&response, "x-tollway-model").to_owned(),
        );
        assert_eq!(found, (status, model.to_owned()));
        drop(response.bytes().await);
    }
}

#[tokio::test]
async fn a_budget_that_nobody_can_be_asked_about_is_503_and_a_ceiling_per_request_is_403() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    grantor.set_down(true);
    let mut budget = organization(Terms::money(NanoUsd(1_000_000_000)));
    budget.scope = BudgetScope::Key(ApiKeyId::trusted("key"));
    budget.terms.per_request_max = Some(1_000_000);
    put(&grantor, &[&node], &budget);
    let code = async |extra: Value| {
        let response = node.ask("x", extra).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        (status, body["error"]["code"].as_str().unwrap_or("").to_owned())
    };
    let unavailable = (503, "budget_unavailable".to_owned());
    assert_eq!(code(json!({"max_tokens": 4})).await, unavailable);
    assert_eq!(provider.seen().len(), 0);
    grantor.set_down(false);
    let begun = Instant::now();
    while code(json!({"max_tokens": 4})).await != (200, String::new()) {
        assert!(begun.elapsed() < SOON);
    }
    let dear = (403, "request_too_dear".to_owned());
    assert_eq!(code(json!({"max_tokens": 4_000})).await, dear);
    assert_eq!(provider.seen().len(), 1);
}

#[tokio::test]
async fn a_hang_up_is_settled_as_its_event_says_and_a_failure_costs_nothing() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    let budget = organization(Terms::money(NanoUsd(1_000_000_000)));
    put(&grantor, &[&node], &budget);
    let prompt = "[[tw:chunks=300]] [[tw:delay_ms=10]]";
    let mut stream = node.ask(prompt, json!({"stream": true, "max_tokens": 900})).await;
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.unwrap().is_some());
    drop(stream);
    let failed = node.ask("[[tw:status=500]]", json!({"max_tokens": 900})).await;
    assert_eq!(failed.status(), 500);
    let events = node.events(2).await;
    let billed: Vec<i64> = events.iter().map(|event| event.charge.total.0).collect();
    assert!(
        billed.contains(&0) && billed.iter().any(|charge| *charge > 0),
        "{billed:?}"
    );
    let sum = billed.iter().sum::<i64>();
    until("the books say the same", || {
        grantor.book(&budget.id).settled == i128::from(sum)
    })
    .await;
    // Nothing is left aside: the whole rest is there for one request.
    let rest = 1_000_000_000 - sum;
    let response = node
        .ask("x", json!({"max_tokens": (rest - 1_000_000) / 2_000}))
        .await;
    assert_eq!(response.status(), 200);
}

/// What requests set aside that are still running when the node dies counts whole, what had ended counts as it was billed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_that_was_killed_is_closed_by_the_next_for_no_less_than_it_spent() {
    const STREAMS: i64 = 4;
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let providers = [(&provider, "a", Dialect::OpenAi)];
    let first = Node::start_leased(&providers, Some((&grantor, "one")), |_| {}).await;
    let budget = organization(Terms::money(NanoUsd(1_000_000_000)));
    put(&grantor, &[&first], &budget);
    let ask = async || {
        let response = first
            .ask("[[tw:completion_tokens=10]] x", json!({"max_tokens": 40}))
            .await;
        assert_eq!(response.status(), 200);
        drop(response.bytes().await);
    };
    for _ in 0..8 {
        ask().await;
    }
    // These are in the counters of a checkpoint; the later ones may be in the spool alone.
    until("a report", || grantor.book(&budget.id).settled > 0).await;
    let prompt = "[[tw:chunks=300]] [[tw:completion_tokens=1200]] [[tw:delay_ms=5]]";
    let mut running = Vec::new();
    for _ in 0..STREAMS {
        running.push(
            first
                .ask(prompt, json!({"stream": true, "max_tokens": 1_300}))
                .await,
        );
    }
    for _ in 0..8 {
        ask().await;
    }
    first.events(16).await;
    let completed = cost_of(&provider, |seen| seen.end == End::Finished);
    let left = tempfile::tempdir().unwrap();
    for folder in ["leases", "spool"] {
        copy(
            &first.dir.path().join("data").join(folder),
            &left.path().join(folder),
        );
    }
    let next = Node::start_leased(&providers, Some((&grantor, "one")), |config| {
        config.data_dir = left.path().to_owned();
    })
    .await;
    until("the earlier life is closed", || !grantor.closings().is_empty()).await;
    let closing = grantor.closings().remove(0);
    assert!(!closing.doubtful);
    let spent = closing.lines[0].spent;
    for response in running {
        drop(response.bytes().await);
    }
    let used = cost_of(&provider, |_| true);
    let hold = 4_000_000;
    println!("completed {completed}, in the end {used}, closed at {spent}");
    assert!(
        spent >= used,
        "closed at {spent}, but the provider counted {used}"
    );
    assert!(
        spent <= completed + STREAMS * hold,
        "closed at {spent}, and {completed} had ended"
    );
    until("the journal of the closed life is gone", || {
        let names = std::fs::read_dir(left.path().join("leases")).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        names
            .map(name)
            .filter(|name| name.to_string_lossy().ends_with(".lease"))
            .count()
            == 1
    })
    .await;
    let book = grantor.book(&budget.id);
    assert_eq!((book.settled, book.outstanding), (i128::from(spent), 0));
    assert!(next.running.stop().await);
}

#[tokio::test]
async fn a_node_that_is_fenced_goes_on_under_another_incarnation() {
    let (provider, grantor) = (Scripted::start("a"), Grantor::default());
    let node = Node::start_leased(
        &[(&provider, "a", Dialect::OpenAi)],
        Some((&grantor, "one")),
        |_| {},
    )
    .await;
    let budget = organization(Terms::money(NanoUsd(1_000_000_000)));
    put(&grantor, &[&node], &budget);
    let ask = async || {
        node.ask("[[tw:completion_tokens=10]] x", json!({"max_tokens": 40}))
            .await
            .status()
    };
    assert_eq!(ask().await, 200);
    grantor.fence("one");
    until("the fenced incarnation is closed", || {
        !grantor.closings().is_empty()
    })
    .await;
    let begun = Instant::now();
    while ask().await != 200 {
        assert!(begun.elapsed() < SOON);
    }
    let spent = cost(&provider);
    until("the books have heard of everything", || {
        grantor.book(&budget.id).settled == i128::from(spent)
    })
    .await;
}
