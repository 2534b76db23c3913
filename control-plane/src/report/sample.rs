//! Lines for the tests of this module.

use tollway_shared::cost::{self, Charge, Prices};
use tollway_shared::ids::*;
use tollway_shared::money::{NanoUsd, Price};
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

use super::line::Line;

/// 2026-11-22T12:00:00Z.
pub(super) const NOON: UnixMillis = UnixMillis(1_795_348_800_000);

/// An hour of the sample state's one key: ten requests of equal size, each of which leaves half a nano-dollar and more to rounding.
pub(super) fn line() -> Line {
    let (prices, requests) = (prices(), 10);
    let one = TokenCounts {
        input: 123_457,
        input_cache_read: 1_001,
        input_cache_write: 0,
        input_cache_write_1h: 0,
        output: 76_543,
        output_reasoning: 11,
    };
    let charge = cost::charge(&one, &prices).unwrap();
    let ten = |money: NanoUsd| NanoUsd(money.0 * 10);
    let mut tokens = TokenCounts::default();
    (0..requests).for_each(|_| tokens.add(&one));
    Line {
        hour: NOON,
        path: TenantPath {
            organization: OrganizationId::trusted("o"),
            team: None,
            project: ProjectId::trusted("j"),
            key: ApiKeyId::trusted("k"),
        },
        model: ModelId::trusted("a/m"),
        endpoint: EndpointId::trusted("p/a/m"),
        provider: ProviderId::trusted("p"),
        region: Region::trusted("eu"),
        price: PriceId::trusted("p1"),
        byok: false,
        prices,
        requests,
        estimated: 1,
        tokens,
        charge: Charge {
            input: ten(charge.input),
            input_cache_read: ten(charge.input_cache_read),
            input_cache_write: ten(charge.input_cache_write),
            input_cache_write_1h: ten(charge.input_cache_write_1h),
            output: ten(charge.output),
            output_reasoning: ten(charge.output_reasoning),
            request: ten(charge.request),
            total: ten(charge.total),
        },
        billed: ten(charge.total),
    }
}

/// Prices with one of each kind.
pub(super) fn prices() -> Prices {
    Prices {
        input_cache_read: Some(Price(250_000)),
        request: Some(NanoUsd(300_000)),
        ..Prices::flat(Price(2_500_000), Price(10_000_000))
    }
}
