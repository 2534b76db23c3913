//! Values that must not be printed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// What is printed in place of a secret.
pub const HIDDEN: &str = "***";

/// Parts of the names of librdkafka's settings whose values are secrets.
const SECRET_SETTINGS: [&str; 5] = ["password", "secret", "key.pem", "oauthbearer", "token"];

/// Settings that are passed through to librdkafka, by name. Some are secrets: `Debug` shows those as [`HIDDEN`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KafkaSettings(pub BTreeMap<String, String>);

impl KafkaSettings {
    /// The settings as they may be shown: passwords, private keys and tokens are hidden.
    pub fn shown(&self) -> Self {
        let is_secret = |name: &str| SECRET_SETTINGS.iter().any(|word| name.contains(word));
        let shown = self.0.iter().map(|(name, value)| {
            let value = if is_secret(name) { HIDDEN } else { value };
            (name.clone(), value.to_owned())
        });
        Self(shown.collect())
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown().0).finish()
    }
}

/// A secret: prints as `***` and is wiped from memory when dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the value in.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T: Zeroize> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_for_kafka_never_print_their_secrets() {
        let pairs = [
            ("sasl.password", "hunter2"),
            ("ssl.key.pem", "hunter2"),
            ("sasl.username", "meter"),
        ];
        let settings = KafkaSettings(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        );
        let printed = format!("{settings:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(
            printed.contains("meter") && printed.contains("sasl.password"),
            "{printed}"
        );
    }
}
