//! Credit over HTTP: bought by people and by signed messages, once each.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use super::*;

pub(super) const SECRET: [u8; 32] = [5; 32];

pub(super) fn signed(secret: &[u8], id: &str, at: i64, body: &Value) -> Request<Body> {
    let body = body.to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mac = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    Request::post("/admin/v1/webhooks/payments")
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", at.to_string())
        .header("webhook-signature", format!("v1,{}", STANDARD.encode(mac)))
        .body(Body::from(body))
        .unwrap()
}

fn paid(amount: &str, reference: &str) -> Value {
    json!({"type": "payment.succeeded", "timestamp": "2026-11-22T00:00:00Z",
        "data": {"organization": "o", "amount": amount, "reference": reference, "method": "crypto"}})
}

#[tokio::test]
async fn a_payment_is_booked_once_however_often_its_signed_message_comes() {
    let world = World::filled().await;
    let now = clock::now().0 / 1_000;
    let event = paid("20", "pi_1");
    world
        .send(signed(&SECRET, "msg_1", now, &event))
        .await
        .refused(401, "unauthenticated");
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    let put = world
        .call("PUT", "webhooks/payments", Some(json!({"secrets": [secret]})))
        .await;
    assert_eq!(put.ok()["secrets"], 1);
    for (id, at) in [("msg_1", now), ("msg_1", now + 1), ("msg_2", now)] {
        let taken = world.send(signed(&SECRET, id, at, &event)).await.ok();
        assert_eq!(taken["transfer"], "o/1");
    }
    world
        .send(signed(&[6; 32], "msg_3", now, &paid("5", "pi_2")))
        .await
        .refused(401, "unauthenticated");
    world
        .send(signed(&SECRET, "msg_4", now - 301, &paid("5", "pi_3")))
        .await
        .refused(401, "unauthenticated");
    world
        .send(signed(&SECRET, "msg_5", now, &paid("21", "pi_1")))
        .await
        .refused(409, "conflict");
    let back = json!({"type": "payment.refunded", "data": {"organization": "o", "amount": "4.5", "reference": "pi_1"}});
    assert_eq!(
        world.send(signed(&SECRET, "msg_6", now, &back)).await.ok()["transfer"],
        "o/2"
    );
    let long = json!({"type": "payment.refunded", "data": {"organization": "o", "amount": "0.000000001", "refund": "r".repeat(201)}});
    let refused = world.send(signed(&SECRET, "msg_8", now, &long)).await;
    assert_eq!(refused.refused(422, "invalid")["field"], "data.refund");
    for (data, field) in [
        (None, "data"),
        (Some(Value::Null), "data"),
        (Some(json!(["o", "5"])), "data"),
        (Some(json!({"organization": "o"})), "data.amount"),
        (Some(json!({"organization": "o", "amount": "-5"})), "data.amount"),
        (
            Some(json!({"organization": "o", "amount": "5", "reference": ""})),
            "data.reference",
        ),
    ] {
        let mut event = json!({"type": "payment.succeeded"});
        data.into_iter().for_each(|data| event["data"] = data);
        let refused = world.send(signed(&SECRET, "msg_9", now, &event)).await;
        let problem = refused.refused(422, "invalid");
        assert_eq!(problem["field"], field, "{problem}");
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains(&format!("`{field}`")),
            "{problem}"
        );
    }
    let other = json!({"type": "customer.created", "data": {}});
    assert_eq!(
        world.send(signed(&SECRET, "msg_7", now, &other)).await.ok()["transfer"],
        Value::Null
    );
    let account = world.get("organizations/o/account").await;
    assert_eq!(
        (&account["available"], &account["bought"]),
        (&json!("15.5"), &json!("15.5"))
    );
    let audit = world.get("audit?action=payments.put_secrets").await;
    assert!(!audit.to_string().contains(&secret) && !audit.to_string().contains("ciphertext"));
}

