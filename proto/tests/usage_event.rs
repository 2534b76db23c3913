//! The documents under `proto/` describe the events that the code really writes.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;

use serde_json::Value;
use tollway_proto::spool::OutcomeRecord;
use tollway_proto::usage::{DATA_SCHEMA, EVENT_TYPE, EndState, TOPIC, UsageEvent, UsageSource};
use tollway_shared::cost::{self, Tier};
use tollway_shared::time::UnixMillis;

const SCHEMA: &str = include_str!("../usage-event.v1.schema.json");
const ASYNCAPI: &str = include_str!("../asyncapi.yaml");
const EXAMPLE: &str = include_str!("../examples/usage-event.v1.json");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

/// One event per way to end, and with every optional field once there and once not.
fn events() -> Vec<UsageEvent> {
    let full: UsageEvent = serde_json::from_str(EXAMPLE).unwrap();
    [
        EndState::Completed,
        EndState::Cancelled,
        EndState::Failed,
        EndState::Interrupted,
    ]
    .into_iter()
    .flat_map(|end| {
        let mut rich = full.clone();
        rich.end = end;
        rich.fault = Some("stream_broken".into());
        rich.estimator = Some("bytes/4".into());
        rich.prices.request = Some(tollway_shared::money::NanoUsd(1));
        rich.prices.input_cache_write = Some(rich.prices.input);
        rich.prices.input_cache_write_1h = Some(rich.prices.input);
        rich.prices.output_reasoning = Some(rich.prices.output);
        rich.prices.tiers = vec![Tier {
            above_prompt_tokens: 1,
            input: rich.prices.output,
            output: rich.prices.output,
            input_cache_read: Some(rich.prices.input),
            input_cache_write: None,
            input_cache_write_1h: None,
            output_reasoning: None,
        }];
        let mut poor = full.clone();
        poor.end = end;
        poor.usage_source = if end == EndState::Failed {
            UsageSource::None
        } else {
            UsageSource::Estimated
        };
        (poor.first_byte_at, poor.user, poor.fault) = (None, None, None);
        (poor.finish_reason, poor.estimator, poor.tenant.team) = (None, None, None);
        poor.prices.input_cache_read = None;
        poor.attempts.clear();
        poor.finished_at.0 = UnixMillis(0);
        [rich, poor]
    })
    .map(|mut event| {
        event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
        event
    })
    .collect()
}

#[test]
fn every_event_that_the_code_writes_is_valid() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for event in events() {
        let written: Value = serde_json::from_slice(&OutcomeRecord::of(&event).event).unwrap();
        let problems: Vec<String> = validator
            .iter_errors(&written)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(problems.is_empty(), "{:?}: {problems:#?}", event.end);
    }
}

#[test]
fn an_event_with_a_missing_or_wrong_field_is_invalid() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good: Value = serde_json::from_str(EXAMPLE).unwrap();
    assert!(validator.is_valid(&good));
    for field in good.as_object().unwrap().keys() {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&bad), "without `{field}`");
        bad[field] = serde_json::json!([7]);
        assert!(!validator.is_valid(&bad), "`{field}` of a wrong type");
    }
}

#[test]
fn the_schema_has_the_fields_of_the_event_and_describes_each() {
    let schema = schema();
    let event: Value = serde_json::to_value(&events()[0]).unwrap();
    check(&schema, &schema, &event, "event");
}

/// Same names on both sides, all required, all described; then the same for nested objects.
fn check(root: &Value, schema: &Value, value: &Value, path: &str) {
    let schema = resolved(root, schema);
    match value {
        Value::Object(fields) => {
            let written: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
            let properties = schema["properties"]
                .as_object()
                .unwrap_or_else(|| panic!("{path}: no properties"));
            let described: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
            let required: BTreeSet<&str> = schema["required"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(Value::as_str)
                .collect();
            assert_eq!(described, written, "{path}");
            assert_eq!(required, written, "{path}");
            for (name, property) in properties {
                let text = property["description"].as_str().unwrap_or_default();
                assert!(text.len() > 5, "{path}.{name} has no description");
                check(root, property, &fields[name], &format!("{path}.{name}"));
            }
        }
        Value::Array(items) => {
            for item in items {
                check(root, &schema["items"], item, path);
            }
        }
        _ => {}
    }
}

fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(name) => root.pointer(name.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

#[test]
fn the_channel_is_described_with_the_names_in_the_code() {
    let event = &events()[0];
    for text in [
        TOPIC,
        EVENT_TYPE,
        DATA_SCHEMA,
        "usage-event.v1.schema.json",
        "retention.ms: 2592000000",
    ] {
        assert!(ASYNCAPI.contains(text), "asyncapi.yaml does not name `{text}`");
    }
    let headers = ASYNCAPI.split_once("    headers:\n      type: object").unwrap().1;
    let required: BTreeSet<&str> = headers
        .lines()
        .filter_map(|line| line.strip_prefix("        - "))
        .collect();
    let written = event.headers();
    let written: BTreeSet<&str> = written.iter().map(|(name, _)| *name).collect();
    assert_eq!(required, written);
    for name in written {
        assert!(
            headers.contains(&format!("\n        {name}:\n")),
            "`{name}` is not described"
        );
    }
    assert_eq!(schema()["$id"], DATA_SCHEMA);
}
