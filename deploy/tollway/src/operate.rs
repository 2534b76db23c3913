//! The operator's commands: each one request to the admin API, or a few, and its answer printed.

use serde_json::{Value, json};

use crate::account;
use crate::cli::{Audit, Budget, Cluster, Command, Global, Incarnation, Key, Notice, Usage};
use crate::client::{Client, Target, segment};
use crate::exit::Failure;
use crate::nouns::{self, Noun};
use crate::output::{Format, render, rows, say};
use crate::{declared, documents, reports};

/// Columns of usage: the dimensions, of which those not asked for are absent, then the sums.
const USAGE_COLUMNS: &[&str] = &[
    "month",
    "day",
    "hour",
    "organization",
    "team",
    "project",
    "key",
    "user",
    "model",
    "endpoint",
    "provider",
    "region",
    "price_version",
    "byok",
    "labels",
    "requests",
    "estimated",
    "cancelled",
    "failed",
    "tokens.input",
    "tokens.input_cache_read",
    "tokens.input_cache_write",
    "tokens.input_cache_write_1h",
    "tokens.output",
    "tokens.output_reasoning",
    "cost",
    "billed",
    "fee",
];

/// Runs one command against the cluster.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let client = Client::new(Target::named(global)?)?;
    let format = global.output;
    match command {
        Command::Apply { files, dry_run } => {
            let documents = documents::read(&files.file)?;
            declared::apply(&client, &documents, format, dry_run).await
        }
        Command::Diff { files } => declared::diff(&client, &documents::read(&files.file)?, format).await,
        Command::Get { noun, id } => {
            let noun = noun_of(&noun)?;
            let answer = match &id {
                Some(id) if noun.kind == "credential" && id.ends_with('/') => {
                    client.pages(&nouns::path(noun, id)?).await?
                }
                Some(id) => client.get(&nouns::path(noun, id)?).await?,
                None if noun.kind == "credential" => credentials(&client, noun).await?,
                None => client.pages(noun.plural).await?,
            };
            print(format, &answer, noun.columns);
            Ok(())
        }
        Command::Delete {
            noun,
            id,
            if_revision,
        } => {
            let noun = noun_of(&noun)?;
            let answer = client.delete(&nouns::path(noun, &id)?, if_revision).await?;
            done(format, &answer, &format!("removed {} {id}", noun.kind));
            Ok(())
        }
        Command::Key(command) => key(&client, format, command).await,
        Command::Budget(command) => budget(&client, format, command).await,
        Command::Account(command) => account::run(&client, format, command).await,
        Command::Notice(command) => notice(&client, format, command).await,
        Command::Incarnation(command) => incarnation(&client, format, command).await,
        Command::Cluster(command) => cluster(&client, format, command).await,
        Command::Usage(mut command) => match command.report.take() {
            Some(report) => reports::run(&client, format, report).await,
            None => usage(&client, format, &command).await,
        },
        Command::Audit(command) => audit(&client, format, command).await,
        Command::Up(_) | Command::Completions { .. } => {
            unreachable!("main handles what needs no cluster")
        }
    }
}

fn noun_of(word: &str) -> Result<&'static Noun, Failure> {
    nouns::find(word).ok_or_else(|| {
        Failure::Usage(format!(
            "there is no noun `{word}`; there are: {}",
            nouns::list(|_| true)
        ))
    })
}

/// The credentials of every provider: they stand below theirs, and have no list of their own.
async fn credentials(client: &Client, noun: &Noun) -> Result<Value, Failure> {
    let mut all = Vec::new();
    for provider in rows(&client.pages("providers").await?) {
        let id = provider.get("id").and_then(Value::as_str).unwrap_or_default();
        let page = client.pages(&nouns::path(noun, &format!("{id}/"))?).await?;
        all.extend(rows(&page).into_iter().cloned());
    }
    Ok(json!({ "data": all, "next": null }))
}

pub(crate) fn print(format: Format, answer: &Value, columns: &[&str]) {
    say!("{}", render(format, answer, columns));
}

/// Prints that a write was done, and its revision.
pub(crate) fn done(format: Format, answer: &Value, text: &str) {
    match (format, answer.get("revision").and_then(Value::as_u64)) {
        (Format::Json, _) => print(format, answer, &[]),
        (Format::Table, Some(revision)) => say!("{text} at revision {revision}"),
        (Format::Table, None) => say!("{text}"),
    }
}