#[tokio::test]
async fn a_payment_given_back_in_parts_is_booked_once_per_part_also_below_zero() {
    let world = World::filled().await;
    let now = clock::now().0 / 1_000;
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    let put = world.call("PUT", "webhooks/payments", Some(json!({"secrets": [secret]})));
    put.await.ok();
    let prepaid = json!({"mode": "prepaid"});
    world
        .call("PUT", "organizations/o/billing", Some(prepaid))
        .await
        .ok();
    world
        .send(signed(&SECRET, "msg_1", now, &paid("20", "pi_1")))
        .await
        .ok();
    let used = json!({"amount": "-3", "reference": "used"});
    world.post("organizations/o/adjustments", used).await;
    let back = |amount: &str, refund: Value| json!({"type": "payment.refunded", "data": {"organization": "o", "amount": amount, "reference": "pi_1", "refund": refund}});
    let longest = "m".repeat(200);
    for (id, event, transfer) in [
        ("msg_2", back("4", json!("re_1")), "o/3"),
        ("msg_3", back("4", json!("re_1")), "o/3"),
        ("msg_4", back("4", json!("re_2")), "o/4"),
        (longest.as_str(), back("5", Value::Null), "o/5"),
        (longest.as_str(), back("5", Value::Null), "o/5"),
        ("msg_5", back("7", Value::Null), "o/6"), // more than is left: the money is gone all the same
    ] {
        let taken = world.send(signed(&SECRET, id, now, &event)).await.ok();
        assert_eq!(taken["transfer"], transfer, "{id}");
    }
    let account = world.get("organizations/o/account").await;
    assert_eq!(account["available"], "-3");
    assert_eq!(world.get("budgets/credit.o").await["limit"], "0");
    let transfers = world.get("organizations/o/transfers").await;
    let last = &transfers["data"][5];
    assert_eq!(
        (&last["kind"], &last["reason"]),
        (&json!("refund"), &json!("payment pi_1"))
    );
    let by_hand = json!({"amount": "1", "reference": "by-hand"});
    world
        .call("POST", "organizations/o/refunds", Some(by_hand))
        .await
        .refused(409, "conflict");
}

#[tokio::test]
async fn what_is_given_back_is_held_against_its_payment_and_is_us_dollars() {
    let world = World::filled().await;
    let now = clock::now().0 / 1_000;
    let secret = format!("whsec_{}", STANDARD.encode(SECRET));
    let put = world.call("PUT", "webhooks/payments", Some(json!({"secrets": [secret]})));
    put.await.ok();
    let message = |kind: &str, amount: &str, reference: &str, currency: &str| json!({"type": format!("payment.{kind}"), "data": {"organization": "o", "amount": amount, "reference": reference, "currency": currency}});
    let send = |id: &str, event: &Value| world.send(signed(&SECRET, id, now, event));
    let other = json!({"amount": "9", "method": "crypto", "reference": "theirs"});
    world.put("organizations/other", json!({"name": "Other"})).await;
    world.post("organizations/other/top-ups", other).await;
    let pay = message("succeeded", "20", "pi_1", "usd");
    assert_eq!(send("msg_1", &pay).await.ok()["transfer"], "o/1");
    let part = message("refunded", "15", "pi_1", "USD");
    assert_eq!(send("msg_2", &part).await.ok()["transfer"], "o/2");
    for (event, field) in [
        (message("succeeded", "20", "pi_2", "EUR"), "data.currency"),
        (message("refunded", "1", "pi_1", "eur"), "data.currency"),
        (message("refunded", "5.000000001", "pi_1", "USD"), "data.amount"),
        (message("refunded", "1", "pi_0", "USD"), "data.reference"),
        (message("refunded", "1", "theirs", "USD"), "data.reference"),
        (message("refunded", "1", "webhook:msg_2", "USD"), "data.reference"),
    ] {
        let problem = send("msg_3", &event).await.refused(422, "invalid");
        assert_eq!(problem["field"], field, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("`{field}`")), "{problem}");
    }
    // The same message again is answered as at first, though so much is not left any more.
    assert_eq!(send("msg_2", &part).await.ok()["transfer"], "o/2");
    let rest = message("refunded", "5", "pi_1", "USD");
    assert_eq!(send("msg_4", &rest).await.ok()["transfer"], "o/3");
    let more = message("refunded", "0.000000001", "pi_1", "USD");
    send("msg_5", &more).await.refused(422, "invalid");
    // With transfers that are not kept any more, a payment may have been forgotten: what is told of it is believed.
    for number in 0..=crate::state::account::TRANSFERS_MAX {
        let gift = json!({"amount": "1", "method": "promo", "reference": format!("gift-{number}")});
        world.post("organizations/o/top-ups", gift).await;
    }
    let old = message("refunded", "1", "pi_0", "USD");
    assert!(send("msg_6", &old).await.ok()["transfer"].is_string());
    send("msg_7", &more).await.refused(422, "invalid");
}

