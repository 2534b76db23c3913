//! The billing store's answer.

use std::collections::BTreeMap;

use tollway_proto::admin::problem::ProblemCode;
use tollway_proto::admin::text::Text;
use tollway_proto::admin::usage::{
    ChargeLines, Detail, Freshness, Latency, Percentiles, Sums, Tokens, Total, UsageRow,
};
use tollway_shared::money::NanoUsd;

use super::ask::{Ask, cursor, field};
use super::fee::{Fees, usd};
use super::{Page, label, with_group};
use crate::admin::fault::Fault;
use crate::billing;
use crate::billing::cell::Sum;
use crate::billing::histogram::Histogram;
use crate::billing::progress::Progress;
use crate::billing::query::{Field, Summed};
use crate::billing::read::Found;
use crate::state::State;

/// The page that was found.
///
/// - `state`: has the fees and the labels.
pub(super) fn page(state: &State, ask: &Ask, found: Found) -> Result<Page, Fault> {
    let fees = Fees::of(state, ask);
    let of_key = label::OF_KEY.map(Field::Of); // there where labels are asked for
    let fields: Vec<Field> = ask.by.iter().map(|by| field(*by)).chain(of_key).collect();
    let mut groups = Vec::with_capacity(found.groups.len());
    for (values, summed) in found.groups {
        let texts = fields.iter().zip(&values).map(|(field, value)| {
            let text = field.text(value);
            (!text.is_empty()).then_some(text) // the store's word for none
        });
        groups.push((texts.collect::<Vec<_>>(), summed));
    }
    let (groups, more) = if ask.labels.is_empty() {
        let rows = groups.into_iter().map(|(group, summed)| {
            let fee = fees.of_group(&group);
            (group, (summed, fee))
        });
        (rows.collect(), found.more)
    } else {
        label::page(state, ask, groups, found.more, &fees)?
    };
    let next = groups.last().filter(|_| more).map(|(group, _)| cursor(group));
    let data = groups.iter().map(|(group, (summed, fee))| {
        let (sums, detail) = told(summed, *fee)?;
        Ok(UsageRow {
            sums,
            detail: Some(detail),
            ..with_group(ask, group)
        })
    });
    let data = data.collect::<Result<_, Fault>>()?;
    let (sums, detail) = told(&found.total, fees.total())?;
    Ok(Page {
        data,
        next,
        total: Total {
            sums,
            detail: Some(detail),
        },
    })
}

/// How far the store was when it answered, and what is known of the rest of the log.
pub(super) fn freshness(progress: &[Progress], known: &BTreeMap<i32, billing::Freshness>) -> Vec<Freshness> {
    let of = |progress: &Progress| Freshness {
        partition: progress.partition,
        offset: progress.next,
        newest_at: progress.newest_end().map(Text),
        lag: known.get(&progress.partition).and_then(|known| known.lag),
        whole_since: progress.begins.filter(|_| progress.first > 0).map(Text),
    };
    progress.iter().map(of).collect()
}

fn told(summed: &Summed, fee: Option<i128>) -> Result<(Sums, Detail), Fault> {
    let beyond = || {
        Fault::new(
            ProblemCode::Internal,
            "a sum is beyond the range of money; ask for fewer days at once",
        )
    };
    let count = |sum| u64::try_from(summed.get(sum)).map_err(|_| beyond());
    let money = |sum| {
        i64::try_from(summed.get(sum))
            .map(|nano| Text(NanoUsd(nano)))
            .map_err(|_| beyond())
    };
    let sums = Sums {
        requests: count(Sum::Requests)?,
        estimated: count(Sum::Estimated)?,
        tokens: Tokens {
            input: count(Sum::TokensInput)?,
            input_cache_read: count(Sum::TokensCacheRead)?,
            input_cache_write: count(Sum::TokensCacheWrite)?,
            input_cache_write_1h: count(Sum::TokensCacheWrite1h)?,
            output: count(Sum::TokensOutput)?,
            output_reasoning: count(Sum::TokensReasoning)?,
        },
        cost: money(Sum::Charge)?,
        billed: money(Sum::Billed)?,
        fee: fee.and_then(usd),
    };
    let detail = Detail {
        completed: count(Sum::Completed)?,
        cancelled: count(Sum::Cancelled)?,
        failed: count(Sum::Failed)?,
        interrupted: count(Sum::Interrupted)?,
        charge: ChargeLines {
            input: money(Sum::ChargeInput)?,
            input_cache_read: money(Sum::ChargeCacheRead)?,
            input_cache_write: money(Sum::ChargeCacheWrite)?,
            input_cache_write_1h: money(Sum::ChargeCacheWrite1h)?,
            output: money(Sum::ChargeOutput)?,
            output_reasoning: money(Sum::ChargeReasoning)?,
            request: money(Sum::ChargeRequest)?,
        },
        cache_savings: money(Sum::CacheSavings)?,
        adjustment: money(Sum::Adjustment)?,
        latency: Latency {
            first_byte_ms: percentiles(&summed.first_byte),
            total_ms: percentiles(&summed.total),
        },
    };
    Ok((sums, detail))
}

fn percentiles(histogram: &Histogram) -> Percentiles {
    Percentiles {
        p50: histogram.percentile(50),
        p90: histogram.percentile(90),
        p99: histogram.percentile(99),
    }
}
