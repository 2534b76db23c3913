//! Declared documents against the cluster: what differs, and making it so. Nothing that no document names is touched.

use serde_json::{Map, Value, json};

use crate::client::{Client, segment};
use crate::documents::Document;
use crate::exit::{Failure, Problem};
use crate::{nouns, output};

/// What there is to do for one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is as described.
    Same,
    /// It does not exist.
    Create,
    /// These fields differ: name, there, wanted.
    Update(Vec<(String, Value, Value)>),
    /// It is as described as far as can be told: its secret cannot be read back. `apply` writes it again.
    Rewrite,
}

impl Change {
    fn mark(&self) -> char {
        match self {
            Self::Same => '=',
            Self::Create => '+',
            Self::Update(_) => '~',
            Self::Rewrite => '?',
        }
    }

    /// Whether something is known to differ.
    pub(crate) fn is_difference(&self) -> bool {
        match self {
            Self::Same | Self::Rewrite => false,
            Self::Create | Self::Update(_) => true,
        }
    }

    /// One line per resource, one more per differing field.
    pub(crate) fn describe(&self, document: &Document) -> String {
        let mut text = format!("{} {}", self.mark(), document.title());
        match self {
            Self::Rewrite => text.push_str("  (its secret cannot be compared; `apply` writes it again)"),
            Self::Update(fields) => {
                for (name, there, wanted) in fields {
                    text.push_str(&format!("\n    {name}: {there} -> {wanted}"));
                }
            }
            Self::Same | Self::Create => {}
        }
        text
    }
}

/// Compares one document with what the cluster has.
pub(crate) async fn compare(client: &Client, document: &Document) -> Result<Change, Failure> {
    if document.noun.kind == "price" {
        return compare_price(client, document).await;
    }
    let Some(there) = client.find(&path(document)?).await? else {
        return Ok(Change::Create);
    };
    let holds_secret = document.noun.kind == "credential";
    let mut wanted = document.fields.clone();
    if holds_secret {
        wanted.remove("secret"); // it goes in and never comes out
    }
    let fields = differences(&wanted, &there);
    Ok(if fields.is_empty() {
        if holds_secret {
            Change::Rewrite
        } else {
            Change::Same
        }
    } else {
        Change::Update(fields)
    })
}

/// The write that makes one document so.
struct Write {
    /// A new price version is posted; all else is put.
    posts: bool,
    path: String,
    body: Value,
}

fn write(document: &Document) -> Result<Write, Failure> {
    let mut fields = document.fields.clone();
    let posts = document.noun.kind == "price";
    let path = if posts {
        document.noun.plural.to_owned()
    } else {
        path(document)?
    };
    if document.noun.kind == "credential" {
        fields.remove("provider"); // it is in the path
    }
    let body = Value::Object(fields);
    Ok(Write { posts, path, body })
}

/// Makes one document so.
pub(crate) async fn make(client: &Client, document: &Document) -> Result<Value, Failure> {
    let Write { posts, path, body } = write(document)?;
    let written = match posts {
        true => client.post(&path, &body).await,
        false => client.put(&path, &body, None).await,
    };
    written.map_err(|failure| placed(failure, document))
}

/// Asks the server what it would refuse if these documents were made so, in this order: the first refusal, with the place of its
/// document in front.
pub(crate) async fn refusal(client: &Client, documents: &[&Document]) -> Result<Option<Failure>, Failure> {
    if documents.is_empty() {
        return Ok(None);
    }
    let tried = |document: &&Document| {
        let Write { posts, path, body } = write(document)?;
        let method = if posts { "POST" } else { "PUT" };
        Ok(json!({"method": method, "path": path, "body": body}))
    };
    let writes = documents.iter().map(tried).collect::<Result<Vec<_>, Failure>>()?;
    let mut answer = client.post("dry-run", &json!({ "writes": writes })).await?;
    // Those after it may be refused for its sake alone.
    let Some(mut first) = answer["refusals"].get_mut(0).map(Value::take) else {
        return Ok(None);
    };
    let index = first["write"]
        .as_u64()
        .and_then(|index| usize::try_from(index).ok());
    let problem: Problem = serde_json::from_value(first["problem"].take()).unwrap_or_default();
    let failure = Failure::Refused(problem);
    Ok(Some(match index.and_then(|index| documents.get(index)) {
        Some(document) => placed(failure, document),
        None => failure,
    }))
}

