//! What can be asked of analytics, and how it is answered.

use serde_json::{Value, json};
use tollway_proto::push::v1::{Latencies, SumGroup, TokenSums};

use super::*;

/// As the code has them.
const DAYS: i64 = 30;
const HOUR_MS: i64 = 3_600_000;

/// 2026-11-22T18:21:04.125Z
const NOW: UnixMillis = UnixMillis(1_795_371_664_125);

fn read(body: &Value) -> Result<Query, Fault> {
    Query::read(body.to_string().as_bytes(), NOW)
}

fn asked(body: &Value) -> SumsQuestion {
    match read(body).unwrap().question() {
        Question::Sums(question) => question,
        other => panic!("not sums: {other:?}"),
    }
}

fn group(values: &[&str], requests: u64) -> SumGroup {
    SumGroup {
        values: values.iter().map(|text| (*text).to_owned()).collect(),
        requests,
        failed: 1,
        billed: 12_100 * requests.cast_signed(),
        byok_charge: 7,
        tokens: Some(TokenSums {
            input: 6,
            input_cache_read: 2,
            output: 3,
            ..TokenSums::default()
        }),
        total_ms: Some(Latencies {
            p50: Some(120),
            p90: None,
            p99: None,
        }),
        ..SumGroup::default()
    }
}

