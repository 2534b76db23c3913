//! How a command ends: one exit code per kind of outcome, so that scripts need not read text.

use std::fmt;
use std::process::ExitCode;

/// The table that `--help` prints; keep it next to [`Failure::code`].
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused by the server: the message names the field and the reason
  2  wrong arguments or an unreadable document; nothing was sent
  3  no server answered
  4  not found
  5  conflict, or `--if-revision` did not match
  6  the admin key is missing, wrong or may not do this
  7  `diff` found differences, or `audit --verify` a changed record
  8  the cluster cannot decide now (no quorum, starting, stopping): safe to try again
  9  a fault on this machine: a file, a port, a child of `tollway up`";

/// What the server said when it refused: its `application/problem+json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// Stable code.
    pub(crate) code: String,
    /// The class of problem, for people.
    pub(crate) title: String,
    /// What is wrong and what to do.
    pub(crate) detail: String,
    /// The field that is wrong, if one is.
    pub(crate) field: Option<String>,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Wrong arguments or documents.
    Usage(String),
    /// No server answered.
    Unreachable(String),
    /// The server refused.
    Refused(Problem),
    /// `diff` found this many differences.
    Differs(usize),
    /// Something on this machine.
    Local(anyhow::Error),
}

impl Failure {
    /// The exit code, as [`EXIT_CODES`] documents it.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(problem) => match problem.status {
                404 => 4,
                409 | 412 => 5,
                401 | 403 => 6,
                502..=504 => 8,
                _ => 1,
            },
            Self::Differs(_) => 7,
            Self::Local(_) => 9,
        }
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        failure.code().into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Local(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Unreachable(text) => f.write_str(text),
            Self::Refused(problem) => {
                let text = if problem.detail.is_empty() {
                    &problem.title
                } else {
                    &problem.detail
                };
                // The server's texts name the field themselves where that reads better.
                match &problem.field {
                    Some(field) if !text.contains(&format!("`{field}`")) => write!(f, "`{field}`: {text}")?,
                    _ => f.write_str(text)?,
                }
                let code = if problem.code.is_empty() { "" } else { " " };
                write!(f, " ({}{code}{})", problem.status, problem.code)
            }
            Self::Differs(1) => f.write_str("1 resource differs"),
            Self::Differs(count) => write!(f, "{count} resources differ"),
            Self::Local(error) => write!(f, "{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, field: Option<&str>, detail: &str) -> Failure {
        Failure::Refused(Problem {
            status,
            code: "invalid".into(),
            title: "invalid".into(),
            detail: detail.into(),
            field: field.map(str::to_owned),
        })
    }

    #[test]
    fn every_kind_of_refusal_has_the_exit_code_that_help_promises() {
        for (status, code) in [
            (400, 1),
            (422, 1),
            (404, 4),
            (409, 5),
            (412, 5),
            (401, 6),
            (403, 6),
            (503, 8),
        ] {
            assert_eq!(refused(status, None, "x").code(), code, "{status}");
        }
        for code in 0..=9 {
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
        }
    }

    #[test]
    fn a_refusal_names_the_field_once() {
        assert_eq!(
            refused(422, Some("base_url"), "is not a URL").to_string(),
            "`base_url`: is not a URL (422 invalid)"
        );
        assert_eq!(
            refused(422, Some("base_url"), "`base_url` is not a URL").to_string(),
            "`base_url` is not a URL (422 invalid)"
        );
    }
}
