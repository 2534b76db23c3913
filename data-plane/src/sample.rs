//! Small catalogs for unit tests.

use std::sync::Arc;

use tollway_shared::catalog::{AuthScheme, Dialect, Endpoint, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::{EndpointId, ModelId, PriceId, ProviderId};
use tollway_shared::money::Price;
use tollway_shared::time::UnixMillis;

use crate::routing::Candidate;

/// A provider on this machine.
pub(crate) fn provider(id: &str, dialect: Dialect, base_url: &str) -> Provider {
    Provider {
        id: ProviderId::trusted(id),
        name: id.into(),
        dialect,
        base_url: base_url.into(),
        auth: AuthScheme::None,
        private_network: true,
        stream_usage: dialect == Dialect::OpenAi,
        output_cap: None,
        bills_after_cancel: false,
        on_disconnect: None,
        connect_timeout_ms: 1_000,
        first_byte_timeout_ms: 1_000,
        idle_timeout_ms: 1_000,
        enabled: true,
    }
}

/// An endpoint of model `a/b` at a provider of its name.
pub(crate) fn endpoint(provider: &str, rank: u32) -> Endpoint {
    Endpoint {
        id: EndpointId::trusted(format!("{provider}/a/b")),
        model: ModelId::trusted("a/b"),
        provider: ProviderId::trusted(provider),
        upstream_model: "b-1".into(),
        region: None,
        max_output_tokens: None,
        on_disconnect: None,
        rank,
        enabled: true,
    }
}

/// Its price, `dollars` per million of either kind.
pub(crate) fn price(provider: &str, dollars: i64) -> PriceVersion {
    PriceVersion {
        id: PriceId::trusted(format!("price-{provider}")),
        endpoint: EndpointId::trusted(format!("{provider}/a/b")),
        effective_from: UnixMillis(0),
        prices: Prices::flat(Price(dollars * 1_000_000_000), Price(dollars * 1_000_000_000)),
    }
}

/// All three.
pub(crate) fn candidate(name: &str, rank: u32, dollars: i64) -> Candidate {
    Candidate {
        endpoint: Arc::new(endpoint(name, rank)),
        provider: Arc::new(provider(name, Dialect::OpenAi, "http://127.0.0.1:1")),
        price: Arc::new(price(name, dollars)),
    }
}
