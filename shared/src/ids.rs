//! Names of things: one newtype per noun, so that a project id can never be passed where a team id is meant.
//!
//! Text ids are cheap to clone (one reference count). `parse` is the only way in from outside and says what is wrong.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest text id, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdFault {
    /// Nothing there.
    #[error("must not be empty")]
    Empty,
    /// Longer than [`ID_BYTES_MAX`].
    #[error("is {0} bytes long; at most {ID_BYTES_MAX} are allowed")]
    Long(usize),
    /// A character outside the allowed set.
    #[error("contains `{found}`; allowed are {allowed}")]
    Character {
        /// The first character that is not allowed.
        found: char,
        /// The allowed set, for people.
        allowed: &'static str,
    },
    /// `.` or `..`, whole or as a part of a path: clients and proxies fold them away.
    #[error("must not be `.` or `..`, nor have them as a part between slashes")]
    Dots,
    /// A model id without the `author/slug` form.
    #[error("must have the form `author/slug`")]
    NotAuthorSlug,
}

fn checked(text: &str, extra: &str, allowed: &'static str) -> Result<Arc<str>, IdFault> {
    if text.is_empty() {
        return Err(IdFault::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdFault::Long(text.len()));
    }
    if text.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(IdFault::Dots);
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || extra.contains(*c)))
    {
        Some(found) => Err(IdFault::Character { found, allowed }),
        None => Ok(Arc::from(text)),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $extra:literal, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            pub fn parse(text: &str) -> Result<Self, IdFault> {
                checked(text, $extra, $allowed).map(Self)
            }

            /// Wraps text that is already known to be good (minted by us, or read from our own storage).
            pub fn trusted(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The id as shared text.
            pub fn text(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(/// An organization: the root of a tenant path and the account that is billed.
    OrganizationId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A team inside an organization.
    TeamId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A project inside an organization, in at most one team.
    ProjectId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// An API key's public id; never the key itself.
    ApiKeyId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A company or server that answers model requests.
    ProviderId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A provider's secret, by name.
    CredentialId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A model at one provider.
    EndpointId, "._-/:", "letters, digits, `.`, `_`, `-`, `/` and `:`");
text_id!(/// One immutable, effective-dated set of prices of an endpoint.
    PriceId, "._-/:", "letters, digits, `.`, `_`, `-`, `/` and `:`");
text_id!(/// A budget.
    BudgetId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A retirement notice.
    NoticeId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// An administrator or service account of the control plane.
    AdminId, "._-@", "letters, digits, `.`, `_`, `-` and `@`");
text_id!(/// A data-plane member.
    NodeId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// A place where nodes run and data may be processed.
    Region, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// One cluster: every replica and node that shares a certificate authority and a log.
    ClusterId, "-", "letters, digits and `-`");
text_id!(/// One caller request, minted by the node; also the id of its answer (`gen-…`).
    RequestId, "._-", "letters, digits, `.`, `_` and `-`");
text_id!(/// What a caller asks for: `author/slug`, with an optional `:variant`.
    ModelId, "._-/:~@+", "letters, digits, `.`, `_`, `-`, `/`, `:`, `~`, `@` and `+`");

impl ModelId {
    /// Like [`ModelId::parse`], and insists on exactly one `/` between two non-empty parts.
    pub fn parse_author_slug(text: &str) -> Result<Self, IdFault> {
        let id = Self::parse(text)?;
        match text.split_once('/') {
            Some((author, slug)) if !author.is_empty() && !slug.is_empty() && !slug.contains('/') => Ok(id),
            _ => Err(IdFault::NotAuthorSlug),
        }
    }

    /// Whether it is offered free: its variant is `:free`. Its requests cost their tenants nothing, whatever they cost the operator.
    pub fn is_free(&self) -> bool {
        self.as_str().ends_with(":free")
    }

    /// What a budget names that counts every free model. No model can have this id.
    pub fn every_free() -> Self {
        Self::trusted("*:free")
    }

    /// Whether what is meant by this includes a model: itself, or [`ModelId::every_free`] a free one.
    pub fn includes(&self, model: &Self) -> bool {
        self == model || (self.as_str() == "*:free" && model.is_free())
    }

    /// The part before the `/`, or the whole id when there is none.
    pub fn author(&self) -> &str {
        self.as_str()
            .split_once('/')
            .map_or(self.as_str(), |(author, _)| author)
    }
}

/// A control-plane member. Never reused after removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The Raft log index of the last change that nodes can see. 0 = nothing yet. Only moves forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! life_id {
    ($(#[$doc:meta])* $name:ident, $fault:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// Reads the 32-digit hex form.
            pub fn parse(text: &str) -> Option<Self> {
                (text.len() == 32)
                    .then(|| u128::from_str_radix(text, 16).ok().map(Self))
                    .flatten()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u128(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                    Self::parse(&text).ok_or_else(|| serde::de::Error::custom($fault))
                } else {
                    u128::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

life_id!(/// One life of one usage writer: 128 random bits minted when a spool writer starts. Text form: 32 hex digits.
    WriterId, "a writer id is 32 hex digits");
life_id!(/// One life of a node's process: 128 random bits minted when it starts. Leases belong to one. Text form: 32 hex digits.
    Incarnation, "an incarnation is 32 hex digits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_first_bad_character() {
        assert_eq!(OrganizationId::parse("acme").unwrap().as_str(), "acme");
        assert_eq!(OrganizationId::parse(""), Err(IdFault::Empty));
        for dots in [".", ".."] {
            assert_eq!(OrganizationId::parse(dots), Err(IdFault::Dots));
            assert_eq!(ModelId::parse(&format!("a/{dots}")), Err(IdFault::Dots));
        }
        assert_eq!(ModelId::parse("a/b..c").unwrap().as_str(), "a/b..c");
        assert!(matches!(
            OrganizationId::parse("a b"),
            Err(IdFault::Character { found: ' ', .. })
        ));
        assert!(matches!(
            OrganizationId::parse(&"x".repeat(129)),
            Err(IdFault::Long(129))
        ));
    }

    #[test]
    fn a_model_id_needs_author_and_slug() {
        assert_eq!(
            ModelId::parse_author_slug("openai/gpt-5").unwrap().author(),
            "openai"
        );
        for bad in ["gpt-5", "/x", "x/", "a/b/c"] {
            assert_eq!(
                ModelId::parse_author_slug(bad),
                Err(IdFault::NotAuthorSlug),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_writer_id_survives_its_text_form() {
        let id = WriterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(WriterId::parse(&id.to_string()), Some(id));
        assert_eq!(WriterId::parse("12"), None);
    }
}
