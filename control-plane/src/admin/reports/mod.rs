//! Reports on money. The arithmetic is [`report`](crate::report); here are the questions and the answers' forms.

mod forecast;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::Api;

/// The routes of reports.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().merge(forecast::routes())
}
