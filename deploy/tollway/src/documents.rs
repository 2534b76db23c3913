//! Declarative documents: what `apply` and `diff` read. TOML or JSON, one resource or many in a file.
//!
//! A resource is `kind`, `id` and the fields of the admin API's PUT body of that kind. Many of them stand under
//! `[[resources]]` in TOML, in a list or under `resources` in JSON. The server judges the fields; this file only
//! the frame.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::exit::Failure;
use crate::nouns::{self, NOUNS, Noun};

/// Largest document file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One described resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// What it is.
    pub(crate) noun: &'static Noun,
    /// Its id; prices may leave it to the server.
    pub(crate) id: Option<String>,
    /// The PUT body.
    pub(crate) fields: Map<String, Value>,
    /// Where it was read, for messages.
    pub(crate) source: String,
}

impl Document {
    /// `kind id`, for people. A price is known by its endpoint.
    pub(crate) fn title(&self) -> String {
        let named = |name: &str| self.fields.get(name).and_then(Value::as_str);
        match (&self.id, named("endpoint")) {
            (Some(id), _) => format!("{} {id}", self.noun.kind),
            (None, Some(endpoint)) => format!("{} of {endpoint}", self.noun.kind),
            (None, None) => format!("{} (new)", self.noun.kind),
        }
    }
}

