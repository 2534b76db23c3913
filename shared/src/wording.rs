//! What a reader of JSON says about a value of the wrong kind, in words that are not those of our types.

/// The refusal without the reader's " at line 1 column 7": the field says where.
pub fn without_place(text: &str) -> &str {
    text.rsplit_once(" at line ").map_or(text, |(what, _)| what)
}

/// What a value must be, and is not: `must be a whole number from 0 to 255, not -1`. `None`: it says something else.
pub fn must_be(what: &str) -> Option<String> {
    if what.starts_with("data did not match any variant of untagged enum") {
        return Some("has none of the forms that are known here".into());
    }
    let (found, wanted) = what.rsplit_once(", expected ")?;
    let wanted_plain = asked(wanted);
    let found = match found.split_once(": ") {
        // Where a text belongs it may be a secret in the wrong form.
        Some(("invalid type", found)) if wanted_plain == "a string" && is_number(found) => "a number".into(),
        Some(("invalid type" | "invalid value", found)) => known(found),
        _ => format!("a list of {}", found.strip_prefix("invalid length ")?),
    };
    if wanted == "map with a single key" {
        return Some("must be an object with exactly one field".into());
    }
    Some(format!("must be {wanted_plain}, not {found}"))
}

fn is_number(found: &str) -> bool {
    found.starts_with("integer ") || found.starts_with("floating point ")
}

/// What was sent.
fn known(found: &str) -> String {
    let quoted = found.split_once('`').map(|(_, quoted)| quoted);
    match found {
        "map" => "an object".into(),
        "sequence" => "a list".into(),
        "null" | "unit value" => "null".into(),
        _ if found.starts_with("string ") => "a string".into(),
        _ => quoted.map_or_else(
            || found.to_owned(),
            |quoted| quoted.trim_end_matches('`').to_owned(),
        ),
    }
}

/// What should have been.
fn asked(wanted: &str) -> String {
    let (least, of) = match wanted.strip_prefix("a nonzero ") {
        Some(of) => (1, of),
        None => (0, wanted),
    };
    let from = |most: u64| format!("a whole number from {least} to {most}");
    match of {
        "u8" => from(u8::MAX.into()),
        "u16" => from(u16::MAX.into()),
        "u32" => from(u32::MAX.into()),
        "u64" | "usize" => from(u64::MAX),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" => format!("a whole number from {} to {}", i64::MIN, i64::MAX),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "an object".into(),
        "string or map" => "a string or an object".into(),
        "a borrowed string" | "str" => "a string".into(),
        "variant identifier" | "field identifier" => "a name in a string".into(),
        _ if of.starts_with("struct ") || of.contains("tagged enum ") => "an object".into(),
        _ if of.starts_with("enum ") => "a string or an object".into(),
        _ if of.starts_with("tuple ") || of.starts_with("a tuple ") || of.starts_with("an array ") => {
            "a list".into()
        }
        _ => wanted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only refusals are looked at")]
    struct Inner {
        one: u8,
        two: String,
    }

    #[derive(Debug, Deserialize)]
    enum Scope {
        #[expect(dead_code, reason = "only refusals are looked at")]
        Key(String),
    }

    fn said<T: serde::de::DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        let fault = serde_json::from_value::<T>(value).unwrap_err().to_string();
        must_be(without_place(&fault)).unwrap_or_else(|| panic!("{fault}"))
    }

    #[test]
    fn kinds_are_told_in_plain_words() {
        for (found, wanted) in [
            (said::<u8>("-1"), "must be a whole number from 0 to 255, not -1"),
            (said::<u8>("300"), "must be a whole number from 0 to 255, not 300"),
            (
                said::<u16>("0.5"),
                "must be a whole number from 0 to 65535, not 0.5",
            ),
            (
                said::<usize>(r#""a, expected u8""#),
                "must be a whole number from 0 to 18446744073709551615, not a string",
            ),
            (
                said::<NonZeroU32>("0"),
                "must be a whole number from 1 to 4294967295, not 0",
            ),
            (said::<bool>("{}"), "must be true or false, not an object"),
            (said::<String>("null"), "must be a string, not null"),
            (said::<String>("42"), "must be a string, not a number"),
            (said::<Vec<u8>>("true"), "must be a list, not true"),
            (said::<Inner>("7"), "must be an object, not 7"),
            (said::<Inner>("[]"), "must be an object, not a list of 0"),
            (said::<Scope>("{}"), "must be an object with exactly one field"),
            (said::<Scope>("1"), "must be a string or an object, not 1"),
        ] {
            assert_eq!(found, wanted);
        }
        assert_eq!(must_be("`1e3` is not a decimal number"), None);
        assert_eq!(without_place("a at line 1 column 7"), "a");
    }
}
