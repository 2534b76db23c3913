//! Bodies: read within bounds, parsed, and every refusal with the field that is wrong.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Uri, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tollway_proto::admin::problem::ProblemCode;
use tollway_shared::wording;

use super::fault::Fault;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(15);
/// Fields whose text may have lines; everything else is one line.
const LINES: [&str; 3] = ["description", "reason", "request_pem"];
/// The field that people and programs follow.
const LINK: &str = "url";

/// Reads a JSON body of at most so many bytes.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Fault> {
    let bytes = read_bounded(headers, body, bytes_max).await?;
    if !bytes.is_empty() && !is_json(headers) {
        return Err(Fault::at(
            ProblemCode::UnsupportedMediaType,
            "Content-Type",
            "the body must be JSON: send `Content-Type: application/json`",
        ));
    }
    Ok(bytes)
}

/// Reads a body of at most so many bytes that is text.
pub(crate) async fn read_text(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<String, Fault> {
    let bytes = read_bounded(headers, body, bytes_max).await?;
    String::from_utf8(bytes.into())
        .map_err(|_| Fault::new(ProblemCode::InvalidRequest, "the body is not UTF-8"))
}

async fn read_bounded(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Fault> {
    let too_large = || {
        Fault::new(
            ProblemCode::TooLarge,
            format!("the body is larger than {bytes_max} bytes; send less at once"),
        )
    };
    let stated = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
    tokio::time::timeout(BODY_WITHIN, to_bytes(body, bytes_max))
        .await
        .map_err(|_| Fault::new(ProblemCode::InvalidRequest, "the body did not arrive in time"))?
        .map_err(|error| match limit_reached(&error) {
            true => too_large(),
            false => Fault::new(
                ProblemCode::InvalidRequest,
                "the body could not be read to its end",
            ),
        })
}

fn limit_reached(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = inner.source();
    }
    false
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Reads a JSON body, naming the field that is wrong. An empty body is `{}`.
pub(crate) fn parse_body<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, Fault> {
    let bytes = if bytes.is_empty() { b"{}".as_slice() } else { bytes };
    let value: T = parse_frame(bytes)?;
    let json: Value = serde_json::from_slice(bytes).map_err(|error| body_fault(".", &error, false))?;
    let read = serde_json::to_value(&value).unwrap_or_default();
    if let Some(path) = list_for_object(&json, &read, "") {
        let detail = format!("`{path}` must be a JSON object: `{{…}}`");
        return Err(Fault::at(ProblemCode::Invalid, path, detail));
    }
    // Text is shown on terminals and put into headers.
    if let Some((path, why)) = unfit(&json, "") {
        let detail = format!("`{path}` {why}");
        return Err(Fault::at(ProblemCode::InvalidRequest, path, detail));
    }
    Ok(value)
}

/// Reads a JSON object as it is, naming the field that is wrong, without a look at its texts.
pub(crate) fn parse_frame<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    // A list would be read as the fields in their order, and anything else refused by the name of a type of ours.
    let starts_with = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if starts_with != Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        let detail = "`body` must be a JSON object: `{…}`";
        return Err(Fault::at(ProblemCode::InvalidRequest, "body", detail));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        // For a number where a word is expected the reader says that there is no value; the body is JSON all the same.
        let json: Option<Value> = serde_json::from_slice(bytes).ok();
        let is_json = json.is_some();
        // Read as a value, it says what is wanted.
        let again = json
            .filter(|_| !error.inner().is_data())
            .map(serde_path_to_error::deserialize::<_, T>);
        match again {
            Some(Err(told)) => body_fault(&told.path().to_string(), told.inner(), is_json),
            _ => body_fault(&path, error.inner(), is_json),
        }
    })?;
    reader.end().map_err(|error| body_fault(".", &error, false))?;
    Ok(value)
}

