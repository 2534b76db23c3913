//! Reports on money: the FOCUS export, invoices, re-rating, forecasts, comparison with what providers say.
//!
//! The arithmetic is [`report`](crate::report); here are the questions, the way to the billing store, and the answers' forms.

mod days;
mod export;
mod forecast;
mod invoice;
mod read;
mod what_if;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;

use super::Api;

/// The routes of reports.
pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(export::routes())
        .merge(invoice::routes())
        .merge(forecast::routes())
        .merge(what_if::routes())
}
