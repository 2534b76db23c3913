//! What is sold, and where: values of the catalog's shapes.

use tollway_shared::catalog::{
    AuthScheme, Credential, Dialect, Endpoint, Model, OnDisconnect, OutputCap, PriceVersion, Provider,
};
use tollway_shared::cost::{Prices, Tier};
use tollway_shared::ids::{CredentialId, EndpointId, ModelId, PriceId, ProviderId, Region};
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::time::UnixMillis;

use super::{NOON, sealed};

pub(super) fn provider() -> Provider {
    Provider {
        id: ProviderId::trusted("p"),
        name: "P".into(),
        dialect: Dialect::Anthropic,
        base_url: "https://api.example.com/v1".into(),
        auth: AuthScheme::XApiKey,
        private_network: true,
        stream_usage: true,
        output_cap: Some(OutputCap::MaxCompletionTokens),
        bills_after_cancel: true,
        on_disconnect: Some(OnDisconnect::Drain {
            cap_ms: 5_000,
            cap_tokens: Some(900),
        }),
        connect_timeout_ms: 1_000,
        first_byte_timeout_ms: 20_000,
        idle_timeout_ms: 300_000,
        enabled: true,
    }
}

pub(super) fn credential() -> Credential {
    Credential {
        id: CredentialId::trusted("main"),
        provider: ProviderId::trusted("p"),
        version: 1,
        owner: None,
        regions: vec![Region::trusted("eu")],
        sealed: sealed(),
        created_at: NOON,
    }
}

pub(super) fn model(id: &str) -> Model {
    Model {
        id: ModelId::trusted(id),
        name: "M".into(),
        description: "a model".into(),
        context_tokens: 200_000,
        created_at: NOON,
    }
}

pub(super) fn endpoint() -> Endpoint {
    Endpoint {
        id: EndpointId::trusted("p/a/m"),
        model: ModelId::trusted("a/m"),
        provider: ProviderId::trusted("p"),
        upstream_model: "m-1".into(),
        region: Some(Region::trusted("eu")),
        max_output_tokens: Some(8_192),
        on_disconnect: None,
        rank: 3,
        enabled: true,
    }
}

pub(super) fn price(id: &str, effective_from: UnixMillis) -> PriceVersion {
    PriceVersion {
        id: PriceId::trusted(id),
        endpoint: EndpointId::trusted("p/a/m"),
        effective_from,
        prices: Prices {
            input: Price(3_000_000_000),
            output: Price(15_000_000_000),
            input_cache_read: Some(Price(300_000_000)),
            input_cache_write: Some(Price(3_750_000_000)),
            input_cache_write_1h: Some(Price(6_000_000_000)),
            output_reasoning: None,
            request: Some(NanoUsd(1_000)),
            tiers: vec![Tier {
                above_prompt_tokens: 200_000,
                input: Price(6_000_000_000),
                output: Price(22_500_000_000),
                input_cache_read: Some(Price(600_000_000)),
                input_cache_write: Some(Price(7_500_000_000)),
                input_cache_write_1h: None,
                output_reasoning: None,
            }],
        },
    }
}