/// Reads files (`-` is the standard input) and puts their resources into an order in which each refers to earlier ones.
pub(crate) fn read(files: &[std::path::PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for file in files {
        let source = file.display().to_string();
        let text = contents(file).map_err(|error| Failure::Usage(format!("{source}: {error}")))?;
        documents.extend(parse(&text, &source)?);
    }
    if documents.is_empty() {
        return Err(Failure::Usage("the documents describe no resource".into()));
    }
    refuse_twice(&documents)?;
    let place = |document: &Document| NOUNS.iter().position(|noun| noun == document.noun);
    documents.sort_by_key(place); // stable: the order in the files decides within a kind
    Ok(documents)
}

/// Refuses two descriptions of one resource: which of them holds would be a matter of order.
fn refuse_twice(documents: &[Document]) -> Result<(), Failure> {
    let mut seen: BTreeMap<Vec<&str>, &Document> = BTreeMap::new();
    for document in documents {
        let field = |name: &str| {
            document
                .fields
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let key = match document.noun.kind {
            "credential" => vec![
                "credential",
                field("provider"),
                document.id.as_deref().unwrap_or_default(),
            ],
            // A version of an endpoint's price is known by when it begins.
            "price" => vec!["price", field("endpoint"), field("effective_from")],
            kind => vec![kind, document.id.as_deref().unwrap_or_default()],
        };
        if let Some(first) = seen.insert(key, document) {
            return Err(Failure::Usage(format!(
                "{}: {} is described twice, first in {}",
                document.source,
                document.title(),
                first.source
            )));
        }
    }
    Ok(())
}

fn contents(file: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin()
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?
    } else {
        std::fs::File::open(file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)?
    };
    if read as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

/// Reads one document text. JSON is recognised by its first character.
pub(crate) fn parse(text: &str, source: &str) -> Result<Vec<Document>, Failure> {
    let wrong = |detail: String| Failure::Usage(format!("{source}: {detail}"));
    let value: Value = if text.trim_start().starts_with(['{', '[']) && !looks_like_toml_table(text) {
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?
    } else {
        let table: toml::Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        plain(toml::Value::Table(table))
    };
    let resources = match value {
        Value::Array(list) => list,
        Value::Object(mut fields) if !fields.contains_key("kind") => match fields.remove("resources") {
            Some(Value::Array(list)) if fields.is_empty() => list,
            Some(_) => {
                return Err(wrong(
                    "beside `resources`, a list of resources, nothing else may stand".into(),
                ));
            }
            None if fields.is_empty() => Vec::new(),
            None => {
                let first = fields.keys().next().map_or("", String::as_str);
                return Err(wrong(format!(
                    "`kind` is missing, and `{first}` is not known here: a document is one resource with its `kind`, or many, each under `[[resources]]`"
                )));
            }
        },
        single => vec![single],
    };
    let one = |(place, resource)| document(resource, &format!("{source}, resource {}", place + 1));
    resources.into_iter().enumerate().map(one).collect()
}

/// `[[resources]]` and `[table]` start like a JSON list; no JSON list has a bare word after its bracket.
fn looks_like_toml_table(text: &str) -> bool {
    let inside = text.trim_start().trim_start_matches('[').trim_start();
    text.trim_start().starts_with('[') && inside.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn document(resource: Value, source: &str) -> Result<Document, Failure> {
    let wrong = |detail: String| Failure::Usage(format!("{source}: {detail}"));
    let Value::Object(mut fields) = resource else {
        return Err(wrong("a resource is a table with `kind` and `id`".into()));
    };
    let Some(Value::String(kind)) = fields.remove("kind") else {
        return Err(wrong("`kind` is missing".into()));
    };
    let Some(noun) = nouns::find(&kind).filter(|noun| noun.declared) else {
        let known = nouns::list(|noun| noun.declared);
        return Err(wrong(format!("`kind` is `{kind}`; documents describe: {known}")));
    };
    let id = match fields.remove("id") {
        Some(Value::String(id)) => Some(id),
        None if noun.kind == "price" => None,
        None => return Err(wrong("`id` is missing".into())),
        Some(_) => return Err(wrong("`id` must be text".into())),
    };
    // What its path needs: a fault that were found on the way would leave the resources before it written.
    let belongs_to = match noun.kind {
        "credential" => Some("provider"),
        "price" => Some("endpoint"),
        _ => None,
    };
    if let Some(field) = belongs_to {
        match fields.get(field) {
            Some(Value::String(_)) => {}
            Some(_) => return Err(wrong(format!("`{field}` must be text"))),
            None => {
                return Err(wrong(format!(
                    "`{field}` is missing; a {kind} belongs to one",
                    kind = noun.kind
                )));
            }
        }
    }
    Ok(Document {
        noun,
        id,
        fields,
        source: source.to_owned(),
    })
}

/// TOML as JSON: dates become their RFC 3339 text, which is what the admin API takes.
fn plain(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(at) => Value::String(at.to_string()),
        toml::Value::Array(items) => items.into_iter().map(plain).collect(),
        toml::Value::Table(table) => {
            let pairs = table.into_iter().map(|(name, value)| (name, plain(value)));
            Value::Object(pairs.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse(text, "f").unwrap_err().to_string()
    }

    #[test]
    fn toml_and_json_describe_the_same() {
        let toml = "[[resources]]\nkind = \"model\"\nid = \"a/b\"\ncontext_tokens = 5\nfrom = 2026-11-22T00:00:00Z\n";
        let json = r#"[{"kind":"model","id":"a/b","context_tokens":5,"from":"2026-11-22T00:00:00Z"}]"#;
        assert_eq!(parse(toml, "f").unwrap(), parse(json, "f").unwrap());
        let single = parse("kind = \"team\"\nid = \"t\"", "f").unwrap();
        assert_eq!(single[0].title(), "team t");
    }

    #[test]
    fn a_wrong_frame_is_named_with_its_place() {
        assert!(fault("id = \"x\"").contains("`kind` is missing"));
        assert!(fault("[{\"kind\":\"modell\",\"id\":\"x\"}]").contains("resource 1: `kind` is `modell`"));
        let singular = fault("[[resource]]\nkind = \"model\"\nid = \"a/b\"\n");
        assert!(
            singular.contains("`resource`") && singular.contains("`[[resources]]`"),
            "{singular}"
        );
        assert!(fault("kind = \"model\"").contains("`id` is missing"));
        let later = r#"[{"kind":"provider","id":"p"},{"kind":"credential","id":"c","secret":"s"}]"#;
        assert!(fault(later).contains("resource 2: `provider` is missing"));
        assert!(fault(r#"[{"kind":"price","prices":{}}]"#).contains("`endpoint` is missing"));
        assert!(fault(r#"[{"kind":"price","endpoint":[]}]"#).contains("`endpoint` must be text"));
        assert!(fault("kind = ").contains("line 1"));
        assert!(fault("{\"kind\": ").contains("line 1"));
        assert!(fault("[{\"kind\":\"key\",\"id\":\"x\"}]").contains("documents describe"));
    }

    #[test]
    fn a_resource_that_is_described_twice_is_refused_with_both_places() {
        let twice = |text: &str| {
            refuse_twice(&parse(text, "f").unwrap())
                .err()
                .map(|failure| failure.to_string())
        };
        let models =
            r#"[{"kind":"model","id":"a/b"},{"kind":"team","id":"a/b"},{"kind":"model","id":"a/b"}]"#;
        assert_eq!(
            twice(models).unwrap(),
            "f, resource 3: model a/b is described twice, first in f, resource 1"
        );
        let price = r#"{"kind":"price","endpoint":"p/a/b","prices":{}}"#;
        assert!(
            twice(&format!("[{price},{price}]"))
                .unwrap()
                .contains("price of p/a/b is described twice")
        );
        let later =
            r#"{"kind":"price","endpoint":"p/a/b","effective_from":"2027-01-01T00:00:00Z","prices":{}}"#;
        assert_eq!(twice(&format!("[{price},{later}]")), None);
        let credential = |provider: &str| {
            format!(r#"{{"kind":"credential","id":"c","provider":"{provider}","secret":"s"}}"#)
        };
        assert_eq!(twice(&format!("[{},{}]", credential("p"), credential("q"))), None);
        assert!(twice(&format!("[{},{}]", credential("p"), credential("p"))).is_some());
    }

    #[test]
    fn resources_are_ordered_so_that_each_refers_to_earlier_ones() {
        let dir = std::env::temp_dir().join(format!("tollway-documents-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("all.json");
        std::fs::write(
            &file,
            r#"[{"kind":"endpoint","id":"p/a/b"},{"kind":"model","id":"a/b"},{"kind":"provider","id":"p"}]"#,
        )
        .unwrap();
        let kinds: Vec<_> = read(&[file]).unwrap().iter().map(|d| d.noun.kind).collect();
        assert_eq!(kinds, ["provider", "model", "endpoint"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