#[test]
fn rows_have_the_names_that_were_asked_for_and_exact_values() {
    let query = read(&json!({
        "metrics": ["total_usage", "tokens_total", "cache_hit_rate", "error_rate", "p50_latency", "p90_latency"],
        "dimensions": ["model", "external_user"], "granularity": "month",
    }));
    let sums = Sums {
        groups: vec![group(&["2026-11", "a/m", ""], 4)],
        has_more: false,
    };
    let query = query.unwrap();
    let body = serde_json::to_string(&query.body(&sums, 3).unwrap()).unwrap();
    let row = r#"{"date":"2026-11-01","model":"a/m","external_user":null,"total_usage":0.000048407,"tokens_total":11,"cache_hit_rate":0.25,"error_rate":0.25,"p50_latency":120,"p90_latency":null}"#;
    let metadata = r#""metadata":{"query_time_ms":3,"row_count":1,"truncated":false}"#;
    assert_eq!(body, format!(r#"{{"data":{{"data":[{row}],{metadata}}}}}"#));
    assert!(
        query
            .body(
                &Sums {
                    groups: vec![group(&["a/m"], 1)],
                    has_more: false
                },
                0
            )
            .is_none()
    );
}

#[test]
fn rows_are_sorted_before_they_are_cut_and_a_cut_is_told() {
    let sums = |has_more| Sums {
        groups: vec![
            group(&["2026-11-20", "a"], 1),
            group(&["2026-11-20", "b"], 3),
            group(&["2026-11-21", "a"], 2),
            group(&["2026-11-22", "b"], 3),
        ],
        has_more,
    };
    let counts = |more: Value, has_more| {
        let mut body = json!({"metrics": ["request_count"], "dimensions": ["model"], "granularity": "day"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let query = read(&body).unwrap();
        let found = serde_json::to_value(query.body(&sums(has_more), 0).unwrap()).unwrap();
        let rows = found["data"]["data"].as_array().unwrap().clone();
        let shown = rows.iter().map(|row| {
            let day = row["date"].as_str().unwrap()[8..].to_owned();
            format!("{day}{}{}", row["model"].as_str().unwrap(), row["request_count"])
        });
        let shown: Vec<String> = shown.collect();
        (
            shown.join(" "),
            found["data"]["metadata"]["truncated"] == json!(true),
        )
    };
    let by = |field: &str, direction: &str| json!({"field": field, "direction": direction});
    for (more, expected, cut) in [
        (json!({}), "20a1 20b3 21a2 22b3", false),
        (
            json!({"order_by": by("request_count", "desc")}),
            "20b3 22b3 21a2 20a1",
            false,
        ),
        (
            json!({"order_by": by("date", "desc"), "limit": 2}),
            "22b3 21a2",
            true,
        ),
        (
            json!({"order_by": by("model", "asc")}),
            "20a1 21a2 20b3 22b3",
            false,
        ),
        (json!({"group_limit": 1}), "20a1 20b3", true),
    ] {
        assert_eq!(counts(more.clone(), false), (expected.to_owned(), cut), "{more}");
    }
    assert!(counts(json!({}), true).1, "there was more than was read");
}

#[test]
fn what_is_asked_reaches_the_control_plane_in_its_words() {
    let question = asked(&json!({"metrics": ["request_count"]}));
    let now = NOW.0.div_euclid(HOUR_MS);
    assert_eq!(
        (question.from_hour, question.until_hour),
        (now - DAYS * 24, now + 1)
    );
    assert!(!question.latencies && !question.own_credentials && question.by.is_empty());
    let question = asked(&json!({
        "metrics": ["p90_latency", "byok_usage"], "dimensions": ["api_key_id"], "granularity": "week",
        "time_range": {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"},
        "filters": [
            {"field": "model", "operator": "eq", "value": "a/m"},
            {"field": "external_user", "operator": "in", "value": ["ann", 7], "include_unset": true},
            {"field": "external_user", "operator": "not_in", "value": ["bob"]},
            {"field": "provider", "operator": "neq", "value": "p"},
        ],
    }));
    assert!(question.latencies && question.own_credentials);
    assert_eq!(question.until_hour - question.from_hour, 24);
    assert_eq!(question.by, [i32::from(SumField::Week), i32::from(SumField::Key)]);
    let shown: Vec<_> = question
        .filters
        .iter()
        .map(|filter| (filter.field(), filter.values.join(","), filter.none_of))
        .collect();
    assert_eq!(
        shown,
        [
            (SumField::Model, "a/m".to_owned(), false),
            (SumField::User, "ann,7,".to_owned(), false),
            (SumField::User, "bob,".to_owned(), true),
            (SumField::Provider, "p".to_owned(), true),
        ]
    );
    let range = json!({"start": "2026-11-01T00:30:00Z", "end": "2026-11-01T01:00:01Z"});
    let query = read(&json!({"metrics": ["request_count"], "time_range": range})).unwrap();
    let warning = "sums are of whole hours: from 2026-11-01T00:00:00.000Z to 2026-11-01T02:00:00.000Z";
    assert_eq!(query.warnings, [warning]);
}

#[test]
fn what_cannot_be_asked_is_refused_by_its_name() {
    let metrics = json!(["request_count"]);
    let filter = |field: &str, operator: &str, value: Value| json!({"metrics": ["request_count"], "filters": [{"field": field, "operator": operator, "value": value}]});
    let with = |name: &str, value: Value| {
        let mut body = json!({"metrics": metrics});
        body[name] = value;
        body
    };
    for (body, param) in [
        (json!({"metrics": []}), "metrics"),
        (json!({"metrics": ["avg_latency"]}), "metrics"),
        (json!({"metrics": ["request_count", "request_count"]}), "metrics"),
        (
            with("dimensions", json!(["model", "provider", "api_key_id"])),
            "dimensions",
        ),
        (with("dimensions", json!(["model", "model"])), "dimensions"),
        (with("dimensions", json!(["app"])), "dimensions"),
        (with("granularity", json!("minute")), "granularity"),
        (
            with(
                "time_range",
                json!({"start": "2026-11-01T00:00:00Z", "end": "2026-11-01T00:00:00Z"}),
            ),
            "time_range.end",
        ),
        (
            with(
                "time_range",
                json!({"start": "yesterday", "end": "2026-11-01T00:00:00Z"}),
            ),
            "time_range.start",
        ),
        (
            with("order_by", json!({"field": "tokens_total", "direction": "asc"})),
            "order_by.field",
        ),
        (
            with("order_by", json!({"field": "date", "direction": "asc"})),
            "order_by.field",
        ),
        (
            with("order_by", json!({"field": "request_count", "direction": "up"})),
            "order_by.direction",
        ),
        (with("limit", json!(0)), "limit"),
        (with("limit", json!(-1)), "limit"),
        (with("limit", json!(1.5)), "limit"),
        (with("limit", json!("ten")), "limit"),
        (with("filter", json!([])), "filter"),
        (with("dimensions", json!("model")), "dimensions"),
        (
            with("filters", json!([{"field": "model"}])),
            "filters[0].operator",
        ),
        (
            with(
                "filters",
                json!([{"field": "model", "operator": "eq", "value": "x", "colour": 1}]),
            ),
            "filters[0].colour",
        ),
        (filter("model", "eq", json!({})), "filters[0].value"),
        (
            with("time_range", json!({"start": "", "end": "", "until": ""})),
            "time_range.until",
        ),
        (
            with(
                "order_by",
                json!({"field": "request_count", "direction": "asc", "by": 1}),
            ),
            "order_by.by",
        ),
        (json!([metrics]), "body"),
        (json!(null), "body"),
        (json!({}), "metrics"),
        (with("group_limit", json!(10_001)), "group_limit"),
        (with("classifier_filters", json!({})), "classifier_filters"),
        (filter("app", "eq", json!("x")), "filters.field"),
        (filter("model", "gt", json!("x")), "filters.operator"),
        (filter("model", "eq", json!(["x"])), "filters.value"),
        (filter("model", "in", json!("x")), "filters.value"),
    ] {
        let fault = read(&body).unwrap_err();
        assert_eq!((fault.status(), fault.param()), (400, Some(param)), "{body}");
        let text = fault.to_string();
        assert!(
            text.contains(&format!("`{param}`")) && !text.contains("struct"),
            "{text}"
        );
    }
    let twice = Query::read(br#"{"metrics": ["request_count"], "metrics": []}"#, NOW);
    assert_eq!(twice.unwrap_err().param(), Some("metrics"));
    assert_eq!(Query::read(b"{", NOW).unwrap_err().spec().code, "invalid_json");
}

#[test]
fn everything_that_meta_names_can_be_asked() {
    let meta = serde_json::to_value(names::meta()).unwrap();
    let list = |name: &str| meta[name].as_array().unwrap().clone();
    let metrics: Vec<Value> = list("metrics")
        .iter()
        .map(|metric| metric["name"].clone())
        .collect();
    assert!(metrics.len() > 10);
    let query = json!({"metrics": metrics});
    read(&query).unwrap();
    for dimension in list("dimensions") {
        read(&json!({"metrics": ["request_count"], "dimensions": [dimension["name"]]})).unwrap();
    }
    for granularity in list("granularities") {
        read(&json!({"metrics": ["request_count"], "granularity": granularity["name"]})).unwrap();
    }
    for operator in list("operators") {
        let value = if operator["value_type"] == "array" {
            json!(["x"])
        } else {
            json!("x")
        };
        let filter = json!({"field": "model", "operator": operator["name"], "value": value});
        read(&json!({"metrics": ["request_count"], "filters": [filter]})).unwrap();
    }
}
