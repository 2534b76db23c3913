//! An invoice as a page to print: one HTML document that loads nothing, with everything in it escaped. Pure.

use std::fmt::Write;

use tollway_proto::admin::report::Invoice;
use tollway_proto::admin::text::Usd;
use tollway_shared::credit::shown;

/// What a browser may do with the page: show it with its own styles, and nothing else.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;color:#111;max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}table{border-collapse:collapse;width:100%;margin:1rem 0}\
th,td{border-bottom:1px solid #ccc;padding:.3rem .5rem;text-align:left;vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tfoot td,.total td{font-weight:bold}\
.draft{border:2px solid #b00;color:#b00;padding:.5rem 1rem}thead{display:table-header-group}tr{break-inside:avoid}\
@media print{body{margin:0;max-width:none}}";

/// The page.
pub fn page(invoice: &Invoice) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, invoice);
    out
}

fn write(out: &mut String, invoice: &Invoice) -> std::fmt::Result {
    let title = format!("Invoice {}", escaped(&invoice.id));
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p>{} (<code>{}</code>)<br>{} to {}, UTC. All amounts in {}.</p>\n",
        escaped(&invoice.organization_name),
        escaped(&invoice.organization.to_string()),
        invoice.from,
        invoice.to,
        escaped(&invoice.currency),
    )?;
    if !invoice.is_final {
        out.push_str("<p class=\"draft\">Not final: the month is not over for three days yet, or not all of it has been counted.</p>\n");
    }
    if invoice.entries_missing {
        out.push_str("<p class=\"draft\">The first entries of the month are not kept one by one any more: here they are one sum of each kind.</p>\n");
    }
    lines(out, invoice)?;
    entries(out, invoice)?;
    totals(out, invoice)?;
    balance(out, invoice)?;
    out.push_str("</body></html>\n");
    Ok(())
}

fn lines(out: &mut String, invoice: &Invoice) -> std::fmt::Result {
    out.push_str(
        "<table><thead><tr><th>Project</th><th>Model</th><th>Meter</th><th class=\"n\">Quantity</th>\
         <th class=\"n\">List price</th><th class=\"n\">Amount</th></tr></thead><tbody>\n",
    );
    for line in &invoice.lines {
        let own = if line.byok { " (own credential)" } else { "" };
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}{own}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&line.project_name),
            escaped(&line.model.to_string()),
            escaped(&line.meter),
            line.quantity,
            line.list,
            line.amount,
        )?;
    }
    out.push_str("</tbody></table>\n");
    Ok(())
}

fn entries(out: &mut String, invoice: &Invoice) -> std::fmt::Result {
    if invoice.entries.is_empty() {
        return Ok(());
    }
    out.push_str(
        "<table><thead><tr><th>When</th><th>What</th><th>Reference</th><th class=\"n\">Fee on top</th><th class=\"n\">Balance</th></tr></thead><tbody>\n",
    );
    for entry in &invoice.entries {
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            entry.at,
            escaped(&entry.kind),
            escaped(&entry.reference),
            entry.fee,
            entry.amount,
        )?;
    }
    out.push_str("</tbody></table>\n");
    Ok(())
}

fn totals(out: &mut String, invoice: &Invoice) -> std::fmt::Result {
    let totals = &invoice.totals;
    out.push_str("<table><tbody>\n");
    let mut row = |class: &str, name: &str, value: String| {
        writeln!(out, "<tr{class}><td>{name}</td><td class=\"n\">{value}</td></tr>")
    };
    row("", "Requests", totals.requests.to_string())?;
    row("", "of these with estimated counts", totals.estimated.to_string())?;
    row("", "Usage at list price", totals.list.to_string())?;
    row(
        "",
        "of this billed by your own providers",
        totals.byok_list.to_string(),
    )?;
    row("", "Markup and discount", totals.adjustments.to_string())?;
    row("", "Owed for usage", totals.usage.to_string())?;
    row("", "Fees on own credentials", totals.byok_fees.to_string())?;
    row("", "Fees on credits", totals.fees.to_string())?;
    row(" class=\"total\"", "Total", totals.total.to_string())?;
    out.push_str("</tbody></table>\n");
    Ok(())
}

