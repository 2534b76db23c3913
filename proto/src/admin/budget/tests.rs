//! What a budget's JSON form takes, refuses and gives back.

use tollway_shared::time;

use super::*;

fn put(json: &str) -> Result<stored::Budget, FieldFault> {
    let put: BudgetPut = serde_json::from_str(json).unwrap();
    put.into_stored(BudgetId::trusted("b"))
}

#[test]
fn the_short_form_is_a_hard_budget_of_dollars_in_utc() {
    let budget = put(r#"{"scope": {"key": "k"}, "limit": "0.50", "period": "monthly"}"#).unwrap();
    let terms = terms::Terms {
        cycle: time::Period::Monthly.into(),
        ..terms::Terms::money(NanoUsd(500_000_000))
    };
    assert_eq!((budget.terms, budget.model), (terms, None));
}

#[test]
fn everything_that_a_budget_says_comes_back() {
    let json = r#"{"scope": {"organization": "acme"}, "model": "a/m", "unit": "tokens", "limit": "9000000000000",
        "period": "days", "days": 14, "first_day": "2026-01-05", "time_zone": "europe/berlin", "mode": "clamp",
        "per_request_max": "1000", "thresholds_percent": [50, 90], "standby_ppm": 20000}"#;
    let budget = put(json).unwrap();
    let standing = Standing {
        book: None,
        window: Span::LIFETIME,
        recorded: 7,
    };
    let shown = Budget::of(&budget, standing, UnixMillis(0), Revision(3));
    assert_eq!(
        (shown.free.0.as_str(), shown.settled.0.as_str()),
        ("8999999999993", "7")
    );
    assert_eq!(shown.time_zone, "Europe/Berlin");
    let mut again = serde_json::to_value(&shown).unwrap();
    let wanted: serde_json::Value = serde_json::from_str(json).unwrap();
    let fields = again.as_object_mut().unwrap();
    fields.retain(|name, _| wanted.get(name).is_some());
    assert_eq!(put(&again.to_string()).unwrap(), budget);
}

#[test]
fn a_field_that_is_wrong_is_named() {
    let with = |more: &str| {
        let json = format!(r#"{{"scope": {{"key": "k"}}, {more}}}"#);
        put(&json).unwrap_err().field
    };
    assert_eq!(with(r#""limit": "lots", "period": "daily""#), "limit");
    assert_eq!(
        with(r#""limit": "1.5", "unit": "tokens", "period": "daily""#),
        "limit"
    );
    assert_eq!(
        with(r#""limit": "1", "period": "days", "first_day": "2026-01-01""#),
        "days"
    );
    assert_eq!(with(r#""limit": "1", "period": "daily", "days": 3"#), "days");
    assert_eq!(
        with(r#""limit": "1", "period": "daily", "time_zone": "Europe/Atlantis""#),
        "time_zone"
    );
    let ceiling = r#""limit": "1", "period": "daily", "per_request_max": "1", "mode": "#;
    assert_eq!(with(&format!(r#"{ceiling}"soft""#)), "per_request_max");
    let hard = format!(r#"{{"scope": {{"key": "k"}}, {ceiling}"hard"}}"#);
    assert!(put(&hard).is_ok());
}

#[test]
fn amounts_and_days_out_of_their_range_are_told_in_what_was_written() {
    let told = |more: &str| {
        let json = format!(r#"{{"scope": {{"key": "k"}}, {more}}}"#);
        let fault = put(&json).unwrap_err();
        (fault.field, fault.why)
    };
    for (unit, most) in [
        ("money", "2305843009.213693951 dollars"),
        ("tokens", "2305843009213693951 tokens"),
    ] {
        let (field, why) = told(&format!(r#""limit": "-1", "unit": "{unit}", "period": "daily""#));
        assert_eq!(field, "limit");
        assert_eq!(why, format!("must be above zero and at most {most}"));
    }
    for days in [0, 3661] {
        let (field, why) = told(&format!(
            r#""limit": "1", "period": "days", "first_day": "2026-01-01", "days": {days}"#
        ));
        assert_eq!(
            (field, why),
            ("days", format!("is {days} days; from 1 to 3660 are allowed"))
        );
    }
    let raised = |amount: &str| {
        let raise = RaiseCreate {
            amount: Amount(amount.into()),
            until: Text(UnixMillis(10)),
            reason: String::new(),
        };
        let terms = terms::Terms::money(NanoUsd(1));
        raise.into_stored(&terms, AdminId::trusted("ada"), UnixMillis(0))
    };
    for amount in ["-1", "0", "2305843009.213693951"] {
        let fault = raised(amount).unwrap_err();
        assert_eq!(fault.field, "amount", "{amount}");
        assert!(fault.why.contains("213693951 dollars"), "{fault}");
    }
    assert!(raised("2305843009.21369395").is_ok());
}