/// A refusal with the place of the document in front.
fn placed(failure: Failure, document: &Document) -> Failure {
    match failure {
        Failure::Refused(mut problem) => {
            let text = if problem.detail.is_empty() {
                &problem.title
            } else {
                &problem.detail
            };
            problem.detail = format!("{} ({}): {text}", document.title(), document.source);
            Failure::Refused(problem)
        }
        other => other,
    }
}

fn path(document: &Document) -> Result<String, Failure> {
    let missing = |field: &str| Failure::Usage(format!("{}: `{field}` is missing", document.source));
    let id = document.id.as_deref().ok_or_else(|| missing("id"))?;
    if document.noun.kind == "credential" {
        let provider = document.fields.get("provider").and_then(Value::as_str);
        let provider = provider.ok_or_else(|| missing("provider"))?;
        return nouns::path(document.noun, &format!("{provider}/{id}"));
    }
    nouns::path(document.noun, id)
}

/// Prices are never replaced: a new version is added when the newest one of the endpoint says something else.
async fn compare_price(client: &Client, document: &Document) -> Result<Change, Failure> {
    let endpoint = document
        .fields
        .get("endpoint")
        .and_then(Value::as_str)
        .ok_or_else(|| {
            Failure::Usage(format!(
                "{}: `endpoint` is missing; a price belongs to one",
                document.source
            ))
        })?;
    let answer = client
        .pages(&format!("prices?endpoint={}", segment(endpoint)))
        .await?;
    let rows = output::rows(&answer);
    let of_endpoint = |row: &&&Value| row.get("endpoint").and_then(Value::as_str) == Some(endpoint);
    if document.fields.contains_key("effective_from") {
        let described = |row: &&Value| differences(&document.fields, row).is_empty();
        let found = rows
            .iter()
            .filter(of_endpoint)
            .copied()
            .any(|row| described(&row));
        return Ok(if found { Change::Same } else { Change::Create });
    }
    // RFC 3339 in UTC sorts as text.
    let from = |row: &&&Value| row.get("effective_from").map(Value::to_string);
    let Some(newest) = rows.iter().filter(of_endpoint).max_by_key(from) else {
        return Ok(Change::Create);
    };
    let fields = differences(&document.fields, newest);
    Ok(if fields.is_empty() {
        Change::Same
    } else {
        Change::Update(fields)
    })
}

/// The wanted fields that are otherwise in what is there. Fields that only the server knows do not count.
fn differences(wanted: &Map<String, Value>, there: &Value) -> Vec<(String, Value, Value)> {
    let mut out = Vec::new();
    for (name, wanted) in wanted {
        let there = there.get(name).unwrap_or(&Value::Null);
        if !same(wanted, there) {
            out.push((name.clone(), there.clone(), wanted.clone()));
        }
    }
    out
}

