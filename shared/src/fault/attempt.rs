//! What goes wrong with one attempt at a provider, and what that means for the next.

use crate::ids::ProviderId;

/// What went wrong with one attempt at a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptFault {
    /// No connection: refused, unreachable, name not found, TLS refused.
    Connect,
    /// The address is one that this provider may not have (loopback or private without permission).
    Address,
    /// A deadline passed before the first byte.
    Timeout,
    /// The connection broke before the first byte.
    Broken,
    /// The answer broke off before any of it could be passed on.
    CutShort,
    /// The provider answered with an error status.
    Status(u16),
    /// The provider answered with something that is not its dialect.
    Garbled,
    /// The provider's credential is missing or does not open.
    Credential,
}

impl AttemptFault {
    /// The closed name used in events, metrics and decision records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Address => "address",
            Self::Timeout => "timeout",
            Self::Broken | Self::CutShort => "broken",
            Self::Status(_) => "status",
            Self::Garbled => "garbled",
            Self::Credential => "credential",
        }
    }

    /// Whether another endpoint may be tried. A provider's 400, 404, 413 or 422 says the request is wrong, so trying elsewhere
    /// would only repeat it; 401, 402 and 403 say our credential there is wrong, so elsewhere may work.
    pub fn another_may_work(self) -> bool {
        match self {
            Self::Status(status) => !matches!(status, 400 | 404 | 405 | 409 | 411..=418 | 422),
            Self::Connect
            | Self::Address
            | Self::Timeout
            | Self::Broken
            | Self::CutShort
            | Self::Garbled
            | Self::Credential => true,
        }
    }
}

/// How it is told to callers.
pub(super) fn attempt_hint(fault: AttemptFault) -> String {
    match fault {
        AttemptFault::Connect => "it could not be reached".into(),
        AttemptFault::Address => "its address is not allowed".into(),
        AttemptFault::Timeout => "it did not answer in time".into(),
        AttemptFault::Broken => "it closed the connection before answering".into(),
        AttemptFault::CutShort => "its answer broke off".into(),
        AttemptFault::Status(status) => format!("it answered with status {status}"),
        AttemptFault::Garbled => "its answer was not understood".into(),
        AttemptFault::Credential => "no usable credential for it on this node".into(),
    }
}

/// How the end of all attempts begins: how many there were, and who was last.
pub(super) fn attempts_failed(tried: usize, last: &ProviderId) -> String {
    match tried {
        1 => format!("the only attempt, at provider `{last}`, failed"),
        tried => format!("all {tried} attempts failed; the last one at provider `{last}`"),
    }
}
