//! Reports, from a billing store that has some events.

use tollway_proto::usage::{UsageEvent, UsageSource};
use tollway_shared::cost;
use tollway_shared::ids::*;
use tollway_shared::time::{Day, UnixMillis};
use tollway_shared::tokens::TokenCounts;

use super::*;
use crate::state::samples;
use crate::{billing, ledger};

/// 2026-11-22T12:34:56Z.
const BEGAN: UnixMillis = UnixMillis(1_795_350_896_000);

/// Requests of the one key, ten minutes after each other; the last is of another organization, and the one before used nothing.
fn events() -> Vec<UsageEvent> {
    (1..=9u64)
        .map(|sequence| {
            let mut event = ledger::sample::event(1, sequence);
            event.started_at.0 = BEGAN.plus_ms(600_000 * sequence.cast_signed());
            event.finished_at.0 = event.started_at.0.plus_ms(500);
            event.tenant.organization = OrganizationId::trusted(if sequence == 9 { "other" } else { "o" });
            event.tenant.project = ProjectId::trusted("j");
            event.tenant.key = ApiKeyId::trusted("k");
            (event.model, event.provider) = (ModelId::trusted("a/m"), ProviderId::trusted("p"));
            event.endpoint = EndpointId::trusted("p/a/m");
            if sequence == 8 {
                event.usage_source = UsageSource::None;
                event.tokens = TokenCounts::default();
                event.charge = cost::Charge::default();
            } else {
                event.tokens.input = 1_111 * sequence;
                event.charge = cost::charge(&event.tokens, &event.prices).unwrap();
            }
            event.state_charge(event.charge);
            event
        })
        .collect()
}

/// The world with those events, and the cost of the organization `o`.
async fn used() -> (World, Vec<UsageEvent>, i64) {
    let world = World::filled().await;
    let events = events();
    billing::sample::store(&world.store, &events);
    let own = events
        .iter()
        .filter(|event| event.tenant.organization.as_str() == "o");
    let cost = own.map(|event| event.charge.total.0).sum();
    (world, events, cost)
}

/// What is owed for those events, by one organization or by all.
fn owed(events: &[UsageEvent], organization: Option<&str>) -> i64 {
    let is_theirs =
        |event: &&UsageEvent| organization.is_none_or(|id| event.tenant.organization.as_str() == id);
    events.iter().filter(is_theirs).map(|event| event.billed.0).sum()
}

fn nano(value: &Value) -> i64 {
    tollway_shared::money::NanoUsd::parse(value.as_str().unwrap())
        .unwrap()
        .0
}

const SPAN: &str = "from=2026-11-22&to=2026-11-22";

