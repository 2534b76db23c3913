//! Labels of projects and API keys: names and values by which an organization hands its cost on (cost centre, product, customer). Pure.
//!
//! They are read when a report is made, never when a request is served: nodes do not see them, and a change of them changes every report
//! made from then on, of the past too.

use std::collections::BTreeMap;

/// Values by name.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one project or key.
pub const LABELS_MAX: usize = 16;
/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 128;
/// What reports call usage without the label; no label has this value.
pub const UNLABELLED: &str = "unlabelled";

/// Why labels are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelFault {
    /// More than [`LABELS_MAX`].
    #[error("must be at most {LABELS_MAX}")]
    Many,
    /// A name that is none.
    #[error("has the name `{0}`; a name is 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// A value that is none.
    #[error(
        "has a value for `{0}` that is not 1 to {VALUE_BYTES_MAX} bytes of text without control characters and spaces at its ends"
    )]
    Value(String),
    /// The word of reports for none.
    #[error("has the value `{UNLABELLED}` for `{0}`, which stands for no label; leave the label out")]
    Reserved(String),
}

/// Whether a text is a label's name.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed)
}

/// Checks all that may be wrong with labels.
pub fn check(labels: &Labels) -> Result<(), LabelFault> {
    if labels.len() > LABELS_MAX {
        return Err(LabelFault::Many);
    }
    for (name, value) in labels {
        if !is_name(name) {
            return Err(LabelFault::Name(name.clone()));
        }
        let is_text = (1..=VALUE_BYTES_MAX).contains(&value.len())
            && value.trim() == value
            && !value.chars().any(char::is_control);
        if !is_text {
            return Err(LabelFault::Value(name.clone()));
        }
        if value == UNLABELLED {
            return Err(LabelFault::Reserved(name.clone()));
        }
    }
    Ok(())
}

/// The labels of a key in a project: its own win.
pub fn of_both(project: &Labels, key: &Labels) -> Labels {
    let mut both = project.clone();
    both.extend(key.iter().map(|(name, value)| (name.clone(), value.clone())));
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_short_and_plain() {
        let of = |name: &str, value: &str| Labels::from([(name.to_owned(), value.to_owned())]);
        for (labels, is_sound) in [
            (Labels::new(), true),
            (of("cost-center", "R&D, Köln / 4711"), true),
            (
                of(&"n".repeat(NAME_BYTES_MAX), &"v".repeat(VALUE_BYTES_MAX)),
                true,
            ),
            (of(&"n".repeat(NAME_BYTES_MAX + 1), "v"), false),
            (of("n", &"v".repeat(VALUE_BYTES_MAX + 1)), false),
            (of("", "v"), false),
            (of("a,b", "v"), false),
            (of("n", ""), false),
            (of("n", " v"), false),
            (of("n", "a\nb"), false),
            (of("n", UNLABELLED), false),
            ((0..16).map(|n| (n.to_string(), "v".to_owned())).collect(), true),
            ((0..17).map(|n| (n.to_string(), "v".to_owned())).collect(), false),
        ] {
            assert_eq!(check(&labels).is_ok(), is_sound, "{labels:?}");
        }
    }
}
