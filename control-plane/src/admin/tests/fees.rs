//! Fees on own credentials over HTTP: the account, usage, the invoice and the export say the same, to the nano-dollar. Chargeback: usage
//! by labels adds up to it.

use tollway_proto::usage::UsageEvent;
use tollway_shared::cost;
use tollway_shared::ids::*;
use tollway_shared::time::{DAY_MS, Day, UnixMillis};

use super::*;
use crate::billing;
use crate::ledger::rollup::{Meter, Record, fold_with};
use crate::ledger::sample;

/// Requests of three keys on four days of last month, a few hours apart; every other one with the organization's own credential.
fn events(month: Day) -> Vec<UsageEvent> {
    (1..=24u64)
        .map(|sequence| {
            let mut event = sample::event(1, sequence);
            event.started_at.0 = month.start().plus_ms(sequence.cast_signed() * DAY_MS / 7);
            event.finished_at.0 = event.started_at.0.plus_ms(500);
            event.tenant.organization = OrganizationId::trusted("o");
            event.tenant.project = ProjectId::trusted("j");
            event.tenant.key = ApiKeyId::trusted(format!("k{}", sequence % 3));
            (event.model, event.provider) = (ModelId::trusted("a/m"), ProviderId::trusted("p"));
            event.endpoint = EndpointId::trusted("p/a/m");
            event.user = Some(format!("user-{}", sequence % 2));
            event.tokens.input = 1_111 * sequence;
            event.byok = sequence.is_multiple_of(2);
            event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
            event
        })
        .collect()
}

/// Counts events as the ledger does, a few at a time.
async fn count(world: &World, events: &[UsageEvent]) {
    let partition = events[0].partition;
    for (from, part) in (0..).step_by(5).zip(events.chunks(5)) {
        let records: Vec<Record> = (from..)
            .zip(part)
            .map(|(offset, event)| Record {
                partition,
                offset,
                next: offset + 1,
                value: serde_json::to_vec(event).unwrap(),
            })
            .collect();
        let state = world.cluster.state();
        let seen = |writer| {
            state
                .usage_writers
                .get(&(partition, writer))
                .map(|mark| mark.sequence)
        };
        let (spend, report) = fold_with(partition, from, &records, UnixMillis(0), seen, Meter::of(&state));
        assert_eq!((report.mismatches, report.malformed), (0, 0), "{report:?}");
        let command = Command::RecordSpend(spend);
        let outcome = world.cluster.propose(Proposal::system(command)).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    }
}

fn nano(value: &Value) -> i128 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no amount"));
    tollway_shared::money::NanoUsd::parse(text).unwrap().0.into()
}

