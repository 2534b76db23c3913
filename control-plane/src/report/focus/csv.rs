//! Rows as CSV: UTF-8, one header line, RFC 4180 quoting, lines end in CR LF. Null is the empty field.

use std::io::{self, Write};

use tollway_shared::time::UnixMillis;

use super::columns::{COLUMNS, Cell, Row};

/// Writes the header line.
pub fn header(out: &mut impl Write) -> io::Result<()> {
    let names: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
    write!(out, "{}\r\n", names.join(","))
}

/// Writes one row.
pub fn row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    for (place, cell) in row.cells().into_iter().enumerate() {
        if place > 0 {
            out.write_all(b",")?;
        }
        match cell {
            Cell::Null => {}
            Cell::Text(text) => field(out, text)?,
            Cell::Decimal(number) => write!(out, "{number}")?,
            Cell::Instant(at) => out.write_all(instant(at).as_bytes())?,
        }
    }
    out.write_all(b"\r\n")
}

/// Writes a text. One that a spreadsheet would take for a formula gets a quote in front: names are whatever tenants choose.
fn field(out: &mut impl Write, text: &str) -> io::Result<()> {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        return field(out, &format!("'{text}"));
    }
    if !text.contains([',', '"', '\r', '\n']) {
        return out.write_all(text.as_bytes());
    }
    write!(out, "\"{}\"", text.replace('"', "\"\""))
}

/// `2026-11-22T12:00:00Z`: FOCUS wants whole seconds, and every instant here is one.
fn instant(at: UnixMillis) -> String {
    at.rfc3339().replace(".000Z", "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_where_it_must_be_and_never_a_formula() {
        for (text, written) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=HYPERLINK(1,2)", "\"'=HYPERLINK(1,2)\""),
            ("+1", "'+1"),
            ("-x", "'-x"),
            ("@SUM", "'@SUM"),
            ("a=b", "a=b"),
        ] {
            let mut out = Vec::new();
            field(&mut out, text).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), written);
        }
    }
}
