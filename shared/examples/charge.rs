//! Prices usages from standard input, for tests that compare the price function with others: each line is a JSON object with `prices` and
//! `tokens`, each line out is the charge, or why there is none.

use std::io::{self, BufRead, Write};

use serde::Deserialize;
use tollway_shared::cost::{self, Prices};
use tollway_shared::tokens::TokenCounts;

#[derive(Deserialize)]
struct Line {
    prices: Prices,
    tokens: TokenCounts,
}

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let told = serde_json::from_str::<Line>(&line?).map_err(|fault| fault.to_string());
        let charge = told.and_then(|line| match line.prices.inadmissible() {
            Some((field, fault)) => Err(format!("{field} {fault}")),
            None => cost::charge(&line.tokens, &line.prices).map_err(|fault| fault.to_string()),
        });
        let text = match charge {
            Ok(charge) => serde_json::to_string(&charge)?,
            Err(fault) => serde_json::json!({ "fault": fault }).to_string(),
        };
        writeln!(out, "{text}")?;
    }
    Ok(())
}