/// The sum of a column of the export; no field up to it has a comma.
async fn exported(world: &World, days: &str, column: &str) -> i128 {
    let text = world
        .call("GET", &format!("exports/focus?{days}"), None)
        .await
        .ok();
    let mut lines = text.as_str().unwrap().lines();
    let place = lines.next().unwrap().split(',').position(|name| name == column);
    let amounts = lines.filter_map(|line| line.split(',').nth(place.unwrap()));
    amounts.map(|text| nano(&text.into())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_own_credentials_cost_is_the_same_in_the_account_in_usage_on_the_invoice_and_in_the_export() {
    let world = World::filled().await;
    let mut fees = world.get("fees").await;
    fees["byok"] = json!({"bps": 500, "free_requests": 4});
    world.put("fees", fees).await;
    world
        .post(
            "organizations/o/top-ups",
            json!({"amount": "10", "reference": "pay-1", "method": "card"}),
        )
        .await;
    let month = Day(clock::now().day().month().0 - 1).month();
    let events = events(month);
    count(&world, &events).await;
    billing::sample::store(&world.store, &events);
    // By hand: the first four of the twelve are free.
    let own = events.iter().filter(|event| event.byok).skip(4);
    let fee: i128 = own
        .map(|event| (i128::from(event.charge.total.0) * 500 + 9_999) / 10_000)
        .sum();
    let billed: i128 = events.iter().map(|event| i128::from(event.billed.0)).sum();
    assert!(fee > 0 && billed > 0);

    let account = world.get("organizations/o/account").await;
    let balance = |name: &str| {
        let legs = account["balances"].as_array().unwrap();
        nano(&legs.iter().find(|leg| leg["account"] == name).unwrap()["amount"])
    };
    let credit_fee = 800_000_000;
    assert_eq!(balance("revenue_usage"), billed, "{account}");
    assert_eq!(balance("revenue_fee"), fee + credit_fee, "{account}");
    assert_eq!(nano(&account["available"]), 10_000_000_000 - billed - fee);

    // The store answers what the replicated sums cannot; fees come from those.
    for group in ["key,byok", "day,byok", "month,byok", "organization,model,byok"] {
        let usage = world.get(&format!("usage?group_by={group}")).await;
        assert_eq!(usage["source"], "billing");
        assert_eq!(nano(&usage["total"]["fee"]), fee, "{usage}");
        assert_eq!(nano(&usage["total"]["billed"]), billed);
        let rows = usage["data"].as_array().unwrap();
        assert_eq!(
            rows.iter().map(|row| nano(&row["fee"])).sum::<i128>(),
            fee,
            "{group}"
        );
        for row in rows {
            let is_free = row["byok"] == "false";
            assert!(!is_free || nano(&row["fee"]) == 0, "{row}");
        }
    }
    let by_user = world.get("usage?group_by=user").await;
    assert_eq!(nano(&by_user["total"]["fee"]), fee);
    assert!(by_user["data"][0].get("fee").is_none(), "not known: {by_user}");
    let of_user = world.get("usage?user=user-0").await;
    assert!(of_user["total"].get("fee").is_none(), "not known: {of_user}");
    assert_eq!(nano(&world.get("usage?byok=false").await["total"]["fee"]), 0);
    let by_state = world.get("usage?group_by=key").await;
    assert_eq!(by_state["source"], "state");
    assert_eq!(nano(&by_state["total"]["fee"]), fee);

    let text = &month.to_string()[..7];
    let invoice = world.get(&format!("organizations/o/invoices/{text}")).await;
    let lines = invoice["lines"].as_array().unwrap();
    let of_fees: Vec<_> = lines.iter().filter(|line| line["meter"] == "byok_fee").collect();
    assert_eq!(of_fees.len(), 1, "a line of its own: {invoice}");
    assert_eq!(
        (nano(&of_fees[0]["amount"]), &of_fees[0]["quantity"]),
        (fee, &json!(12))
    );
    let totals = &invoice["totals"];
    assert_eq!(nano(&totals["byok_fees"]), fee);
    assert_eq!(nano(&totals["usage"]), billed);
    assert_eq!(
        nano(&totals["total"]),
        billed + fee,
        "the top-up is another month's"
    );
    assert_eq!(
        lines.iter().map(|line| nano(&line["amount"])).sum::<i128>(),
        billed + fee
    );

    let last = events.last().unwrap().started_at.0.day();
    let days = format!("from={month}&to={last}");
    assert_eq!(exported(&world, &days, "EffectiveCost").await, billed + fee);
    assert_eq!(crate::report::fee::apart(&world.cluster.state()), []);
}

/// Rows of every page, and the total.
async fn by_label(world: &World, group_by: &str) -> (Vec<Value>, Value) {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let page = world
            .get(&format!("usage?group_by={group_by}&limit=1{after}"))
            .await;
        rows.extend(page["data"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return (rows, page["total"].clone()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_by_label_adds_up_to_all_of_it_and_a_keys_own_label_is_above_its_projects() {
    let world = World::filled().await;
    let mut fees = world.get("fees").await;
    fees["byok"] = json!({"bps": 500, "free_requests": 4});
    world.put("fees", fees).await;
    let events = events(Day(clock::now().day().month().0 - 1).month());
    count(&world, &events).await;
    billing::sample::store(&world.store, &events);
    let project = |labels: Value| json!({"organization": "o", "team": "t", "labels": labels});
    world
        .put("projects/j", project(json!({"cost-center": "b"})))
        .await;
    let own = json!({"cost-center": "a", "product": "x"});
    world
        .post("keys", json!({"project": "j", "id": "k0", "labels": own}))
        .await;
    world.post("keys", json!({"project": "j", "id": "k1"})).await;
    let labelled = world
        .put("keys/k1/labels", json!({"labels": {"product": "y"}}))
        .await;
    assert_eq!(labelled["labels"], json!({"product": "y"}));
    // The record of k2 is gone; its project's labels are not.
    let of_keys = |keys: &[&str]| -> i128 {
        let of = events
            .iter()
            .filter(|event| keys.contains(&event.tenant.key.as_str()));
        of.map(|event| i128::from(event.billed.0)).sum()
    };
    let wanted = [
        (
            "cost-center",
            vec![("a", of_keys(&["k0"])), ("b", of_keys(&["k1", "k2"]))],
        ),
        (
            "product",
            vec![
                ("unlabelled", of_keys(&["k2"])),
                ("x", of_keys(&["k0"])),
                ("y", of_keys(&["k1"])),
            ],
        ),
        ("nobody", vec![("unlabelled", of_keys(&["k0", "k1", "k2"]))]),
    ];
    for (name, values) in &wanted {
        // The replicated sums answer the first, the billing store the second.
        for group_by in [format!("label:{name}"), format!("model,label:{name},byok")] {
            let (rows, total) = by_label(&world, &group_by).await;
            let mut found: Vec<(&str, i128)> = Vec::new();
            for row in &rows {
                let value = row["labels"][name].as_str().unwrap();
                match found.iter_mut().find(|(known, _)| *known == value) {
                    Some((_, sum)) => *sum += nano(&row["billed"]),
                    None => found.push((value, nano(&row["billed"]))),
                }
            }
            found.sort_unstable();
            assert_eq!(&found, values, "{group_by}");
            for sum in ["billed", "cost", "fee"] {
                let rows: i128 = rows.iter().map(|row| nano(&row[sum])).sum();
                assert_eq!((rows, rows > 0), (nano(&total[sum]), true), "{sum} {group_by}");
            }
            let tokens: u64 = rows
                .iter()
                .map(|row| row["tokens"]["input"].as_u64().unwrap())
                .sum();
            assert_eq!(total["tokens"]["input"], tokens, "{group_by}");
        }
    }
    for group_by in ["label:", "label:a,label:a", "label:a%20b"] {
        let reply = world
            .call("GET", &format!("usage?group_by={group_by}"), None)
            .await;
        assert_eq!(reply.refused(400, "invalid_request")["field"], "group_by");
    }
    for labels in [json!({"a": "unlabelled"}), json!({"a b": "c"}), json!({"a": ""})] {
        let body = Some(project(labels));
        let reply = world.call("PUT", "projects/j", body).await;
        assert_eq!(reply.refused(422, "invalid")["field"], "labels");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_took_the_id_of_another_organizations_does_not_label_what_that_used() {
    let world = World::filled().await;
    let mut events = events(Day(clock::now().day().month().0 - 1).month());
    let is_theirs = |event: &UsageEvent| event.tenant.key.as_str() == "k2";
    for event in events.iter_mut().filter(|event| is_theirs(event)) {
        event.tenant.organization = OrganizationId::trusted("before");
    }
    count(&world, &events).await;
    billing::sample::store(&world.store, &events);
    let labels = json!({"cost-center": "b"});
    let project = json!({"organization": "o", "team": "t", "labels": labels});
    world.put("projects/j", project).await;
    let theirs: i128 = events
        .iter()
        .filter(|event| is_theirs(event))
        .map(|event| i128::from(event.billed.0))
        .sum();
    for (group_by, source) in [
        ("label:cost-center", "state"),
        ("label:cost-center,byok", "billing"),
    ] {
        let usage = world.get(&format!("usage?group_by={group_by}")).await;
        assert_eq!(usage["source"], source);
        let rows = usage["data"].as_array().unwrap();
        let unlabelled = rows
            .iter()
            .filter(|row| row["labels"]["cost-center"] == "unlabelled");
        let found: i128 = unlabelled.map(|row| nano(&row["billed"])).sum();
        assert_eq!((found, theirs > 0), (theirs, true), "{usage}");
    }
}
