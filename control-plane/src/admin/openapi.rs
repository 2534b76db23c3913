//! The OpenAPI document: what the handlers state, and what is the same for all of them stated once.
//!
//! Checked in as `proto/admin.openapi.json`; a test fails when they differ, so that a changed surface is a visible diff.

use serde_json::{Map, Value, json};

use super::auth::SCHEME;

/// The document that the router collected, completed. Paths are as the router knows them: see [`published`].
pub(crate) fn completed(collected: utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(collected).expect("the document is plain JSON");
    document["info"] = json!({
        "title": "Tollway admin API",
        "version": "1",
        "description": "Every write carries its revision; `security` lists the roles that may call an operation.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    document["components"]["securitySchemes"][SCHEME] = json!({
        "type": "http",
        "scheme": "bearer",
        "description": "An admin key: `ak-tw-v1-…`.",
    });
    for (path, operations) in entries(&mut document["paths"]) {
        for (method, operation) in entries(operations) {
            complete(path, method, operation);
        }
    }
    document
}

/// The document as it is published: a wildcard segment is an ordinary parameter there.
pub(crate) fn published(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(paths) = document["paths"].as_object_mut() {
        *paths = std::mem::take(paths)
            .into_iter()
            .map(|(path, operations)| (path.replace("{*", "{"), operations))
            .collect();
    }
    document
}

fn entries(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(Map::iter_mut)
}

fn complete(path: &str, method: &str, operation: &mut Value) {
    operation["operationId"] = operation_id(path, method).into();
    operation["responses"]["default"] = json!({
        "description": "A refusal.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    });
    let mut parameters = match operation.get_mut("parameters") {
        Some(Value::Array(parameters)) => std::mem::take(parameters),
        _ => Vec::new(),
    };
    let public = operation
        .get("security")
        .is_none_or(|security| security[0].get(SCHEME).is_none());
    match method {
        "get" => {
            parameters.push(parameter(
                "consistency",
                "query",
                json!({"type": "string", "enum": ["linearizable", "stale"], "default": "linearizable"}),
                "`stale` answers from this replica without asking the others, and says so in `x-tollway-consistency`.",
            ));
            if is_list(operation) {
                let limit = json!({"type": "integer", "minimum": 1, "maximum": tollway_proto::admin::PAGE_ROWS_MAX,
                    "default": tollway_proto::admin::PAGE_ROWS});
                parameters.push(parameter("limit", "query", limit, "Most rows of one page."));
                let after = "The `next` of the page before.";
                parameters.push(parameter("after", "query", json!({"type": "string"}), after));
            }
        }
        _ if public => {}
        _ => {
            let about = "Refuses the write unless the record is at this revision; 0 = it must not exist yet.";
            parameters.push(parameter(
                "if_revision",
                "query",
                json!({"type": "integer", "minimum": 0}),
                about,
            ));
            let about = "A retry with the same key within 24 hours happens once and gets the first answer.";
            let schema = json!({"type": "string", "maxLength": super::exchange::IDEMPOTENCY_BYTES_MAX});
            parameters.push(parameter("Idempotency-Key", "header", schema, about));
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
}

fn parameter(name: &str, place: &str, schema: Value, about: &str) -> Value {
    json!({"name": name, "in": place, "required": false, "description": about, "schema": schema})
}

fn is_list(operation: &Value) -> bool {
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
    let name = schema
        .as_str()
        .and_then(|name| name.rsplit('/').next())
        .unwrap_or_default();
    name.starts_with("Page") || name == "Nodes" || name == "Usage"
}

/// `PUT /admin/v1/models/{*id}` → `put_models_id`.
fn operation_id(path: &str, method: &str) -> String {
    let words = path
        .trim_start_matches("/admin/v1/")
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/admin.openapi.json");

    #[test]
    fn the_checked_in_document_is_the_one_that_is_served() {
        let (_, document) = super::super::collected();
        let served = serde_json::to_string_pretty(&published(&document)).unwrap() + "\n";
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(CHECKED_IN, &served).unwrap();
        }
        let kept = std::fs::read_to_string(CHECKED_IN).unwrap_or_default();
        assert!(
            kept == served,
            "the admin API changed: run this test with UPDATE_OPENAPI=1 and look at the diff"
        );
    }

    #[test]
    fn the_document_names_the_values_that_the_server_reads() {
        let (_, document) = super::super::collected();
        let document = published(&document);
        for (schema, values) in [
            (
                "Period",
                json!(["daily", "weekly", "monthly", "lifetime", "days"]),
            ),
            ("BudgetMode", json!(["hard", "clamp", "soft"])),
            ("Dialect", json!(["openai", "anthropic"])),
        ] {
            assert_eq!(document["components"]["schemas"][schema]["enum"], values);
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        fn walk(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|field| walk(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
                _ => {}
            }
        }
        let (_, document) = super::super::collected();
        let mut references = Vec::new();
        walk(&document, &mut references);
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn operation_ids_are_unique() {
        let (_, mut document) = super::super::collected();
        let mut ids = Vec::new();
        for (_, operations) in entries(&mut document["paths"]) {
            for (_, operation) in entries(operations) {
                ids.push(operation["operationId"].as_str().unwrap().to_owned());
            }
        }
        ids.sort();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