#[tokio::test]
async fn an_organization_with_credit_is_not_removed_and_what_an_unlimited_one_owes_it_owes() {
    let world = World::filled().await;
    let path = "organizations/new";
    world.put(path, json!({"name": "New"})).await;
    let paid = json!({"amount": "10", "method": "crypto", "reference": "pay"});
    world.post("organizations/new/top-ups", paid).await;
    let refused = world.call("DELETE", path, None).await.refused(409, "conflict");
    assert!(
        refused["detail"].as_str().unwrap().contains("10 dollars"),
        "{refused}"
    );
    let back = json!({"amount": "10", "reference": "back"});
    world.post("organizations/new/refunds", back).await;
    let owes = json!({"amount": "-2", "reference": "owes"});
    world.post("organizations/new/adjustments", owes).await;
    for (mode, may_go) in [("prepaid", false), ("unlimited", true)] {
        let billing = json!({"mode": mode});
        world.put("organizations/new/billing", billing).await;
        let reply = world.call("DELETE", path, None).await;
        if may_go {
            reply.ok();
        } else {
            reply.refused(409, "conflict");
        }
    }
    world.put(path, json!({"name": "New"})).await;
    let account = world.get("organizations/new/account").await;
    assert_eq!(
        (&account["available"], &account["billing"]["mode"]),
        (&json!("-2"), &json!("unlimited"))
    );
}

#[tokio::test]
async fn credit_moves_once_per_key_or_reference_and_shows_in_account_transfers_and_budget() {
    let world = World::filled().await;
    let path = "organizations/o/top-ups";
    let body = json!({"amount": "10", "method": "card"});
    world
        .call("POST", path, Some(body.clone()))
        .await
        .refused(400, "invalid_request");
    let with_key = |key: &str| {
        world
            .request(&world.owner, "POST", path)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Body::from(body.to_string()))
            .unwrap()
    };
    let first = world.send(with_key("k-1")).await.ok();
    assert_eq!(
        first["legs"],
        json!([{"account": "cash_received", "amount": "-10.8"},
        {"account": "available", "amount": "10"}, {"account": "revenue_fee", "amount": "0.8"}])
    );
    assert_eq!(world.send(with_key("k-1")).await.ok(), first);
    let by_reference = json!({"amount": "2.5", "method": "promo", "reference": "gift"});
    for _ in 0..2 {
        assert_eq!(
            world.call("POST", path, Some(by_reference.clone())).await.ok()["id"],
            "o/2"
        );
    }
    let back = json!({"amount": "0.5", "reference": "back", "reason": "asked for"});
    world
        .call("POST", "organizations/o/refunds", Some(back))
        .await
        .ok();
    let less = json!({"amount": "-1", "reference": "slip"});
    world
        .call("POST", "organizations/o/adjustments", Some(less))
        .await
        .ok();
    let billing = json!({"mode": "postpaid", "credit_line": "4", "low_balance": "1"});
    let account = world
        .call("PUT", "organizations/o/billing", Some(billing.clone()))
        .await
        .ok();
    assert_eq!(
        (&account["available"], &account["spendable"]),
        (&json!("11"), &json!("15"))
    );
    assert_eq!(account["billing"]["mode"], "postpaid");
    assert_eq!(world.get("budgets/credit.o").await["limit"], "15");
    world
        .call("DELETE", "budgets/credit.o", None)
        .await
        .refused(409, "conflict");
    let page = world.get("organizations/o/transfers?limit=3").await;
    let kinds: Vec<_> = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["kind"].clone())
        .collect();
    assert_eq!(
        (json!(kinds), &page["next"]),
        (json!(["top_up", "top_up", "refund"]), &json!("3"))
    );
    let rest = world.get("organizations/o/transfers?after=3").await;
    assert_eq!(rest["data"][0]["previous"], page["data"][2]["hash"]);
    for (body, field) in [
        (json!({"mode": "prepaid", "credit_line": "4"}), "credit_line"),
        (json!({"mode": "postpaid"}), "credit_line"),
        (json!({"low_balance": "0"}), "low_balance"),
    ] {
        let refused = world.call("PUT", "organizations/o/billing", Some(body)).await;
        assert_eq!(refused.refused(422, "invalid")["field"], field);
    }
    world
        .call("POST", "organizations/nobody/top-ups", Some(by_reference))
        .await
        .refused(409, "conflict");
    let fees = world.get("fees").await;
    assert_eq!(fees["card"], json!({"bps": 550, "least": "0.8"}));
    let mut free = fees.clone();
    free["card"] = json!({"bps": 0, "least": "0"});
    world.call("PUT", "fees", Some(free)).await.ok();
    let bought = json!({"amount": "1", "method": "card", "reference": "no-fee"});
    assert_eq!(
        world.call("POST", path, Some(bought)).await.ok()["legs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}
