//! Values that must not be printed.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize;

/// What is printed in place of a secret.
pub const HIDDEN: &str = "***";

/// Parts of the names of librdkafka's settings whose values are secrets.
const SECRET_SETTINGS: [&str; 5] = ["password", "secret", "key.pem", "oauthbearer", "token"];

/// Settings for librdkafka as they may be shown: passwords, private keys and tokens are hidden.
pub fn shown_settings(settings: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_secret = |name: &str| SECRET_SETTINGS.iter().any(|word| name.contains(word));
    let shown = settings.iter().map(|(name, value)| {
        let value = if is_secret(name) { HIDDEN } else { value };
        (name.clone(), value.to_owned())
    });
    shown.collect()
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
