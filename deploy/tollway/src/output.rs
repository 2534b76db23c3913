//! What commands print: a table for people, the server's JSON for programs.

use serde_json::Value;

/// `println!` that a closed output does not end: `tollway get models | head` is no fault.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}
pub(crate) use say;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    Table,
    /// The server's answer, indented.
    Json,
}

/// The rows of an answer: the list itself, the `data` of a page, or the single object.
pub(crate) fn rows(answer: &Value) -> Vec<&Value> {
    match (answer, answer.get("data")) {
        (Value::Array(rows), _) | (_, Some(Value::Array(rows))) => rows.iter().collect(),
        _ => vec![answer],
    }
}

/// An answer in the wanted form. `columns` are dotted paths; empty = every scalar of the first row, in its order.
pub(crate) fn render(format: Format, answer: &Value, columns: &[&str]) -> String {
    if format == Format::Json {
        return serde_json::to_string_pretty(answer).expect("a JSON value always prints");
    }
    table(&rows(answer), columns)
}

fn table(rows: &[&Value], columns: &[&str]) -> String {
    if rows.is_empty() {
        return "none".into();
    }
    let columns: Vec<String> = if columns.is_empty() {
        scalars(rows[0])
    } else {
        let present = |path: &&&str| rows.iter().any(|row| at(row, path).is_some());
        columns
            .iter()
            .filter(present)
            .map(|path| (*path).to_owned())
            .collect()
    };
    let header = columns.iter().map(|path| path.to_uppercase()).collect();
    let body = rows
        .iter()
        .map(|row| columns.iter().map(|path| cell(at(row, path))).collect());
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(body).collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let print = |line: &Vec<String>| {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(text, width)| format!("{text:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines.iter().map(print).collect::<Vec<_>>().join("\n")
}

fn scalars(row: &Value) -> Vec<String> {
    let Some(fields) = row.as_object() else {
        return Vec::new();
    };
    let nested = |prefix: &str, fields: &serde_json::Map<String, Value>| -> Vec<String> {
        fields.keys().map(|name| format!("{prefix}{name}")).collect()
    };
    fields
        .iter()
        .flat_map(|(name, value)| match value {
            // One level: sums and token counts sit in an object of their own.
            Value::Object(inner) => nested(&format!("{name}."), inner),
            _ => vec![name.clone()],
        })
        .collect()
}

/// The value at a dotted path.
fn at<'a>(row: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(row, |value, name| value.get(name))
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.iter().all(|item| !item.is_object()) => {
            let items: Vec<_> = items.iter().map(|item| cell(Some(item))).collect();
            if items.is_empty() {
                "-".into()
            } else {
                items.join(",")
            }
        }
        // `{"project":"web"}`, as scopes are written, reads as project=web.
        Some(Value::Object(fields)) if fields.values().all(Value::is_string) => {
            let pairs: Vec<_> = fields
                .iter()
                .map(|(k, v)| format!("{k}={}", cell(Some(v))))
                .collect();
            pairs.join(",")
        }
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_aligns_columns_and_marks_what_is_absent() {
        let answer = json!({"revision": 7, "next": null, "data": [
            {"id": "b", "scope": {"project": "web"}, "limit": "2.5", "team": null},
            {"id": "longer", "scope": {"key": "k"}, "limit": "10", "regions": ["eu", "us"]},
        ]});
        let text = render(
            Format::Table,
            &answer,
            &["id", "scope", "limit", "team", "regions", "nowhere"],
        );
        assert_eq!(
            text,
            "ID      SCOPE        LIMIT  TEAM  REGIONS\n\
             b       project=web  2.5    -     -\n\
             longer  key=k        10     -     eu,us"
        );
    }

    #[test]
    fn a_single_resource_is_one_row_even_when_it_holds_a_list() {
        let answer = json!({"id": "k", "models": []});
        assert_eq!(
            render(Format::Table, &answer, &["id", "models"]),
            "ID  MODELS\nk   -"
        );
    }

    #[test]
    fn without_columns_nested_sums_become_columns() {
        let answer =
            json!({"data": [{"model": "a/b", "tokens": {"input": 3, "output": 4}}], "freshness": [1]});
        assert_eq!(
            render(Format::Table, &answer, &[]),
            "MODEL  TOKENS.INPUT  TOKENS.OUTPUT\na/b    3             4"
        );
    }
}
