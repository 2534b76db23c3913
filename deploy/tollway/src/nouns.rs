//! The nouns of the admin API as an operator writes them: paths, order of creation, columns of the table.

use crate::client::segment;
use crate::exit::Failure;

/// One noun.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Noun {
    /// In documents and on the command line.
    pub(crate) kind: &'static str,
    /// In paths; also accepted on the command line.
    pub(crate) plural: &'static str,
    /// Columns of the table, in order; those that no row has are left out.
    pub(crate) columns: &'static [&'static str],
    /// Whether a document may describe it.
    pub(crate) declared: bool,
}

const fn noun(
    kind: &'static str,
    plural: &'static str,
    declared: bool,
    columns: &'static [&'static str],
) -> Noun {
    Noun {
        kind,
        plural,
        columns,
        declared,
    }
}

/// Every noun. Those that documents may describe come first, in an order in which each refers only to earlier ones.
pub(crate) const NOUNS: &[Noun] = &[
    noun(
        "organization",
        "organizations",
        true,
        &["id", "name", "enabled", "adjustment_bps", "revision"],
    ),
    noun(
        "provider",
        "providers",
        true,
        &["id", "dialect", "base_url", "enabled", "revision"],
    ),
    noun(
        "credential",
        "credentials",
        true,
        &[
            "id",
            "provider",
            "organization",
            "version",
            "regions",
            "created_at",
        ],
    ),
    noun(
        "model",
        "models",
        true,
        &["id", "name", "context_tokens", "revision"],
    ),
    noun(
        "endpoint",
        "endpoints",
        true,
        &["id", "upstream_model", "region", "rank", "enabled", "revision"],
    ),
    noun(
        "price",
        "prices",
        true,
        &[
            "id",
            "endpoint",
            "effective_from",
            "prices.input",
            "prices.output",
        ],
    ),
    noun("team", "teams", true, &["id", "organization", "name", "revision"]),
    noun(
        "project",
        "projects",
        true,
        &["id", "organization", "team", "name", "enabled", "revision"],
    ),
    noun(
        "budget",
        "budgets",
        true,
        &[
            "id",
            "scope",
            "unit",
            "limit_in_force",
            "period",
            "mode",
            "settled",
            "leased",
            "free",
            "resets_at",
        ],
    ),
    noun(
        "notice",
        "notices",
        true,
        &[
            "id",
            "model",
            "endpoint",
            "deprecated_at",
            "sunset_at",
            "successor",
        ],
    ),
    noun(
        "key",
        "keys",
        false,
        &[
            "id",
            "project",
            "name",
            "last4",
            "created_at",
            "expires_at",
            "revoked_at",
        ],
    ),
    noun(
        "admin",
        "admins",
        false,
        &["id", "name", "role", "last4", "created_at"],
    ),
    noun(
        "node",
        "nodes",
        false,
        &[
            "id",
            "region",
            "joined_at",
            "connection.version",
            "connection.replica",
            "connection.revision",
            "connection.lag",
            "connection.connected_at",
            "connection.last_refusal",
        ],
    ),
    noun(
        "incarnation",
        "incarnations",
        false,
        &["id", "node", "standing", "since", "budgets"],
    ),
];

/// The noun that a word names, singular or plural.
pub(crate) fn find(word: &str) -> Option<&'static Noun> {
    NOUNS.iter().find(|noun| noun.kind == word || noun.plural == word)
}

/// The path of one resource. A credential stands below its provider and is named `provider/id`.
pub(crate) fn path(noun: &Noun, id: &str) -> Result<String, Failure> {
    if noun.kind == "credential" {
        let (provider, id) = id
            .split_once('/')
            .ok_or_else(|| Failure::Usage(format!("a credential is named PROVIDER/ID; `{id}` has no `/`")))?;
        let below = format!("providers/{}/{}", segment(provider), noun.plural);
        return Ok(if id.is_empty() {
            below
        } else {
            format!("{below}/{}", segment(id))
        });
    }
    Ok(format!("{}/{}", noun.plural, segment(id)))
}

/// All kinds that satisfy `wanted`, for messages.
pub(crate) fn list(wanted: impl Fn(&Noun) -> bool) -> String {
    let kinds: Vec<_> = NOUNS
        .iter()
        .filter(|noun| wanted(noun))
        .map(|noun| noun.kind)
        .collect();
    kinds.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noun_is_found_by_singular_and_plural() {
        assert_eq!(find("model"), find("models"));
        assert!(find("model").is_some());
        assert_eq!(find("modell"), None);
        let path_of = |word, id| path(find(word).unwrap(), id).map_err(|failure| failure.to_string());
        assert_eq!(path_of("credential", "p/c").unwrap(), "providers/p/credentials/c");
        assert!(path_of("credential", "c").unwrap_err().contains("PROVIDER/ID"));
        assert_eq!(path_of("model", "a/b").unwrap(), "models/a%2Fb");
        // Dollars, tokens and requests look alike.
        assert!(find("budget").unwrap().columns.contains(&"unit"));
        assert!(list(|noun| noun.declared).starts_with("organization, provider, credential"));
    }
}
