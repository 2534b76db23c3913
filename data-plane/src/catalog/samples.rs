//! Small snapshots for tests.

use tollway_proto::push::{decode_resource, encode_resource};
use tollway_shared::catalog::{AuthScheme, Dialect, Endpoint, Model, PriceVersion, Provider};
use tollway_shared::cost::Prices;
use tollway_shared::ids::{EndpointId, ModelId, PriceId, ProviderId, Revision};
use tollway_shared::money::Price;
use tollway_shared::snapshot::{Resource, Snapshot};
use tollway_shared::time::UnixMillis;

/// A provider, a model, an endpoint, and a price of `price`.
pub(crate) fn resources(price: i64) -> Vec<Resource> {
    vec![
        Resource::Provider(Provider {
            id: ProviderId::trusted("p"),
            name: "P".into(),
            dialect: Dialect::OpenAi,
            base_url: "https://api.example.com/v1".into(),
            auth: AuthScheme::Bearer,
            private_network: false,
            stream_usage: true,
            output_cap: None,
            bills_after_cancel: false,
            on_disconnect: None,
            connect_timeout_ms: 1000,
            first_byte_timeout_ms: 1000,
            idle_timeout_ms: 1000,
            enabled: true,
        }),
        Resource::Model(model("a/m")),
        Resource::Endpoint(Endpoint {
            id: EndpointId::trusted("p/a/m"),
            model: ModelId::trusted("a/m"),
            provider: ProviderId::trusted("p"),
            upstream_model: "m".into(),
            region: None,
            max_output_tokens: None,
            on_disconnect: None,
            rank: 0,
            enabled: true,
        }),
        Resource::Price(PriceVersion {
            id: PriceId::trusted("p1"),
            endpoint: EndpointId::trusted("p/a/m"),
            effective_from: UnixMillis(0),
            prices: Prices::flat(Price(price), Price(price)),
        }),
    ]
}

pub(crate) fn model(id: &str) -> Model {
    Model {
        id: ModelId::trusted(id),
        name: id.into(),
        description: String::new(),
        context_tokens: 8192,
        created_at: UnixMillis(0),
    }
}

/// A snapshot of `revision` made of [`resources`].
pub(crate) fn snapshot(revision: u64, price: i64) -> Snapshot {
    of(revision, resources(price))
}

/// A snapshot of `revision` made of `resources`.
pub(crate) fn of(revision: u64, resources: Vec<Resource>) -> Snapshot {
    let mut snapshot = Snapshot::at(Revision(revision));
    for resource in resources {
        let (resource, digest) = decode_resource(&encode_resource(&resource)).unwrap();
        snapshot.put(resource, digest);
    }
    snapshot
}
