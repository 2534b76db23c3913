//! `apply` and `diff`: what documents describe, against the cluster.
//!
//! The server is asked what it would refuse before anything is written or approved, so that a fault in one document leaves the others
//! unwritten too. Only what happens in between can still stop an `apply` half way.

use serde_json::{Value, json};

use crate::apply::{self, Change};
use crate::client::Client;
use crate::documents::Document;
use crate::exit::Failure;
use crate::output::{Format, render, say};

/// The code of a refusal that is about who asks, and not about what.
const FORBIDDEN: &str = "forbidden";

/// Makes the cluster as documents describe it, or says what that would change.
pub(crate) async fn apply(
    client: &Client,
    documents: &[Document],
    format: Format,
    dry_run: bool,
) -> Result<(), Failure> {
    let changes = compared(client, documents).await?;
    if let Some(failure) = refusal(client, &changes).await? {
        return Err(failure);
    }
    for (document, change) in &changes {
        if !dry_run && *change != Change::Same {
            apply::make(client, document).await?;
        }
        // Line by line, so that a failure in the middle shows how far it got.
        if format == Format::Table {
            say!("{}", change.describe(document));
        }
    }
    print(format, &changes, !dry_run);
    Ok(())
}

/// Says how the cluster differs from documents.
pub(crate) async fn diff(client: &Client, documents: &[Document], format: Format) -> Result<(), Failure> {
    let changes = compared(client, documents).await?;
    match refusal(client, &changes).await? {
        // Who may only read may see what differs, and cannot be told whether the server would take it.
        Some(Failure::Refused(problem)) if problem.code == FORBIDDEN => {
            eprintln!("tollway: whether the server would take this is told only to whom may write it");
        }
        Some(failure) => return Err(failure),
        None => {}
    }
    if format == Format::Table {
        for (document, change) in &changes {
            say!("{}", change.describe(document));
        }
    }
    print(format, &changes, false);
    match changes
        .iter()
        .filter(|(_, change)| change.is_difference())
        .count()
    {
        0 => Ok(()),
        differing => Err(Failure::Differs(differing)),
    }
}

async fn compared<'a>(
    client: &Client,
    documents: &'a [Document],
) -> Result<Vec<(&'a Document, Change)>, Failure> {
    let mut changes = Vec::with_capacity(documents.len());
    for document in documents {
        changes.push((document, apply::compare(client, document).await?));
    }
    Ok(changes)
}

/// What the server would refuse of what is to be written.
async fn refusal(client: &Client, changes: &[(&Document, Change)]) -> Result<Option<Failure>, Failure> {
    let written = changes.iter().filter(|(_, change)| *change != Change::Same);
    let documents: Vec<&Document> = written.map(|(document, _)| *document).collect();
    apply::refusal(client, &documents).await
}

fn print(format: Format, changes: &[(&Document, Change)], written: bool) {
    let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|(_, change)| wanted(change)).count();
    let created = count(|change| *change == Change::Create);
    let same = count(|change| *change == Change::Same);
    let secret = count(|change| *change == Change::Rewrite);
    let changed = changes.len() - created - same - secret;
    if format == Format::Table {
        let [create, change, unread] = if written {
            ["created", "changed", "written again"]
        } else {
            ["to create", "to change", "with a secret that cannot be compared"]
        };
        let secrets = match secret {
            0 => String::new(),
            secret => format!(", {secret} {unread}"),
        };
        say!("{created} {create}, {changed} {change}, {same} as described{secrets}");
        return;
    }
    let row = |(document, change): &(&Document, Change)| {
        let (action, fields) = match change {
            Change::Same => ("same", Vec::new()),
            Change::Create => ("create", Vec::new()),
            Change::Rewrite => ("rewrite", Vec::new()),
            Change::Update(fields) => (
                "update",
                fields
                    .iter()
                    .map(|(name, there, wanted)| json!({"field": name, "there": there, "wanted": wanted}))
                    .collect(),
            ),
        };
        json!({"kind": document.noun.kind, "id": document.id, "action": action, "fields": fields})
    };
    let rows: Vec<Value> = changes.iter().map(row).collect();
    say!("{}", render(format, &json!({ "resources": rows }), &[]));
}