#[tokio::test(flavor = "multi_thread")]
async fn an_export_streams_charges_that_sum_to_the_store_in_both_forms() {
    let (world, events, cost) = used().await;
    let (all, own) = (owed(&events, None), owed(&events, Some("o")));
    assert_ne!(own, cost, "there is a discount");
    for (filter, wanted) in [("", all), ("&organization=o", own)] {
        let reply = world
            .call("GET", &format!("exports/focus?{SPAN}{filter}"), None)
            .await;
        assert!(
            reply.headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with("text/csv")
        );
        let text = reply.ok();
        let mut lines = text.as_str().unwrap().lines();
        let place = lines
            .next()
            .unwrap()
            .split(',')
            .position(|name| name == "BilledCost");
        assert_eq!(place, Some(0));
        let sum: i64 = lines
            .map(|line| nano(&line.split(',').next().unwrap().into()))
            .sum();
        assert_eq!(sum, wanted, "{filter}");
    }
    let reply = world
        .call("GET", &format!("exports/focus?{SPAN}&format=parquet"), None)
        .await;
    assert_eq!(reply.headers["content-type"], "application/vnd.apache.parquet");
    assert!(reply.ok().as_str().unwrap().starts_with("PAR1"));
    for (query, field) in [
        ("from=2026-11-22", "to"),
        ("from=2026-11-23&to=2026-11-22", "from"),
        ("from=2020-01-01&to=2026-11-22", "from"),
        ("from=2026-11-22&to=2026-11-22&format=xml", "format"),
    ] {
        let reply = world.call("GET", &format!("exports/focus?{query}"), None).await;
        assert_eq!(reply.refused(400, "invalid_request")["field"], field, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_is_json_or_a_page_and_sums_to_the_store() {
    let (world, events, _) = used().await;
    let cost = owed(&events, Some("o"));
    let invoice = world.get("organizations/o/invoices/2026-11").await;
    assert_eq!(nano(&invoice["totals"]["total"]), cost);
    assert_eq!(invoice["totals"]["requests"], 8);
    let lines = invoice["lines"].as_array().unwrap();
    assert_eq!(lines.iter().map(|line| nano(&line["amount"])).sum::<i64>(), cost);
    let page = world
        .call("GET", "organizations/o/invoices/2026-11.html", None)
        .await;
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("default-src 'none'")
    );
    let page = page.ok();
    assert!(
        page.as_str()
            .unwrap()
            .contains(invoice["totals"]["total"].as_str().unwrap())
    );
    let empty = world.get("organizations/o/invoices/2026-10").await;
    assert_eq!(
        (nano(&empty["totals"]["total"]), &empty["lines"]),
        (0, &json!([]))
    );
    for (path, status, code) in [
        ("organizations/o/invoices/2026-13", 422, "invalid"),
        ("organizations/nobody/invoices/2026-11", 404, "not_found"),
    ] {
        world.call("GET", path, None).await.refused(status, code);
    }
}

/// A store that was made from a log whose first records were gone, and usage that only the replicated sums have.
async fn young() -> World {
    let world = World::filled().await;
    let events = events();
    billing::sample::store_from(&world.store, 5, &events);
    let mut spend = samples::spend(0, 1, 7);
    spend.partition = events[0].partition;
    spend.sums[0].cell.day = Day::parse("2026-11-03").unwrap();
    let outcome = world
        .cluster
        .propose(Proposal::system(Command::RecordSpend(spend)))
        .await;
    assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_not_whole_is_refused_and_usage_is_read_from_the_replicated_sums() {
    let world = young().await;
    for path in [
        "organizations/o/invoices/2026-11",
        "exports/focus?from=2026-11-01&to=2026-11-30",
        "usage?group_by=user&from=2026-11-01",
    ] {
        let refused = world.call("GET", path, None).await.refused(503, "unavailable");
        let detail = refused["detail"].as_str().unwrap();
        assert!(
            detail.contains("everything from 2026-11-24 on"),
            "{path}: {detail}"
        );
    }
    let answered = world.get("usage?from=2026-11-01").await;
    assert_eq!(
        (&answered["source"], &answered["total"]["cost"]),
        (&json!("state"), &json!("0.000000007"))
    );
    // Nothing is missing of these.
    for query in ["group_by=user&from=2026-11-24", "group_by=user"] {
        let answered = world.get(&format!("usage?{query}")).await;
        assert_eq!(answered["source"], "billing", "{query}");
    }
    world.get("organizations/o/invoices/2026-10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_behind_what_was_counted_makes_no_invoice() {
    let (world, events, _) = used().await;
    let mut spend = samples::spend(0, 100, 7);
    spend.partition = events[0].partition;
    let outcome = world
        .cluster
        .propose(Proposal::system(Command::RecordSpend(spend)))
        .await;
    assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
    let refused = world
        .call("GET", "organizations/o/invoices/2026-11", None)
        .await
        .refused(503, "unavailable");
    assert!(
        refused["detail"].as_str().unwrap().contains("is behind"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_organization_still_has_its_invoices() {
    let (world, _, _) = used().await;
    world.put("organizations/gone", json!({"name": "Gone"})).await;
    let paid = json!({"amount": "10", "method": "crypto", "reference": "pay"});
    world.post("organizations/gone/top-ups", paid).await;
    let back = json!({"amount": "10", "reference": "back"});
    world.post("organizations/gone/refunds", back).await;
    world.call("DELETE", "organizations/gone", None).await.ok();
    let month = clock::now().day().to_string();
    let invoice = world
        .get(&format!("organizations/gone/invoices/{}", &month[..7]))
        .await;
    assert_eq!(invoice["entries"][0]["amount"], "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_prices_are_tried_on_what_was_used_and_nothing_changes() {
    let (world, events, cost) = used().await;
    let applied = world.cluster.state().applied;
    let body = |prices: &cost::Prices| {
        json!({"from": "2026-11-22", "to": "2026-11-22", "organization": "o",
            "rates": [{"endpoint": "p/a/m", "prices": prices}]})
    };
    // Of the tier that all of them are in.
    let mut prices = events[0].prices.in_force(events[0].tokens.prompt());
    let same = world.post("usage/re-rate", body(&prices)).await;
    assert_eq!(
        (nano(&same["recorded"]), nano(&same["difference"])),
        (cost, 0),
        "{same}"
    );
    prices.input.0 += 1_000_000_000;
    let dearer = world.post("usage/re-rate", body(&prices)).await;
    let input: u64 = events[..7].iter().map(|event| event.tokens.input).sum();
    let off = nano(&dearer["difference"]) - i64::try_from(input).unwrap() * 1_000;
    assert!(off.abs() <= nano(&dearer["exact_to"]), "{dearer}");
    assert_eq!(world.cluster.state().applied, applied);
    for (rates, field) in [
        (json!([]), "rates"),
        (json!([{"endpoint": "p/a/m"}]), "rates[0].price"),
        (json!([{"endpoint": "p/a/m", "price": "gone"}]), "rates[0].price"),
        (
            json!([{"endpoint": "p/a/m", "prices": events[0].prices}]),
            "rates[0].prices",
        ),
        (
            json!([{"endpoint": "p/a/m", "prices": prices}, {"endpoint": "p/a/nope", "prices": prices}]),
            "rates[1].endpoint",
        ),
    ] {
        let body = json!({"from": "2026-11-22", "to": "2026-11-22", "rates": rates});
        let reply = world.call("POST", "usage/re-rate", Some(body)).await;
        assert_eq!(reply.refused(422, "invalid")["field"], field);
    }
}

/// One that was removed has its usage and its account all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_on_what_does_not_exist_is_refused_and_one_on_what_was_removed_is_not() {
    let (world, events, _) = used().await;
    world.put("organizations/gone", json!({"name": "Gone"})).await;
    let paid = json!({"amount": "10", "method": "crypto", "reference": "pay"});
    world.post("organizations/gone/top-ups", paid).await;
    let back = json!({"amount": "10", "reference": "back"});
    world.post("organizations/gone/refunds", back).await;
    world.call("DELETE", "organizations/gone", None).await.ok();
    let prices = events[0].prices.in_force(events[0].tokens.prompt());
    let re_rate = |organization: &str| {
        json!({"from": "2026-11-22", "to": "2026-11-22", "organization": organization,
            "rates": [{"endpoint": "p/a/m", "prices": prices}]})
    };
    for organization in ["nobody", "gone"] {
        let replies = [
            world
                .call(
                    "GET",
                    &format!("exports/focus?{SPAN}&organization={organization}"),
                    None,
                )
                .await,
            world
                .call(
                    "GET",
                    &format!("usage/forecast?organization={organization}"),
                    None,
                )
                .await,
            world
                .call("POST", "usage/re-rate", Some(re_rate(organization)))
                .await,
        ];
        for reply in replies {
            if organization == "gone" {
                reply.ok();
            } else {
                assert_eq!(reply.refused(404, "not_found")["field"], "organization");
            }
        }
    }
    let filtered = world.get("usage?organization=nobody").await;
    assert_eq!(filtered["total"]["requests"], 0, "a filter is no look-up");
    // An endpoint that is not there any more, and was used.
    world.call("DELETE", "endpoints/p/a/m", None).await.ok();
    world.post("usage/re-rate", re_rate("o")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_a_provider_is_put_beside_what_was_used() {
    let (world, events, _) = used().await;
    let tokens: u64 = events.iter().map(|event| event.tokens.total()).sum();
    let cost: i64 = events.iter().map(|event| event.charge.total.0).sum();
    let send = |media: &'static str, text: String| {
        let request = world.request(&world.owner, "POST", "usage/provider-import");
        world.send(
            request
                .header("content-type", media)
                .body(Body::from(text))
                .unwrap(),
        )
    };
    let day = Day::parse("2026-11-22").unwrap();
    // The provider's own name for the model, and one request fewer.
    let text = format!("day,provider,model,tokens,cost\n{day},p,m,{},0.5\n", tokens - 10);
    let found = send("text/csv; charset=utf-8", text).await.ok();
    let row = &found["data"][0];
    assert_eq!(
        (&row["model"], &row["our_tokens"]),
        (&json!("a/m"), &json!(tokens)),
        "{found}"
    );
    assert_eq!(found["tokens_drift"], 10);
    assert_eq!(nano(&row["cost_difference"]), cost - 500_000_000);
    // More than other bodies may have.
    let wide = format!(
        "provider,day,model,tokens,cost,note\np,{day},m,1,1,{}\n",
        "x".repeat(2 << 20)
    );
    send("text/csv", wide).await.ok();
    let row = format!("p,{day},m,1,9223372036.854775807\n");
    let sum = format!("provider,day,model,tokens,cost\n{row}{row}");
    let beyond = send("text/csv", sum).await.refused(422, "invalid");
    assert_eq!(beyond["field"], "body");
    send("application/json", "{}".into())
        .await
        .refused(415, "unsupported_media_type");
    let refused = send("text/csv", "day,provider\n".into())
        .await
        .refused(422, "invalid");
    assert!(
        refused["detail"].as_str().unwrap().contains("`model`"),
        "{refused}"
    );
}
