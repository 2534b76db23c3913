//! What reports are made of: one hourly sum of the billing store.

use tollway_shared::cost::{Charge, Prices};
use tollway_shared::ids::{EndpointId, ModelId, PriceId, ProviderId, Region};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

/// Milliseconds in an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// One sum of the billing store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The first instant of the UTC hour in which the requests started.
    pub hour: UnixMillis,
    /// Who pays.
    pub path: TenantPath,
    /// The model that served.
    pub model: ModelId,
    /// The endpoint that served.
    pub endpoint: EndpointId,
    /// Its provider.
    pub provider: ProviderId,
    /// The region of the node.
    pub region: Region,
    /// The price version that the requests were admitted under.
    pub price: PriceId,
    /// Whether they were served with the organization's own credential.
    pub byok: bool,
    /// Requests that reached a provider.
    pub requests: u64,
    /// Those among them whose counts are estimates.
    pub estimated: u64,
    /// Tokens by kind.
    pub tokens: TokenCounts,
    /// The prices of that version.
    pub prices: Prices,
    /// What they cost at list price: the exact sums of the events' charges, line by line.
    pub charge: Charge,
    /// What the organization owes for them, without fees: list price and markup less discount; nothing with its own credential.
    pub billed: NanoUsd,
}

impl Line {
    /// What is owed beyond list price (markup) or below it (discount, free quota). With the organization's own credential the list price
    /// is not ours to bill.
    pub fn adjustment(&self) -> i128 {
        i128::from(self.billed.0) - self.list_owed()
    }

    /// The part of the list price that is owed to us.
    pub fn list_owed(&self) -> i128 {
        if self.byok { 0 } else { self.charge.total.0.into() }
    }

    /// Whether two sums differ in nothing but what they count (and in labels that are not part of a line).
    pub fn is_beside(&self, other: &Self) -> bool {
        (self.hour, self.byok) == (other.hour, other.byok)
            && self.path == other.path
            && self.model == other.model
            && self.endpoint == other.endpoint
            && self.provider == other.provider
            && self.region == other.region
            && self.price == other.price
            && self.prices == other.prices
    }

    /// Adds another's counts and money; false when a sum of money would leave its range, and then nothing is added.
    #[must_use]
    pub fn absorb(&mut self, other: &Self) -> bool {
        let Some((charge, billed)) = self.money_with(other) else {
            return false;
        };
        (self.charge, self.billed) = (charge, billed);
        self.requests = self.requests.saturating_add(other.requests);
        self.estimated = self.estimated.saturating_add(other.estimated);
        self.tokens.add(&other.tokens);
        true
    }

    fn money_with(&self, other: &Self) -> Option<(Charge, NanoUsd)> {
        let (a, b) = (&self.charge, &other.charge);
        let sum = |a: NanoUsd, b: NanoUsd| a.plus(b).ok();
        let charge = Charge {
            input: sum(a.input, b.input)?,
            input_cache_read: sum(a.input_cache_read, b.input_cache_read)?,
            input_cache_write: sum(a.input_cache_write, b.input_cache_write)?,
            input_cache_write_1h: sum(a.input_cache_write_1h, b.input_cache_write_1h)?,
            output: sum(a.output, b.output)?,
            output_reasoning: sum(a.output_reasoning, b.output_reasoning)?,
            request: sum(a.request, b.request)?,
            total: sum(a.total, b.total)?,
        };
        Some((charge, sum(self.billed, other.billed)?))
    }
}

/// Merges neighbours that are beside each other: the store tells end users apart, most reports do not. Holds one line.
#[derive(Debug, Default)]
pub struct Merge(Option<Line>);

impl Merge {
    /// Takes the next line; gives one that is complete, if this was another's first.
    pub fn push(&mut self, line: Line) -> Option<Line> {
        if let Some(held) = &mut self.0
            && held.is_beside(&line)
            && held.absorb(&line)
        {
            return None;
        }
        self.0.replace(line)
    }

    /// The last line.
    pub fn finish(&mut self) -> Option<Line> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn lines_that_only_end_users_tell_apart_become_one_and_nothing_is_lost() {
        let (first, mut other) = (sample::line(), sample::line());
        other.byok = true;
        let mut merge = Merge::default();
        let mut out: Vec<Line> = [
            first.clone(),
            first.clone(),
            first.clone(),
            other.clone(),
            first.clone(),
        ]
        .into_iter()
        .filter_map(|line| merge.push(line))
        .collect();
        out.extend(merge.finish());
        let requests: Vec<u64> = out.iter().map(|line| line.requests).collect();
        assert_eq!(requests, [30, 10, 10]);
        assert_eq!(out[0].charge.total.0, first.charge.total.0 * 3);
    }
}
