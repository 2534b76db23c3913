//! A provider's account of usage beside ours. Pure.
//!
//! Ours is what was sent with the operator's credentials: what tenants sent with their own is on other invoices.

use std::collections::{BTreeMap, BTreeSet};

use tollway_proto::admin::report::{Reconciled, ReconciledRow};
use tollway_proto::admin::text::Text;
use tollway_shared::ids::ModelId;
use tollway_shared::money::MoneyFault;
use tollway_shared::time::Day;

use super::invoice::usd;
use super::line::Line;
use super::meter::half_even;
use super::statement;
use crate::state::State;

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    provider_tokens: u64,
    our_tokens: u64,
    provider_cost: i128,
    our_cost: i128,
}

/// A comparison in the making: takes our lines in any order.
#[derive(Debug)]
pub struct Comparison {
    rows: BTreeMap<(String, Day, String), Sums>,
    covered: BTreeSet<(String, Day)>,
}

impl Comparison {
    /// Begins with what the provider says.
    pub fn new(statement: &[statement::Row], state: &State) -> Self {
        let models = Models::of(state);
        let mut rows: BTreeMap<_, Sums> = BTreeMap::new();
        let mut covered = BTreeSet::new();
        for row in statement {
            let model = models.ours(&row.provider, &row.model);
            let sums = rows.entry((row.provider.clone(), row.day, model)).or_default();
            sums.provider_tokens = sums.provider_tokens.saturating_add(row.tokens);
            sums.provider_cost += i128::from(row.cost.0);
            covered.insert((row.provider.clone(), row.day));
        }
        Self { rows, covered }
    }

    /// The first and the last day that it is about.
    pub fn days(&self) -> Option<(Day, Day)> {
        let days = || self.covered.iter().map(|(_, day)| *day);
        days().min().zip(days().max())
    }

    /// Takes a line; one of a provider and day that the statement does not have is left out.
    pub fn push(&mut self, line: &Line) {
        let place = (line.provider.to_string(), line.hour.day());
        if line.byok || !self.covered.contains(&place) {
            return;
        }
        let (provider, day) = place;
        let sums = self
            .rows
            .entry((provider, day, line.model.to_string()))
            .or_default();
        sums.our_tokens = sums.our_tokens.saturating_add(line.tokens.total());
        sums.our_cost += i128::from(line.charge.total.0);
    }

    /// The comparison.
    pub fn finish(self) -> Result<Reconciled, MoneyFault> {
        let (mut tokens_drift, mut cost_drift) = (0u64, 0i128);
        let mut data = Vec::with_capacity(self.rows.len());
        for ((provider, day, model), sums) in self.rows {
            let difference = sums.our_cost - sums.provider_cost;
            tokens_drift = tokens_drift.saturating_add(sums.our_tokens.abs_diff(sums.provider_tokens));
            cost_drift += difference.abs();
            data.push(ReconciledRow {
                provider,
                day: Text(day),
                model,
                provider_tokens: sums.provider_tokens,
                our_tokens: sums.our_tokens,
                tokens_percent: percent(sums.our_tokens.into(), sums.provider_tokens.into()),
                provider_cost: usd(sums.provider_cost)?,
                our_cost: usd(sums.our_cost)?,
                cost_difference: usd(difference)?,
                cost_percent: percent(sums.our_cost, sums.provider_cost),
            });
        }
        Ok(Reconciled {
            data,
            tokens_drift,
            cost_drift: usd(cost_drift)?,
        })
    }
}

/// Models by what providers call them.
struct Models<'a> {
    state: &'a State,
    upstream: BTreeMap<(&'a str, &'a str), &'a ModelId>,
}

impl<'a> Models<'a> {
    fn of(state: &'a State) -> Self {
        let mut upstream = BTreeMap::new();
        for endpoint in state.endpoints.values().map(|kept| &kept.value) {
            let name = (endpoint.provider.as_str(), endpoint.upstream_model.as_str());
            upstream.entry(name).or_insert(&endpoint.model); // of several, the first
        }
        Self { state, upstream }
    }

    /// Our id of a model that a provider names in its own way: by an endpoint there that calls it so. What nobody knows stays as it is.
    fn ours(&self, provider: &str, name: &str) -> String {
        if self.state.models.contains_key(name) {
            return name.to_owned();
        }
        let ours = self.upstream.get(&(provider, name));
        ours.map_or_else(|| name.to_owned(), ToString::to_string)
    }
}

/// How much more `ours` is than `theirs`, in percent of theirs, with two digits.
fn percent(ours: i128, theirs: i128) -> Option<String> {
    if theirs == 0 {
        return (ours == 0).then(|| "0.00".to_owned());
    }
    let (difference, whole) = (ours - theirs, theirs.abs());
    let hundredths = half_even(difference * 10_000, whole);
    let sign = if hundredths < 0 { "-" } else { "" };
    let size = hundredths.unsigned_abs();
    Some(format!("{sign}{}.{:02}", size / 100, size % 100))
}

#[cfg(test)]
mod tests {
    use tollway_shared::money::NanoUsd;

    use super::*;
    use crate::report::sample;
    use crate::state::samples;

    #[test]
    fn what_only_one_side_has_is_a_row_and_own_credentials_and_other_days_are_none() {
        let state = samples::catalog(); // endpoint p/a/m calls model a/m `m`
        let line = sample::line();
        let (tokens, cost) = (line.tokens.total(), line.charge.total);
        let row = |day: Day, model: &str, tokens, cost| statement::Row {
            provider: "p".into(),
            day,
            model: model.into(),
            tokens,
            cost,
        };
        let today = line.hour.day();
        let statement = [
            row(today, "m", tokens - 1, cost),
            row(today, "a/m", 1, NanoUsd(0)),
            row(today, "their-other", 10, NanoUsd(1_000)),
        ];
        let mut comparison = Comparison::new(&statement, &state);
        assert_eq!(comparison.days(), Some((today, today)));
        let (mut own, mut yesterday, mut unknown) = (line.clone(), line.clone(), line.clone());
        own.byok = true;
        yesterday.hour = Day(today.0 - 1).start();
        unknown.model = tollway_shared::ids::ModelId::trusted("a/n");
        for line in [&line, &own, &yesterday, &unknown] {
            comparison.push(line);
        }
        let found = comparison.finish().unwrap();
        let rows: Vec<_> = found
            .data
            .iter()
            .map(|row| {
                (
                    row.model.as_str(),
                    row.provider_tokens,
                    row.our_tokens,
                    row.tokens_percent.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("a/m", tokens, tokens, Some("0.00")),
                ("a/n", 0, tokens, None),
                ("their-other", 10, 0, Some("-100.00")),
            ]
        );
        assert_eq!(found.tokens_drift, tokens + 10);
        assert_eq!(found.cost_drift.0.0, cost.0 + 1_000);
    }

    #[test]
    fn a_difference_is_in_percent_of_what_the_provider_says() {
        for (ours, theirs, text) in [
            (101, 100, Some("1.00")),
            (99_995, 100_000, Some("0.00")),
            (99_985, 100_000, Some("-0.02")),
            (0, 7, Some("-100.00")),
            (7, 0, None),
            (0, 0, Some("0.00")),
        ] {
            assert_eq!(percent(ours, theirs).as_deref(), text, "{ours} {theirs}");
        }
    }
}
