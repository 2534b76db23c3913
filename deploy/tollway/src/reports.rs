//! `tollway usage …`: exports, invoices and other reports on what was used.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cli::Report;
use crate::client::{Client, segment};
use crate::exit::Failure;
use crate::operate::{Query, insert, pair, print};
use crate::output::{Format, say};

/// Columns of an invoice's lines.
const LINE_COLUMNS: &[&str] = &["project", "model", "meter", "byok", "quantity", "list", "amount"];
/// What is shown of its sums.
const TOTAL_COLUMNS: &[&str] = &[
    "requests",
    "estimated",
    "list",
    "byok_list",
    "adjustments",
    "usage",
    "fees",
    "total",
];
/// Columns of a re-rating.
const RATED_COLUMNS: &[&str] = &[
    "organization",
    "model",
    "endpoint",
    "requests",
    "recorded",
    "re_rated",
    "difference",
    "exact_to",
];
/// Columns of a comparison with a provider.
const COMPARED_COLUMNS: &[&str] = &[
    "provider",
    "day",
    "model",
    "provider_tokens",
    "our_tokens",
    "tokens_percent",
    "provider_cost",
    "our_cost",
    "cost_difference",
    "cost_percent",
];

/// Runs one of them.
pub(crate) async fn run(client: &Client, format: Format, report: Report) -> Result<(), Failure> {
    match report {
        Report::Export {
            from,
            to,
            format,
            organization,
            file,
        } => {
            let mut query = Query::default();
            query.add("from", Some(from));
            query.add("to", Some(to));
            query.add("format", Some(format.clone()));
            query.add("organization", organization);
            export(client, &query.path("exports/focus"), &format, file.as_deref()).await
        }
        Report::Invoice {
            organization,
            month,
            html,
        } => invoice(client, format, &organization, &month, html).await,
        Report::ReRate {
            from,
            to,
            organization,
            rates,
        } => {
            let rates = rates.iter().map(|rate| self::rate(rate));
            let rates = rates.collect::<Result<Vec<Value>, Failure>>()?;
            let mut body = json!({"from": from, "to": to, "rates": rates});
            insert(&mut body, "organization", organization.map(Value::from));
            let answer = client.post("usage/re-rate", &body).await?;
            print(format, &answer, RATED_COLUMNS);
            totals(
                format,
                &answer,
                &["recorded", "re_rated", "difference", "exact_to"],
            );
            Ok(())
        }
        Report::Forecast { period, filters } => {
            let mut query = Query::default();
            query.add("period", Some(period));
            for filter in &filters {
                let (field, value) = pair("--where", "FIELD=VALUE", filter)?;
                query.add(field, Some(value.to_owned()));
            }
            let answer = client.get(&query.path("usage/forecast")).await?;
            print(
                format,
                &answer,
                &["from", "to", "spent", "basis_spent", "basis_seconds", "forecast"],
            );
            Ok(())
        }
        Report::Compare { file } => {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            let answer = client.upload("usage/provider-import", "text/csv", text).await?;
            print(format, &answer, COMPARED_COLUMNS);
            totals(format, &answer, &["tokens_drift", "cost_drift"]);
            Ok(())
        }
    }
}

/// Under a table, the answer's sums; JSON has them already.
fn totals(format: Format, answer: &Value, columns: &[&str]) {
    if format == Format::Table {
        say!();
        print(format, &json!([answer]), columns);
    }
}

async fn invoice(
    client: &Client,
    format: Format,
    organization: &str,
    month: &str,
    html: bool,
) -> Result<(), Failure> {
    let path = format!(
        "organizations/{}/invoices/{}",
        segment(organization),
        segment(month)
    );
    if html {
        return client
            .download(&format!("{path}.html"), &mut std::io::stdout().lock())
            .await;
    }
    let answer = client.get(&path).await?;
    if format == Format::Json {
        print(format, &answer, &[]);
        return Ok(());
    }
    let standing = if answer["final"].as_bool() == Some(true) {
        "final"
    } else {
        "not final"
    };
    say!("{} ({standing})", answer["id"].as_str().unwrap_or_default());
    print(format, &answer["lines"], LINE_COLUMNS);
    say!();
    print(format, &answer["totals"], TOTAL_COLUMNS);
    Ok(())
}

/// Downloads into a file that is there whole or not at all, or to the standard output.
async fn export(client: &Client, path: &str, form: &str, file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else {
        let mut out = std::io::stdout();
        if form == "parquet" && out.is_terminal() {
            return Err(Failure::Usage(
                "Parquet is not for terminals: give --file, or send the output somewhere".into(),
            ));
        }
        return client.download(path, &mut out).await;
    };
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let mut out = File::create(&part).with_context(|| format!("cannot write {}", file.display()))?;
    let written = client.download(path, &mut out).await.and_then(|()| {
        out.flush()
            .and_then(|()| out.sync_all())
            .context("cannot write what came")?;
        std::fs::rename(&part, file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(())
    });
    if written.is_err() {
        // It is of no use to anybody; that it cannot be removed changes nothing about the failure.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// `ENDPOINT=PRICE` or `ENDPOINT=IN,OUT`.
fn rate(text: &str) -> Result<Value, Failure> {
    let (endpoint, price) = pair("--rate", "ENDPOINT=PRICE or ENDPOINT=IN,OUT", text)?;
    Ok(match price.split_once(',') {
        Some((input, output)) => json!({"endpoint": endpoint, "prices": {"input": input, "output": output}}),
        None => json!({"endpoint": endpoint, "price": price}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_price_version_or_two_prices() {
        assert_eq!(
            rate("p/a/m=price_1").unwrap(),
            json!({"endpoint": "p/a/m", "price": "price_1"})
        );
        assert_eq!(
            rate("p/a/m=0.5,2").unwrap(),
            json!({"endpoint": "p/a/m", "prices": {"input": "0.5", "output": "2"}})
        );
        assert!(rate("p/a/m").is_err());
    }
}
