//! Bodies of notices.

use tollway_shared::ids::{self, Revision};
use tollway_shared::notice;

use crate::admin::text::{self, Text, noun};

noun! {
    /// What to announce.
    put NoticePut;
    /// The announcement that a model, or one endpoint of it, goes away.
    record Notice {
        /// Its id.
        id: text::NoticeId,
    }
    fields {
        /// The model.
        model: text::ModelId,
        /// Only this endpoint of it, when named.
        #[serde(default)] endpoint: Option<text::EndpointId>,
        /// From when answers carry the warning.
        deprecated_at: text::Instant,
        /// From when the model is refused, when a date is known.
        #[serde(default)] sunset_at: Option<text::Instant>,
        /// What to use instead.
        #[serde(default)] successor: Option<text::ModelId>,
        /// Why, for people.
        #[serde(default)] reason: String,
        /// Where to read more.
        #[serde(default)] url: Option<String>,
    }
}

impl NoticePut {
    /// The stored form under this id.
    pub fn into_stored(self, id: ids::NoticeId) -> notice::Notice {
        let Self {
            model,
            endpoint,
            deprecated_at,
            sunset_at,
            successor,
            reason,
            url,
        } = self;
        notice::Notice {
            id,
            model: model.0,
            endpoint: endpoint.map(|endpoint| endpoint.0),
            deprecated_at: deprecated_at.0,
            sunset_at: sunset_at.map(|at| at.0),
            successor: successor.map(|model| model.0),
            reason,
            url,
        }
    }
}

impl Notice {
    /// The JSON form of a stored notice.
    pub fn of(notice: &notice::Notice, revision: Revision) -> Self {
        let notice::Notice {
            id,
            model,
            endpoint,
            deprecated_at,
            sunset_at,
            successor,
            reason,
            url,
        } = notice.clone();
        Self {
            id: Text(id),
            model: Text(model),
            endpoint: endpoint.map(Text),
            deprecated_at: Text(deprecated_at),
            sunset_at: sunset_at.map(Text),
            successor: successor.map(Text),
            reason,
            url,
            revision: revision.0,
        }
    }
}
