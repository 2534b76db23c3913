//! `tollway account …`: credit of organizations.

use serde_json::{Value, json};

use crate::cli::{Account, Change};
use crate::client::{Client, segment};
use crate::exit::Failure;
use crate::operate::{done, insert, pair, print};
use crate::output::Format;

const ACCOUNT_COLUMNS: &[&str] = &[
    "organization",
    "billing.mode",
    "available",
    "held",
    "uncounted",
    "spendable",
    "bought",
    "transfers",
];
const BALANCE_COLUMNS: &[&str] = &["account", "amount"];
const TRANSFER_COLUMNS: &[&str] = &["id", "at", "kind", "method", "legs", "reference", "actor"];

/// Runs one command.
pub(crate) async fn run(client: &Client, format: Format, command: Account) -> Result<(), Failure> {
    match command {
        Account::Show { organization } => {
            let answer = client.get(&below(&organization, "account")).await?;
            print(format, &answer, ACCOUNT_COLUMNS);
            if format == Format::Table {
                let balances = json!({"data": answer.get("balances"), "next": null});
                print(format, &balances, BALANCE_COLUMNS);
            }
        }
        Account::Transfers { organization } => {
            let answer = client.pages(&below(&organization, "transfers")).await?;
            print(format, &answer, TRANSFER_COLUMNS);
        }
        Account::TopUp { change, method } => {
            let mut body = body(&change);
            insert(&mut body, "method", Some(Value::from(method)));
            moved(client, format, &change, "top-ups", &body).await?;
        }
        Account::Refund { change } => moved(client, format, &change, "refunds", &body(&change)).await?,
        Account::Adjust { change } => moved(client, format, &change, "adjustments", &body(&change)).await?,
        Account::Release {
            organization,
            amount,
            reason,
        } => {
            let body = json!({"amount": amount, "reason": reason});
            let answer = client
                .post(&below(&organization, "account/release"), &body)
                .await?;
            done(format, &answer, &format!("released {amount} of {organization}"));
        }
        Account::Billing {
            organization,
            mode,
            credit_line,
            low_balance,
            auto_top_up,
        } => {
            let mut body = json!({"mode": mode});
            insert(&mut body, "credit_line", credit_line.map(Value::from));
            insert(&mut body, "low_balance", low_balance.map(Value::from));
            if let Some(rule) = auto_top_up {
                let (threshold, amount) = pair("--auto-top-up", "THRESHOLD=AMOUNT", &rule)?;
                let rule = json!({"threshold": threshold, "amount": amount});
                insert(&mut body, "auto_top_up", Some(rule));
            }
            let answer = client.put(&below(&organization, "billing"), &body, None).await?;
            done(format, &answer, &format!("organization {organization} is {mode}"));
        }
    }
    Ok(())
}

fn below(organization: &str, what: &str) -> String {
    format!("organizations/{}/{what}", segment(organization))
}

fn body(change: &Change) -> Value {
    let mut body = json!({"amount": change.amount, "reason": change.reason});
    insert(&mut body, "reference", change.reference.clone().map(Value::from));
    body
}

async fn moved(
    client: &Client,
    format: Format,
    change: &Change,
    what: &str,
    body: &Value,
) -> Result<(), Failure> {
    let answer = client.post(&below(&change.organization, what), body).await?;
    let id = answer.get("id").and_then(Value::as_str).unwrap_or("-");
    done(format, &answer, &format!("transfer {id}"));
    Ok(())
}