async fn key(client: &Client, format: Format, command: Key) -> Result<(), Failure> {
    match command {
        Key::Create {
            project,
            id,
            name,
            models,
            expires_at,
            labels,
        } => {
            let labels = labelled(&labels)?;
            let mut body = json!({"project": project, "name": name, "models": models, "labels": labels});
            insert(&mut body, "id", id.map(Value::from));
            insert(&mut body, "expires_at", expires_at.map(Value::from));
            shown_once(format, &client.post("keys", &body).await?);
        }
        Key::Label { id, labels } => {
            let body = json!({"labels": labelled(&labels)?});
            let path = format!("keys/{}/labels", segment(&id));
            let answer = client.put(&path, &body, None).await?;
            done(format, &answer, &format!("labelled key {id}"));
        }
        Key::Rotate { id, grace_seconds } => {
            let mut body = json!({});
            insert(&mut body, "grace_seconds", grace_seconds.map(Value::from));
            let path = format!("keys/{}/rotate", segment(&id));
            shown_once(format, &client.post(&path, &body).await?);
        }
        Key::Revoke { id } => {
            let path = format!("keys/{}/revoke", segment(&id));
            done(
                format,
                &client.post(&path, &json!({})).await?,
                &format!("revoked key {id}"),
            );
        }
        Key::List { project } => {
            let mut query = Query::default();
            query.add("project", project);
            let columns = noun_of("key")?.columns;
            print(format, &client.pages(&query.path("keys")).await?, columns);
        }
    }
    Ok(())
}

/// Prints a new key: the only time its text is seen.
fn shown_once(format: Format, answer: &Value) {
    match (format, answer.get("key").and_then(Value::as_str)) {
        (Format::Table, Some(text)) => {
            let id = answer.get("id").and_then(Value::as_str).unwrap_or("-");
            say!("{text}");
            eprintln!("id {id}; keep the key now, it is not shown again");
        }
        _ => print(format, answer, &[]),
    }
}

async fn budget(client: &Client, format: Format, command: Budget) -> Result<(), Failure> {
    match command {
        Budget::Put {
            id,
            scope,
            limit,
            unit,
            model,
            period,
            days,
            first_day,
            time_zone,
            mode,
            per_request_max,
            thresholds,
        } => {
            let (level, of) = pair("--scope", "LEVEL=ID", &scope)?;
            let mut body = json!({
                "scope": {level: of}, "limit": limit, "unit": unit, "period": period, "time_zone": time_zone,
                "mode": mode, "thresholds_percent": thresholds,
            });
            insert(&mut body, "model", model.map(Value::from));
            insert(&mut body, "days", days.map(Value::from));
            insert(&mut body, "first_day", first_day.map(Value::from));
            insert(&mut body, "per_request_max", per_request_max.map(Value::from));
            let answer = client
                .put(&format!("budgets/{}", segment(&id)), &body, None)
                .await?;
            done(format, &answer, &format!("budget {id} is in force"));
        }
        Budget::Raise {
            id,
            amount,
            until,
            reason,
        } => {
            let body = json!({"amount": amount, "until": until, "reason": reason});
            let path = format!("budgets/{}/raises", segment(&id));
            let answer = client.post(&path, &body).await?;
            done(format, &answer, &format!("budget {id} is raised until {until}"));
        }
        Budget::List => {
            print(
                format,
                &client.pages("budgets").await?,
                noun_of("budget")?.columns,
            );
        }
    }
    Ok(())
}

async fn notice(client: &Client, format: Format, command: Notice) -> Result<(), Failure> {
    match command {
        Notice::Put {
            id,
            model,
            endpoint,
            deprecated_at,
            sunset_at,
            successor,
            reason,
            more,
        } => {
            let mut body = json!({"model": model, "deprecated_at": deprecated_at, "reason": reason});
            insert(&mut body, "endpoint", endpoint.map(Value::from));
            insert(&mut body, "sunset_at", sunset_at.map(Value::from));
            insert(&mut body, "successor", successor.map(Value::from));
            insert(&mut body, "url", more.map(Value::from));
            let answer = client
                .put(&format!("notices/{}", segment(&id)), &body, None)
                .await?;
            done(format, &answer, &format!("notice {id} is announced"));
        }
        Notice::List => {
            print(
                format,
                &client.pages("notices").await?,
                noun_of("notice")?.columns,
            );
        }
    }
    Ok(())
}

async fn incarnation(client: &Client, format: Format, command: Incarnation) -> Result<(), Failure> {
    let (id, verb, told) = match command {
        Incarnation::List { node } => {
            let mut query = Query::default();
            query.add("node", node);
            let columns = noun_of("incarnation")?.columns;
            print(format, &client.pages(&query.path("incarnations")).await?, columns);
            return Ok(());
        }
        Incarnation::Fence { id } => (id, "fence", "fenced"),
        Incarnation::Release { id } => (id, "release", "released"),
    };
    let path = format!("incarnations/{}/{verb}", segment(&id));
    let answer = client.post(&path, &json!({})).await?;
    done(format, &answer, &format!("{told} incarnation {id}"));
    Ok(())
}

