//! Which endpoints may serve a request, and in which order they are tried. PURE: time, chance and health are arguments.
//!
//! | file | what |
//! |---|---|
//! | [`eligible`] | the filter, which says why each one was left out |
//! | [`order`] | rank, health, the caller's wish, then a draw by price |

pub mod eligible;
pub mod order;

use std::sync::Arc;

use tollway_shared::catalog::{Endpoint, PriceVersion, Provider};

/// An endpoint that may serve this request, at the prices in force at admission.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its provider.
    pub provider: Arc<Provider>,
    /// Its prices, pinned for the whole request.
    pub price: Arc<PriceVersion>,
}
