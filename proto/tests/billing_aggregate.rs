//! The documents under `proto/` describe the aggregates that the code really writes.

use serde_json::Value;
use tollway_proto::billing::{BillingAggregate, DATA_SCHEMA, EVENT_TYPE, TOPIC};
use tollway_shared::time::UnixMillis;

const SCHEMA: &str = include_str!("../billing-aggregate.v1.schema.json");
const ASYNCAPI: &str = include_str!("../asyncapi.yaml");
const EXAMPLE: &str = include_str!("../examples/billing-aggregate.v1.json");

#[test]
fn an_aggregate_is_as_the_schema_says_and_nothing_is_missing_in_either() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let example: BillingAggregate = serde_json::from_str(EXAMPLE).unwrap();
    let written = serde_json::to_value(&example).unwrap();
    assert_eq!(written, serde_json::from_str::<Value>(EXAMPLE).unwrap());
    assert!(validator.is_valid(&written));
    let described = schema["properties"].as_object().unwrap();
    assert_eq!(
        described.keys().collect::<Vec<_>>(),
        written.as_object().unwrap().keys().collect::<Vec<_>>()
    );
    for field in described.keys() {
        let mut bad = written.clone();
        bad.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&bad), "without `{field}`");
        bad[field] = serde_json::json!([7]);
        assert!(!validator.is_valid(&bad), "`{field}` of a wrong type");
    }
}

#[test]
fn the_channel_is_described_with_the_names_in_the_code() {
    for text in [
        TOPIC,
        EVENT_TYPE,
        DATA_SCHEMA,
        "billing-aggregate.v1.schema.json",
        "cleanup.policy: [compact]",
    ] {
        assert!(ASYNCAPI.contains(text), "asyncapi.yaml does not name `{text}`");
    }
    let example: BillingAggregate = serde_json::from_str(EXAMPLE).unwrap();
    assert_eq!(example.key(), "acme/2026-11-22T18:00:00.000Z");
    let described = ASYNCAPI
        .split_once("    billingHeaders:\n      type: object")
        .unwrap()
        .1;
    for (name, _) in example.headers(UnixMillis(0)) {
        assert!(
            described.contains(&format!("\n        {name}:\n")),
            "`{name}` is not described"
        );
    }
}
