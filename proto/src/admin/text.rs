//! Values that travel as text in JSON: ids, instants, days, amounts. Read once, with the reason when they are wrong.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tollway_shared::{ids, money, time};
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A value with a text form.
pub trait Textual: Sized {
    /// Its name in the OpenAPI document.
    const NAME: &'static str;
    /// One sentence for the OpenAPI document.
    const ABOUT: &'static str;
    /// A value that is allowed.
    const EXAMPLE: &'static str;
    /// JSON Schema's format, when there is one.
    const FORMAT: Option<&'static str> = None;

    /// Reads the text form, or says what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
    /// Writes the text form.
    fn write(&self) -> String;
}

/// A [`Textual`] value in a JSON body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<T>(pub T);

impl<T> From<T> for Text<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Textual> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.write())
    }
}

impl<T: Textual> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.write())
    }
}

impl<'de, T: Textual> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        T::read(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl<T: Textual> PartialSchema for Text<T> {
    fn schema() -> RefOr<Schema> {
        let mut object: Object = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some(T::ABOUT))
            .examples([serde_json::Value::from(T::EXAMPLE)])
            .build();
        object.format = T::FORMAT.map(|format| SchemaFormat::Custom(format.to_owned()));
        RefOr::T(Schema::Object(object))
    }
}

impl<T: Textual> ToSchema for Text<T> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed(T::NAME)
    }
}

macro_rules! id_text {
    ($($name:ident, $parse:ident, $about:literal, $example:literal;)*) => {$(
        #[doc = $about]
        pub type $name = Text<ids::$name>;

        impl Textual for ids::$name {
            const NAME: &'static str = stringify!($name);
            const ABOUT: &'static str = $about;
            const EXAMPLE: &'static str = $example;

            fn read(text: &str) -> Result<Self, String> {
                Self::$parse(text).map_err(|fault| format!("`{text}` {fault}"))
            }

            fn write(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

id_text! {
    OrganizationId, parse, "An organization's id.", "acme";
    TeamId, parse, "A team's id.", "search";
    ProjectId, parse, "A project's id.", "search-web";
    ApiKeyId, parse, "An API key's public id; never the key itself.", "key_0190d7d2";
    ProviderId, parse, "A provider's id.", "openai";
    CredentialId, parse, "A credential's id.", "openai-main";
    EndpointId, parse, "An endpoint's id, by habit `provider/author/slug`.", "openai/openai/gpt-5";
    PriceId, parse, "A price version's id.", "price_0190d7d2";
    BudgetId, parse, "A budget's id.", "acme-monthly";
    NoticeId, parse, "A notice's id.", "gpt-4-retires";
    AdminId, parse, "An admin's id.", "alice@example.com";
    NodeId, parse, "A data-plane member's id.", "eu-1";
    Region, parse, "A region.", "eu-central";
    ClusterId, parse, "The cluster's id.", "c0190d7d2";
    ModelId, parse_author_slug, "A model's id: `author/slug`.", "openai/gpt-5";
}

/// An instant: RFC 3339.
pub type Instant = Text<time::UnixMillis>;
/// A UTC day.
pub type Day = Text<time::Day>;
/// An amount: decimal US dollars.
pub type Usd = Text<money::NanoUsd>;
/// A price: decimal US dollars per million units.
pub type UsdPerMillion = Text<money::Price>;

impl Textual for time::UnixMillis {
    const NAME: &'static str = "Instant";
    const ABOUT: &'static str = "An instant in RFC 3339 form.";
    const EXAMPLE: &'static str = "2026-11-22T18:21:04.125Z";
    const FORMAT: Option<&'static str> = Some("date-time");

    fn read(text: &str) -> Result<Self, String> {
        Self::parse_rfc3339(text)
            .ok_or_else(|| format!("`{text}` is not an instant such as `{}`", Self::EXAMPLE))
    }

    fn write(&self) -> String {
        self.rfc3339()
    }
}

impl Textual for time::Day {
    const NAME: &'static str = "Day";
    const ABOUT: &'static str = "A UTC day.";
    const EXAMPLE: &'static str = "2026-11-22";
    const FORMAT: Option<&'static str> = Some("date");

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("`{text}` is not a day such as `{}`", Self::EXAMPLE))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Textual for money::NanoUsd {
    const NAME: &'static str = "Usd";
    const ABOUT: &'static str =
        "US dollars as a decimal number in a string, with at most nine digits after the point.";
    const EXAMPLE: &'static str = "12.50";

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|fault| format!("`{text}` {fault}"))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Textual for money::Price {
    const NAME: &'static str = "UsdPerMillion";
    const ABOUT: &'static str = "US dollars per million units as a decimal number in a string, with at most nine digits after the point.";
    const EXAMPLE: &'static str = "2.50";

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|fault| format!("`{text}` {fault}"))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Reads a number above zero.
pub(crate) fn above_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(serde::de::Error::custom("is 0; must be at least 1")),
        number => Ok(number),
    }
}

/// A secret on its way in, or shown once on its way out. Prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct SecretText(String);

impl SecretText {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A JSON enum that mirrors a stored one: conversions both ways, exhaustive.
///
/// The name in JSON is a `tt`: utoipa does not look into a captured literal, and would document the name of the variant.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident = $stored:ty { $($(#[$variant_doc:meta])* $variant:ident $json:tt,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $json)] $variant,)*
        }

        impl From<$stored> for $name {
            fn from(stored: $stored) -> Self {
                match stored {
                    $(<$stored>::$variant => Self::$variant,)*
                }
            }
        }

        impl From<$name> for $stored {
            fn from(json: $name) -> Self {
                match json {
                    $($name::$variant => Self::$variant,)*
                }
            }
        }
    };
}
pub(crate) use mirror;

/// The body of a PUT and the record that a GET answers, from one list of fields. The record also has what `more` lists, and
/// `revision`. Bodies refuse unknown fields by name; records accept them, so that an older client can read a newer cluster.
macro_rules! noun {
    (
        $(#[$put_doc:meta])* put $put:ident;
        $(#[$doc:meta])* record $name:ident { $($(#[$more_meta:meta])* $more:ident: $more_type:ty,)* }
        fields { $($(#[$meta:meta])* $field:ident: $type:ty,)* }
    ) => {
        $(#[$put_doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $put {
            $($(#[$meta])* pub $field: $type,)*
        }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($(#[$more_meta])* pub $more: $more_type,)*
            $($(#[$meta])* pub $field: $type,)*
            /// The revision of the last change of this record; what `if_revision` is compared with.
            pub revision: u64,
        }
    };
}
pub(crate) use noun;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_value_says_what_is_wrong_with_it() {
        let fault = serde_json::from_str::<ModelId>("\"gpt-5\"")
            .unwrap_err()
            .to_string();
        assert!(
            fault.contains("`gpt-5` must have the form `author/slug`"),
            "{fault}"
        );
        let fault = serde_json::from_str::<Usd>("\"1e3\"").unwrap_err().to_string();
        assert!(fault.contains("is not a decimal number"), "{fault}");
        let fault = serde_json::from_str::<Instant>("\"soon\"")
            .unwrap_err()
            .to_string();
        assert!(fault.contains("is not an instant such as"), "{fault}");
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", SecretText::new("hunter2")), "***");
    }
}
