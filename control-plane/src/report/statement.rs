//! A provider's own account of usage, as CSV. Pure.
//!
//! The header line names the columns, in any order: `provider`, `day` (UTC, `2026-11-22`), `model` (our id, or the provider's own
//! name), `tokens` (all kinds together), `cost` (US dollars, at most nine digits after the point). Other columns are left alone. Rows of
//! one provider, day and model add up.

use tollway_shared::money::NanoUsd;
use tollway_shared::time::Day;

/// Most rows of one statement.
pub const ROWS_MAX: usize = 20_000;
/// The columns that a statement has.
pub const COLUMNS: [&str; 5] = ["provider", "day", "model", "tokens", "cost"];

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The provider's id.
    pub provider: String,
    /// The UTC day.
    pub day: Day,
    /// The model, as the statement names it.
    pub model: String,
    /// All tokens.
    pub tokens: u64,
    /// What the provider bills.
    pub cost: NanoUsd,
}

/// What is wrong with a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementFault {
    /// The header line lacks a column.
    #[error("the header line has no column `{0}`; it must have provider, day, model, tokens, cost")]
    Column(&'static str),
    /// The header line has a column twice, and which one is meant is not known.
    #[error("the header line has the column `{0}` twice; send it once")]
    Twice(&'static str),
    /// A value that is none.
    #[error("line {line}: `{column}` {why}")]
    Value {
        /// Counted from 1, the header line included.
        line: usize,
        /// Which column.
        column: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A quoted field that does not end, or has something behind its end.
    #[error("line {0}: a quoted field does not end in a quote")]
    Quote(usize),
    /// More than [`ROWS_MAX`].
    #[error("there are more than {ROWS_MAX} rows; send fewer at once")]
    Rows,
}

/// Reads a statement.
pub fn read(text: &str) -> Result<Vec<Row>, StatementFault> {
    let mut records = Records::of(text.strip_prefix('\u{feff}').unwrap_or(text));
    let header = records.next().transpose()?.unwrap_or_default().1;
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        let mut found = header
            .iter()
            .enumerate()
            .filter(|(_, field)| field.trim().eq_ignore_ascii_case(name));
        *place = found.next().ok_or(StatementFault::Column(name))?.0;
        if found.next().is_some() {
            return Err(StatementFault::Twice(name));
        }
    }
    let mut rows = Vec::new();
    for record in records {
        let (line, fields) = record?;
        if fields.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        if rows.len() >= ROWS_MAX {
            return Err(StatementFault::Rows);
        }
        rows.push(row(line, &fields, places)?);
    }
    Ok(rows)
}

fn row(line: usize, fields: &[String], places: [usize; COLUMNS.len()]) -> Result<Row, StatementFault> {
    let wrong = |place: usize, why: String| StatementFault::Value {
        line,
        column: COLUMNS[place],
        why,
    };
    let field = |place: usize| {
        let text = fields.get(places[place]).map(|text| text.trim());
        text.filter(|text| !text.is_empty())
            .ok_or_else(|| wrong(place, "is missing".into()))
    };
    let day = field(1)?;
    let tokens = field(3)?;
    let cost = field(4)?;
    Ok(Row {
        provider: field(0)?.to_owned(),
        day: Day::parse(day).ok_or_else(|| wrong(1, format!("`{day}` is not a day such as 2026-11-22")))?,
        model: field(2)?.to_owned(),
        tokens: tokens
            .parse()
            .map_err(|_| wrong(3, format!("`{tokens}` is not a whole number")))?,
        cost: NanoUsd::parse(cost).map_err(|fault| wrong(4, format!("`{cost}` {fault}")))?,
    })
}

/// Records of a CSV text (RFC 4180), each with the number of its first line.
struct Records<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Records<'a> {
    fn of(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// The rest of a quoted field, and what comes behind it.
    fn quoted(&mut self, line: usize) -> Result<String, StatementFault> {
        let mut out = String::new();
        loop {
            let (inside, behind) = self.rest.split_once('"').ok_or(StatementFault::Quote(line))?;
            out.push_str(inside);
            self.line += inside.matches('\n').count();
            self.rest = behind;
            match behind.strip_prefix('"') {
                Some(behind) => {
                    out.push('"');
                    self.rest = behind;
                }
                None if behind.is_empty() || behind.starts_with([',', '\r', '\n']) => return Ok(out),
                None => return Err(StatementFault::Quote(line)),
            }
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<(usize, Vec<String>), StatementFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let line = self.line;
        let mut fields = Vec::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix('"') {
                self.rest = rest;
                match self.quoted(line) {
                    Ok(field) => fields.push(field),
                    Err(fault) => {
                        self.rest = "";
                        return Some(Err(fault));
                    }
                }
            } else {
                let end = self.rest.find([',', '\r', '\n']).unwrap_or(self.rest.len());
                let (field, rest) = self.rest.split_at(end);
                fields.push(field.to_owned());
                self.rest = rest;
            }
            if let Some(rest) = self.rest.strip_prefix(',') {
                self.rest = rest;
                continue;
            }
            self.rest = self.rest.strip_prefix('\r').unwrap_or(self.rest);
            self.rest = self.rest.strip_prefix('\n').unwrap_or(self.rest);
            self.line += 1;
            return Some(Ok((line, fields)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_with_others_between_them() {
        let text = "\u{feff}Day,note,MODEL,provider,cost,tokens\r\n2026-11-22,\"a, \"\"b\"\"\nc\",m-1,p,1.5,42\r\n\r\n2026-11-23,,a/m,q,0,0";
        let rows = read(text).unwrap();
        let day = |text| Day::parse(text).unwrap();
        let row = |provider: &str, day, model: &str, tokens, cost| Row {
            provider: provider.into(),
            day,
            model: model.into(),
            tokens,
            cost: NanoUsd(cost),
        };
        assert_eq!(
            rows,
            [
                row("p", day("2026-11-22"), "m-1", 42, 1_500_000_000),
                row("q", day("2026-11-23"), "a/m", 0, 0)
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, says) in [
            ("", "no column `provider`"),
            ("provider,day,model,tokens\n", "no column `cost`"),
            (
                "provider,day,Cost,model,tokens,cost\np,2026-11-22,1,m,1,2\n",
                "column `cost` twice",
            ),
            (
                "provider,day,model,tokens,cost\np,yesterday,m,1,1\n",
                "line 2: `day` `yesterday`",
            ),
            (
                "provider,day,model,tokens,cost\n\np,2026-11-22,m,1.5,1\n",
                "line 3: `tokens` `1.5`",
            ),
            (
                "provider,day,model,tokens,cost\np,2026-11-22,m,1,0.0000000001\n",
                "line 2: `cost`",
            ),
            (
                "provider,day,model,tokens,cost\np,2026-11-22,m,1\n",
                "line 2: `cost` is missing",
            ),
            (
                "provider,day,model,tokens,cost\n\"p\"x,2026-11-22,m,1,1\n",
                "line 2: a quoted",
            ),
            ("provider,day,model,tokens,\"cost", "line 1: a quoted"),
        ] {
            let fault = read(text).unwrap_err().to_string();
            assert!(fault.contains(says), "{text:?}: {fault}");
        }
    }
}
