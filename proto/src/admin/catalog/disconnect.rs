//! What becomes of an answer whose caller hangs up.

use serde::{Deserialize, Serialize};
use tollway_shared::catalog as stored;
use utoipa::ToSchema;

use crate::admin::text;

/// What becomes of an answer whose caller hangs up. It is billed as the provider bills it in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum OnDisconnect {
    /// The request is cancelled at once.
    Abort {},
    /// It is read on, for the provider's own counts, and cancelled where it does not end within either bound.
    Drain {
        /// Milliseconds since the caller left.
        #[serde(deserialize_with = "text::above_zero")]
        #[schema(minimum = 1)]
        cap_ms: u32,
        /// Completion tokens since then; default: as many as come in that time.
        #[serde(default)]
        cap_tokens: Option<u32>,
    },
    /// It is read to its end.
    DrainFully {},
}

impl From<OnDisconnect> for stored::OnDisconnect {
    fn from(told: OnDisconnect) -> Self {
        match told {
            OnDisconnect::Abort {} => Self::Abort,
            OnDisconnect::Drain { cap_ms, cap_tokens } => Self::Drain { cap_ms, cap_tokens },
            OnDisconnect::DrainFully {} => Self::DrainFully,
        }
    }
}

impl From<stored::OnDisconnect> for OnDisconnect {
    fn from(stored: stored::OnDisconnect) -> Self {
        match stored {
            stored::OnDisconnect::Abort => Self::Abort {},
            stored::OnDisconnect::Drain { cap_ms, cap_tokens } => Self::Drain { cap_ms, cap_tokens },
            stored::OnDisconnect::DrainFully => Self::DrainFully {},
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written_and_nothing_else_is() {
        for (json, stored) in [
            (json!({"policy": "abort"}), stored::OnDisconnect::Abort),
            (
                json!({"policy": "drain", "cap_ms": 5, "cap_tokens": 7}),
                stored::OnDisconnect::Drain {
                    cap_ms: 5,
                    cap_tokens: Some(7),
                },
            ),
            (json!({"policy": "drain_fully"}), stored::OnDisconnect::DrainFully),
        ] {
            let read: OnDisconnect = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(stored::OnDisconnect::from(read), stored);
            assert_eq!(serde_json::to_value(OnDisconnect::from(stored)).unwrap(), json);
        }
        for wrong in [
            json!({"policy": "abort", "cap_ms": 5}),
            json!({"policy": "drain"}),
            json!({"policy": "drain", "cap_ms": 0}),
            json!({"policy": "stop"}),
            json!("abort"),
        ] {
            assert!(
                serde_json::from_value::<OnDisconnect>(wrong.clone()).is_err(),
                "{wrong}"
            );
        }
    }
}