/// Equality, but for the spellings of one amount (`0.10` and `0.1`) and one instant (`Z` with and without a fraction).
fn same(wanted: &Value, there: &Value) -> bool {
    match (wanted, there) {
        (Value::String(a), Value::String(b)) => a == b || normal(a).is_some_and(|a| Some(a) == normal(b)),
        (Value::Object(a), Value::Object(b)) => {
            let absent = Value::Null;
            a.iter().all(|(name, a)| same(a, b.get(name).unwrap_or(&absent)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

/// A number or an instant that stands in text, in a form that compares.
fn normal(text: &str) -> Option<i64> {
    let amount = tollway_shared::money::NanoUsd::parse(text)
        .ok()
        .map(|amount| amount.0);
    amount.or_else(|| tollway_shared::time::UnixMillis::parse_rfc3339(text).map(|at| at.0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::client::Target;
    use crate::declared;
    use axum::body::Bytes;
    use axum::http::{Method, StatusCode, Uri};
    use axum::response::{IntoResponse as _, Response};

    /// A keeper of JSON by path that speaks as much of the admin API as documents need.
    #[derive(Clone, Default)]
    struct Store {
        kept: Arc<Mutex<BTreeMap<String, Value>>>,
        writes: Arc<Mutex<Vec<String>>>,
    }

    impl Store {
        fn answer(&self, method: &Method, uri: &Uri, body: &Bytes) -> Response {
            let path = uri.path().trim_start_matches("/admin/v1/").to_owned();
            let mut kept = self.kept.lock().unwrap();
            if *method == Method::GET {
                if path == "prices" {
                    let rows: Vec<_> = kept
                        .iter()
                        .filter(|(path, _)| path.starts_with("prices/"))
                        .collect();
                    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row.clone()).collect();
                    return axum::Json(json!({"data": rows, "next": null})).into_response();
                }
                return match kept.get(&path) {
                    Some(found) => axum::Json(found.clone()).into_response(),
                    None => {
                        let problem = json!({"title": "No such record", "detail": "", "code": "not_found"});
                        (StatusCode::NOT_FOUND, axum::Json(problem)).into_response()
                    }
                };
            }
            let mut body: Value = serde_json::from_slice(body).unwrap();
            if path == "dry-run" {
                let writes = body["writes"].as_array().unwrap();
                let is_wrong = |write: &Value| write["body"]["context_tokens"] == json!(0);
                let refused = writes.iter().enumerate().filter(|(_, write)| is_wrong(write));
                let problem = json!({"detail": "must be above 0", "field": "context_tokens", "code": "invalid", "status": 422});
                let refusals: Vec<_> = refused
                    .map(|(index, _)| json!({"write": index, "problem": problem}))
                    .collect();
                return axum::Json(json!({"refusals": refusals, "revision": 1})).into_response();
            }
            if body.get("context_tokens") == Some(&json!(0)) {
                let problem =
                    json!({"detail": "must be above 0", "field": "context_tokens", "code": "invalid"});
                return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(problem)).into_response();
            }
            self.writes.lock().unwrap().push(format!("{method} {path}"));
            let place = match method {
                &Method::POST => {
                    let at = format!("2026-11-22T00:00:{:02}.000Z", kept.len());
                    body["effective_from"] = at.into();
                    format!("{path}/{}", kept.len())
                }
                _ => path,
            };
            body["revision"] = kept.len().into();
            kept.insert(place, body.clone());
            axum::Json(body).into_response()
        }

        async fn serve(&self) -> Client {
            crate::install_crypto();
            let store = self.clone();
            let handler =
                async move |method: Method, uri: Uri, body: Bytes| store.answer(&method, &uri, &body);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let routes = axum::Router::new().fallback(handler);
            tokio::spawn(async move { axum::serve(listener, routes).await });
            let target = Target {
                urls: vec![url],
                key: "ak".into(),
                ca: None,
            };
            Client::new(target).unwrap()
        }

        fn writes(&self) -> Vec<String> {
            std::mem::take(&mut self.writes.lock().unwrap())
        }
    }

    async fn apply(client: &Client, text: &str) -> Result<(), Failure> {
        for document in crate::documents::parse(text, "f").unwrap() {
            if compare(client, &document).await? != Change::Same {
                make(client, &document).await?;
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_was_applied_once_is_not_written_again_until_it_differs() {
        let store = Store::default();
        let client = store.serve().await;
        let text = r#"[{"kind":"model","id":"a/b","context_tokens":5},
            {"kind":"price","endpoint":"p/a/b","prices":{"input":"0.10","output":"1"}}]"#;
        apply(&client, text).await.unwrap();
        assert_eq!(store.writes(), ["PUT models/a%2Fb", "POST prices"]);
        apply(&client, text).await.unwrap();
        assert!(store.writes().is_empty());
        apply(&client, &text.replace("0.10", "0.20")).await.unwrap();
        assert_eq!(store.writes(), ["POST prices"]);
        // An older version says this, but it is the newest that counts.
        apply(&client, text).await.unwrap();
        assert_eq!(store.writes(), ["POST prices"]);
    }

    #[tokio::test]
    async fn a_secret_is_written_again_below_its_provider_and_a_refusal_names_the_document() {
        let store = Store::default();
        let client = store.serve().await;
        let secret = r#"{"kind":"credential","id":"c","provider":"p","secret":"s"}"#;
        apply(&client, secret).await.unwrap();
        apply(&client, secret).await.unwrap();
        assert_eq!(store.writes(), ["PUT providers/p/credentials/c"; 2]);
        let differs = async |text: &str| {
            let document = crate::documents::parse(text, "f").unwrap().remove(0);
            compare(&client, &document).await.unwrap()
        };
        let path = "providers/p/credentials/c";
        store.kept.lock().unwrap().insert(
            path.into(),
            json!({"id": "c", "provider": "p", "version": 2, "regions": ["eu"]}),
        );
        assert!(!differs(secret).await.is_difference(), "nothing that can be told");
        let moved = secret.replace("\"secret\"", "\"regions\":[\"us\"],\"secret\"");
        let Change::Update(fields) = differs(&moved).await else {
            panic!("its regions differ")
        };
        assert_eq!(fields, [("regions".into(), json!(["eu"]), json!(["us"]))]);
        let bad = r#"{"kind":"model","id":"a/b","context_tokens":0}"#;
        let failure = apply(&client, bad).await.unwrap_err();
        assert_eq!(failure.code(), 1);
        let text = failure.to_string();
        assert!(
            text.contains("context_tokens") && text.contains("model a/b (f, resource 1)"),
            "{text}"
        );
        let price = r#"{"kind":"price","endpoint":"p/a/b","prices":{"input":"1","output":"2"}}"#;
        let price = crate::documents::parse(price, "f").unwrap().remove(0);
        let line = Change::Create.describe(&price);
        assert_eq!(line, "+ price of p/a/b", "a line names what it is about");
    }

    #[tokio::test]
    async fn what_the_server_would_refuse_is_neither_approved_nor_half_written() {
        let store = Store::default();
        let client = store.serve().await;
        let text = r#"[{"kind":"model","id":"a/a","context_tokens":5},{"kind":"model","id":"a/b","context_tokens":0},
            {"kind":"price","endpoint":"p/a/b","prices":{"input":"1","output":"2"}}]"#;
        let documents = crate::documents::parse(text, "f").unwrap();
        let format = crate::output::Format::Json;
        for dry_run in [true, false] {
            let failure = declared::apply(&client, &documents, format, dry_run)
                .await
                .unwrap_err();
            assert_eq!(failure.code(), 1, "{failure}");
            let text = failure.to_string();
            assert!(
                text.contains("context_tokens") && text.contains("model a/b (f, resource 2)"),
                "{text}"
            );
        }
        assert_eq!(
            declared::diff(&client, &documents, format)
                .await
                .unwrap_err()
                .code(),
            1
        );
        assert!(store.writes().is_empty());
        let sound = crate::documents::parse(&text.replace(":0", ":7"), "f").unwrap();
        assert_eq!(
            declared::diff(&client, &sound, format).await.unwrap_err().code(),
            7
        );
        declared::apply(&client, &sound, format, true).await.unwrap();
        assert!(store.writes().is_empty());
        declared::apply(&client, &sound, format, false).await.unwrap();
        assert_eq!(
            store.writes(),
            ["PUT models/a%2Fa", "PUT models/a%2Fb", "POST prices"]
        );
        declared::diff(&client, &sound, format).await.unwrap();
    }

    fn differing(wanted: Value, there: Value) -> Vec<String> {
        let names = differences(wanted.as_object().unwrap(), &there);
        names.into_iter().map(|(name, _, _)| name).collect()
    }

    #[test]
    fn spellings_of_one_amount_and_one_instant_are_the_same() {
        let there = json!({"limit": "0.1", "from": "2026-11-22T00:00:00.000Z", "revision": 4});
        assert!(
            differing(
                json!({"limit": "0.10", "from": "2026-11-22T00:00:00Z"}),
                there.clone()
            )
            .is_empty()
        );
        assert_eq!(differing(json!({"limit": "0.2"}), there), ["limit"]);
    }

    #[test]
    fn what_only_the_server_knows_is_no_difference_but_what_it_lacks_is() {
        let there = json!({"name": "x", "prices": {"input": "1", "output": "2"}});
        assert!(differing(json!({"prices": {"input": "1.0"}}), there.clone()).is_empty());
        assert_eq!(differing(json!({"team": "t"}), there.clone()), ["team"]);
        assert!(differing(json!({"team": null}), there).is_empty());
    }
}
