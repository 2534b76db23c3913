//! Query parameters. Those that a route does not know are ignored, as OpenRouter does.

use std::collections::BTreeMap;

use tollway_shared::fault::Fault;

/// Most parameters that are looked at.
const PARAMS_MAX: usize = 32;

/// Parameters by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads a query string. A parameter that comes twice has two meanings, so it is refused.
    pub fn read(query: Option<&str>) -> Result<Self, Fault> {
        let mut params = BTreeMap::new();
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        for (count, pair) in pairs.enumerate() {
            if count == PARAMS_MAX {
                return Err(wrong("query", "has too many parameters"));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if params.insert(name.clone(), value).is_some() {
                return Err(wrong(&name, "is given twice; send it once"));
            }
        }
        Ok(Self(params))
    }

    /// A parameter that may be left out; an empty one counts as left out.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A parameter that may not.
    pub fn required(&self, name: &str) -> Result<&str, Fault> {
        self.get(name).ok_or_else(|| wrong(name, "is missing"))
    }
}

/// A parameter with something wrong about it.
pub fn wrong(name: &str, detail: &str) -> Fault {
    Fault::InvalidField {
        field: name.chars().take(64).collect(),
        detail: detail.into(),
    }
}

fn decoded(text: &str) -> Result<String, Fault> {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
    let decoded = decoded.map_err(|_| wrong("query", "is not percent-encoded UTF-8"))?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once_and_none_has_two_values() {
        let params = Params::read(Some("id=gen-1&a%20b=c+d%2Be&empty=&flag")).unwrap();
        assert_eq!(params.required("id").unwrap(), "gen-1");
        assert_eq!(params.get("a b"), Some("c d+e"));
        assert_eq!((params.get("empty"), params.get("flag")), (None, None));
        assert_eq!(params.required("empty").unwrap_err().param(), Some("empty"));
        for bad in ["id=a&id=b", "id=%ff"] {
            assert_eq!(Params::read(Some(bad)).unwrap_err().status(), 400, "{bad}");
        }
        assert_eq!(Params::read(None), Ok(Params::default()));
    }
}