async fn cluster(client: &Client, format: Format, command: Cluster) -> Result<(), Failure> {
    match command {
        Cluster::Status => {
            let status = client.get("cluster").await?;
            if format == Format::Json {
                print(format, &status, &[]);
                return Ok(());
            }
            for name in [
                "cluster", "replica", "leader", "term", "last_log", "applied", "revision", "binary",
            ] {
                if let Some(value) = status.get(name) {
                    say!(
                        "{name:<9} {}",
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    );
                }
            }
            if let Some(members) = status.get("members") {
                say!();
                print(
                    format,
                    members,
                    &["id", "peer_address", "admin_url", "voter", "matched"],
                );
            }
        }
        Cluster::JoinToken { node, ttl_seconds } => {
            let mut body = match node {
                Some(region) => json!({"kind": "node", "region": region}),
                None => json!({"kind": "replica"}),
            };
            insert(&mut body, "ttl_seconds", ttl_seconds.map(Value::from));
            let answer = client.post("join-tokens", &body).await?;
            match (format, answer.get("token").and_then(Value::as_str)) {
                (Format::Table, Some(token)) => say!("{token}"),
                _ => print(format, &answer, &[]),
            }
        }
        Cluster::RemoveReplica { id } => {
            let answer = client.delete(&format!("cluster/replicas/{id}"), None).await?;
            done(format, &answer, &format!("removed replica {id}"));
        }
        Cluster::Transfer => {
            let answer = client.post("cluster/transfer", &json!({})).await?;
            done(format, &answer, "leadership is handed over");
        }
    }
    Ok(())
}

async fn audit(client: &Client, format: Format, command: Audit) -> Result<(), Failure> {
    if command.verify {
        let verdict = client.get("audit/verify").await?;
        print(format, &verdict, &["intact", "count", "head", "first_broken"]);
        return match verdict["intact"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(Failure::Differs(1)),
        };
    }
    let mut query = Query::default();
    query.add("after", command.after.map(|sequence| sequence.to_string()));
    query.add("actor", command.actor);
    query.add("action", command.action);
    query.add("target", command.target);
    let answer = match command.limit {
        Some(limit) => {
            query.add("limit", Some(limit.to_string()));
            client.get(&query.path("audit")).await?
        }
        None => client.pages(&query.path("audit")).await?,
    };
    print(
        format,
        &answer,
        &["sequence", "at", "actor", "action", "target", "revision"],
    );
    Ok(())
}

async fn usage(client: &Client, format: Format, command: &Usage) -> Result<(), Failure> {
    let mut query = Query::default();
    let groups = (!command.group_by.is_empty()).then(|| command.group_by.join(","));
    query.add("group_by", groups);
    query.add("from", command.from.clone());
    query.add("to", command.to.clone());
    for filter in &command.filters {
        let (field, value) = pair("--where", "FIELD=VALUE", filter)?;
        query.add(field, Some(value.to_owned()));
    }
    let answer = client.pages(&query.path("usage")).await?;
    print(format, &answer, USAGE_COLUMNS);
    if let (Format::Table, Some(total)) = (format, answer.get("total")) {
        say!();
        print(
            format,
            total,
            &[
                "requests",
                "estimated",
                "tokens.input",
                "tokens.output",
                "cost",
                "billed",
                "fee",
                "cache_savings",
                "latency.first_byte_ms.p50",
                "latency.total_ms.p50",
            ],
        );
    }
    Ok(())
}

/// Labels as the admin API has them.
fn labelled(labels: &[String]) -> Result<Value, Failure> {
    let pairs = labels.iter().map(|label| {
        let (name, value) = pair("label", "NAME=VALUE", label)?;
        Ok((name.to_owned(), Value::from(value)))
    });
    pairs
        .collect::<Result<serde_json::Map<_, _>, Failure>>()
        .map(Value::Object)
}

/// Two words of a flag's value.
///
/// - `wanted`: its form, as the help has it.
pub(crate) fn pair<'a>(flag: &str, wanted: &str, text: &'a str) -> Result<(&'a str, &'a str), Failure> {
    text.split_once('=')
        .filter(|(name, value)| !name.is_empty() && !value.is_empty())
        .ok_or_else(|| Failure::Usage(format!("{flag} `{text}`: wanted is {wanted}")))
}

pub(crate) fn insert(body: &mut Value, name: &str, value: Option<Value>) {
    if let (Some(fields), Some(value)) = (body.as_object_mut(), value) {
        fields.insert(name.to_owned(), value);
    }
}

/// A query string in the making.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<String>);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.0.push(format!("{}={}", segment(name), segment(&value)));
        }
    }

    pub(crate) fn path(&self, path: &str) -> String {
        if self.0.is_empty() {
            return path.to_owned();
        }
        format!("{path}?{}", self.0.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_escaped_and_absent_when_empty() {
        let mut query = Query::default();
        assert_eq!(query.path("usage"), "usage");
        query.add("group_by", Some("model,day".into()));
        query.add("from", None);
        assert_eq!(query.path("usage"), "usage?group_by=model%2Cday");
    }

    #[test]
    fn a_pair_without_a_value_names_the_flag_and_its_form() {
        let scope = |text| pair("--scope", "LEVEL=ID", text).map_err(|failure| failure.to_string());
        assert_eq!(scope("project=web"), Ok(("project", "web")));
        for text in ["project=", "=web", "acme"] {
            let told = scope(text).unwrap_err();
            assert!(
                told.contains("--scope") && told.contains("wanted is LEVEL=ID"),
                "{told}"
            );
        }
    }
}
