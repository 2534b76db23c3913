//! Model retirement, announced ahead.

use serde::{Deserialize, Serialize};

use crate::ids::{EndpointId, ModelId, NoticeId};
use crate::time::UnixMillis;

/// The announcement that a model, or one endpoint of it, goes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Its id.
    pub id: NoticeId,
    /// The model.
    pub model: ModelId,
    /// Only this endpoint of it, when named.
    pub endpoint: Option<EndpointId>,
    /// From when answers carry the warning.
    pub deprecated_at: UnixMillis,
    /// From when the model is refused, when a date is known.
    pub sunset_at: Option<UnixMillis>,
    /// What to use instead.
    pub successor: Option<ModelId>,
    /// Why, for people.
    pub reason: String,
    /// Where to read more.
    pub url: Option<String>,
}

impl Notice {
    /// Whether answers must carry the warning at `now`.
    pub fn warns(&self, now: UnixMillis) -> bool {
        now >= self.deprecated_at
    }

    /// Whether the model is gone at `now`.
    pub fn retired(&self, now: UnixMillis) -> bool {
        self.sunset_at.is_some_and(|at| now >= at)
    }
}