/// From the balance before to the balance after, in rows that sum up.
fn balance(out: &mut String, invoice: &Invoice) -> std::fmt::Result {
    let mut rows = Vec::new();
    let nano = |amount: &Usd| i128::from(amount.0.0);
    if let Some(opening) = &invoice.opening_balance {
        rows.push(("Opening balance", nano(opening)));
    }
    if let (Some(opening), Some(closing)) = (&invoice.opening_balance, &invoice.closing_balance) {
        let moved: i128 = invoice.entries.iter().map(|entry| nano(&entry.amount)).sum();
        let used: i128 = invoice.lines.iter().map(|line| nano(&line.amount)).sum();
        rows.push(("Entries above", moved));
        rows.push(("Lines above", -used));
        // Lines go by when requests started, balances by when they were counted.
        let elsewhere = nano(closing) - nano(opening) - moved + used;
        if elsewhere != 0 {
            rows.push((
                "Usage at the edges of the month, counted in the other one",
                elsewhere,
            ));
        }
    }
    if let Some(closing) = &invoice.closing_balance {
        rows.push(("Closing balance", nano(closing)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    out.push_str("<table><tbody>\n");
    for (name, amount) in rows {
        writeln!(
            out,
            "<tr><td>{name}</td><td class=\"n\">{}</td></tr>",
            shown(amount)
        )?;
    }
    out.push_str("</tbody></table>\n");
    Ok(())
}

/// Text that cannot leave its place, in an element or in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tollway_shared::ids::OrganizationId;
    use tollway_shared::money::NanoUsd;

    use super::*;
    use crate::report::invoice::{Draft, Money, Month};
    use crate::report::sample;
    use crate::state::samples;

    #[test]
    fn the_balances_stand_together_and_what_is_between_them_sums_up() {
        let state = samples::catalog();
        let month = Month::parse("2026-11").unwrap();
        let mut draft = Draft::new(&state, OrganizationId::trusted("o"), month);
        let line = sample::line();
        draft.push(&line).unwrap();
        let money = Money {
            opening: Some(NanoUsd(1_000_000_000)),
            closing: Some(NanoUsd(900_000_000 - line.billed.0)),
            ..Money::default()
        };
        let invoice = draft.finish(money, vec![], month.end).unwrap();
        let page = page(&invoice);
        let (_, below) = page.split_once("Opening balance").unwrap();
        let rows = below.split("class=\"n\">").skip(1);
        let rows: Vec<_> = rows
            .map(|row| row.split('<').next().unwrap().to_owned())
            .collect();
        let used = NanoUsd(-line.billed.0).to_string();
        let closing = invoice.closing_balance.unwrap().to_string();
        assert_eq!(rows, ["1", "0", used.as_str(), "-0.1", closing.as_str()]);
    }

    #[test]
    fn a_name_cannot_break_out_of_the_page() {
        let state = samples::catalog();
        let month = Month::parse("2026-11").unwrap();
        let mut draft = Draft::new(&state, OrganizationId::trusted("o"), month);
        draft.push(&sample::line()).unwrap();
        let mut invoice = draft.finish(Money::default(), vec![], month.end).unwrap();
        let evil = "<script src='//x'>\"&";
        invoice.organization_name = evil.into();
        invoice.lines[0].project_name = evil.into();
        let page = page(&invoice);
        assert!(!page.contains("<script"), "{page}");
        let kept = page
            .matches("&lt;script src=&#39;//x&#39;&gt;&quot;&amp;")
            .count();
        assert_eq!(kept, 2);
        for loads in ["http:", "https:", "src=", "href=", "url("] {
            assert!(!page.replace("src=&#39;", "").contains(loads), "{loads}");
        }
        assert!(page.contains("Not final"));
    }
}