fn body_fault(path: &str, error: &serde_json::Error, json: bool) -> Fault {
    let text = error.to_string();
    if !error.is_data() && !json {
        return Fault::new(
            ProblemCode::MalformedJson,
            format!("the body is not JSON: {text}"),
        );
    }
    let what = wording::without_place(&text);
    let quoted = |start: &str| what.strip_prefix(start)?.split('`').next();
    let inside = |name: &str| match path.trim_matches('.') {
        "" => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    };
    if let Some(name) = quoted("unknown field `") {
        let known = what
            .split_once("expected ")
            .map_or(String::new(), |(_, known)| format!("; known here: {known}"));
        let field = inside(name);
        let detail = format!("`{field}` is not a field{known}");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    if let Some(name) = quoted("missing field `") {
        let field = inside(name);
        let detail = format!("`{field}` is missing");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    if let Some(name) = quoted("duplicate field `") {
        let field = inside(name);
        let detail = format!("`{field}` is given twice");
        return Fault::at(ProblemCode::Invalid, field, detail);
    }
    let field = path.trim_matches('.');
    let field = if field.is_empty() { "body" } else { field };
    let what = match (error.is_data(), wording::must_be(what)) {
        (true, Some(plain)) => format!(" {plain}"),
        (true, None) => format!(": {what}"),
        (false, _) => " is of the wrong type".to_owned(),
    };
    Fault::at(ProblemCode::Invalid, field, format!("`{field}`{what}"))
}

/// The first field that was sent as a list and read as an object, its fields in their order.
fn list_for_object(sent: &Value, read: &Value, path: &str) -> Option<String> {
    match (sent, read) {
        (Value::Array(_), Value::Object(_)) => Some(path.to_owned()),
        (Value::Array(sent), Value::Array(read)) => (0..)
            .zip(sent.iter().zip(read))
            .find_map(|(index, (sent, read))| list_for_object(sent, read, &format!("{path}[{index}]"))),
        (Value::Object(sent), Value::Object(read)) => sent.iter().find_map(|(name, sent)| {
            let inside = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            list_for_object(sent, read.get(name)?, &inside)
        }),
        _ => None,
    }
}

/// The first field whose text may not be shown or followed as it is, and why.
fn unfit(value: &Value, path: &str) -> Option<(String, String)> {
    let inside = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::String(text) => unfit_text(named(path), text).map(|why| (path.to_owned(), why)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| unfit(item, &format!("{path}[{index}]"))),
        Value::Object(fields) => fields.iter().find_map(|(name, item)| unfit(item, &inside(name))),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// The name of the field at a path. Below `labels` names are the caller's and mean nothing here.
fn named(path: &str) -> &str {
    if path.split('.').rev().skip(1).any(|name| name == "labels") {
        return "";
    }
    path.rsplit('.').next().unwrap_or(path)
}

fn unfit_text(name: &str, text: &str) -> Option<String> {
    let has_lines = LINES.contains(&name);
    let is_wrong = |c: &char| c.is_control() && !(has_lines && matches!(c, '\n' | '\r' | '\t'));
    if let Some(found) = text.chars().find(is_wrong) {
        return Some(format!(
            "contains the control character U+{:04X}",
            u32::from(found)
        ));
    }
    let is_link = || {
        let uri: Uri = text.parse().ok()?;
        let follows = matches!(uri.scheme_str(), Some("http" | "https"));
        Some(follows && uri.host().is_some_and(|host| !host.is_empty()))
    };
    (name == LINK && is_link() != Some(true))
        .then(|| "must be an absolute `https://` or `http://` URL".to_owned())
}

#[cfg(test)]
mod tests {
    use tollway_proto::admin::problem::Problem;
    use tollway_proto::admin::tenant::OrganizationPut;

    use super::*;

    fn refused(body: &str) -> Problem {
        parse_body::<OrganizationPut>(body.as_bytes())
            .err()
            .unwrap_or_else(|| panic!("`{body}` is taken"))
            .problem()
    }

    #[test]
    fn a_label_may_have_the_name_of_a_field() {
        use tollway_proto::admin::tenant::KeyLabels;
        let taken = |body: &str| parse_body::<KeyLabels>(body.as_bytes()).is_ok();
        assert!(taken(r#"{"labels": {"url": "team-a", "a.url": "b"}}"#));
        assert!(!taken(r#"{"labels": {"reason": "a\nb"}}"#));
    }

    #[test]
    fn no_value_of_a_wrong_type_is_told_back() {
        use tollway_proto::admin::account::PaymentSecrets;
        use tollway_proto::admin::catalog::CredentialPut;
        type Detail = fn(&str) -> Option<String>;
        let secrets: Detail = |body| {
            let parsed = parse_body::<PaymentSecrets>(body.as_bytes());
            parsed.err().map(|fault| fault.problem().detail)
        };
        let credential: Detail = |body| {
            let parsed = parse_body::<CredentialPut>(body.as_bytes());
            parsed.err().map(|fault| fault.problem().detail)
        };
        let list = "`secrets` must be a list, not a string";
        let text = "`secret` must be a string, not a number";
        for (parse, body, detail) in [
            (secrets, r#"{"secrets": "whsec_4242"}"#, list),
            (
                secrets,
                r#"{"secrets": "4242, expected \"4242\" at line 7"}"#,
                list,
            ),
            (
                secrets,
                r#"{"secrets": [4242]}"#,
                "`secrets[0]` must be a string, not a number",
            ),
            (credential, r#"{"secret": 4242}"#, text),
            (
                credential,
                r#"{"secret": "s", "regions": "4242"}"#,
                "`regions` must be a list, not a string",
            ),
        ] {
            assert_eq!(parse(body).as_deref(), Some(detail), "{body}");
        }
    }

    #[test]
    fn a_list_and_control_characters_are_refused_by_the_name_of_their_field() {
        assert!(parse_body::<OrganizationPut>(br#"{"name": "Acm\u00e9"}"#).is_ok());
        for (body, field) in [
            ("[]", "body"),
            (r#"["x"]"#, "body"),
            (" 7", "body"),
            ("null", "body"),
            (r#"{"name": "a\u0000b"}"#, "name"),
            (r#"{"name": "a\nb"}"#, "name"),
            (r#"{"name": "a\u009bb"}"#, "name"),
        ] {
            let problem = refused(body);
            assert_eq!(
                (problem.status, problem.field.as_deref()),
                (400, Some(field)),
                "{body}"
            );
            let is_of_body = field == "body";
            assert_eq!(
                problem.detail.contains("must be a JSON object"),
                is_of_body,
                "{body}: {problem:?}"
            );
        }
        let nested = serde_json::json!({"a": [{"name": "\u{7}"}], "description": "two\nlines"});
        assert_eq!(unfit(&nested, "").unwrap().0, "a[0].name");
        for (url, fits) in [
            ("https://example.com/notice?id=1", true),
            ("http://example.com", true),
            ("javascript:alert(1)", false),
            ("/notice", false),
            ("https://", false),
            ("ftp://example.com", false),
            ("https://a b", false),
            ("", false),
        ] {
            let found = unfit(&serde_json::json!({"url": url}), "");
            assert_eq!(found.is_none(), fits, "{url}: {found:?}");
        }
    }
}
