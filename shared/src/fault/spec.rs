//! What is the same of every fault of one kind: code, status, type, who must act.

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever sent the request.
    Caller,
    /// Whoever administers the tenant: budgets, keys, policies.
    Tenant,
    /// A provider.
    Provider,
    /// Whoever runs this cluster.
    Operator,
}

impl Owner {
    /// The name used in the README's table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Tenant => "tenant",
            Self::Provider => "provider",
            Self::Operator => "operator",
        }
    }
}

/// The public facts of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSpec {
    /// Stable code, `error.code` in the OpenAI shape.
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    /// `error.type` in the OpenAI shape.
    pub kind: &'static str,
    /// Who must act.
    pub owner: Owner,
    /// Whether the official clients should retry by themselves (`x-should-retry`).
    pub retry: bool,
}

pub(super) const fn spec(
    code: &'static str,
    status: u16,
    kind: &'static str,
    owner: Owner,
    retry: bool,
) -> FaultSpec {
    FaultSpec {
        code,
        status,
        kind,
        owner,
        retry,
    }
}
