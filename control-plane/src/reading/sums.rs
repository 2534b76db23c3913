//! Sums of a project's usage by any fields, out of the billing store.

use std::collections::BTreeMap;

use tollway_proto::push::v1::{Latencies, SumField, SumFilter, SumGroup, Sums, SumsQuestion, TokenSums};
use tonic::Status;

use super::{Reader, unread};
use crate::billing::Billing;
use crate::billing::cell::{Dimension, Sum};
use crate::billing::histogram::Histogram;
use crate::billing::query::{Among, Field, Groups, Hours, Query, Summed, Value};

/// Most groups in one answer: far from what a message may hold.
pub const GROUPS_MAX: u32 = 10_000;
/// Most fields to group by.
const FIELDS_MAX: usize = 6;
/// Most filters.
const FILTERS_MAX: usize = 20;
/// Most values of one filter.
const VALUES_MAX: usize = 200;

/// Answers from the store.
pub async fn sums(billing: &Billing, reader: &Reader, question: &SumsQuestion) -> Result<Sums, Status> {
    let query = query(reader, question)?;
    let (by, limit) = (query.by.clone(), query.limit);
    let (mut groups, own) = if question.own_credentials {
        let [all, own] = billing
            .groups([query.clone(), of_own_credentials(query)])
            .await
            .map_err(|fault| unread(&fault))?;
        (all, own)
    } else {
        let [all] = billing.groups([query]).await.map_err(|fault| unread(&fault))?;
        (all, Groups::new())
    };
    let has_more = groups.len() > limit;
    groups.truncate(limit);
    let texts = |values: &[Value]| -> Vec<String> {
        by.iter()
            .zip(values)
            .map(|(field, value)| field.text(value))
            .collect()
    };
    // Some of the others' groups, in the same order: what belongs to the first of those is among the first of these.
    let own: BTreeMap<Vec<String>, i128> = own
        .iter()
        .map(|(values, summed)| (texts(values), summed.get(Sum::Charge)))
        .collect();
    let groups = groups.iter().map(|(values, summed)| {
        let values = texts(values);
        let byok_charge = i64::try_from(own.get(&values).copied().unwrap_or(0)).ok()?;
        Some(SumGroup {
            byok_charge,
            ..group(values, summed, question.latencies)?
        })
    });
    let groups: Option<Vec<SumGroup>> = groups.collect();
    let beyond = || Status::out_of_range("a sum is beyond the range of money; ask for less");
    Ok(Sums {
        groups: groups.ok_or_else(beyond)?,
        has_more,
    })
}

/// The same of requests that own credentials paid for.
fn of_own_credentials(mut query: Query) -> Query {
    query.equal.push((Dimension::Byok, "true".to_owned()));
    query.latencies = false;
    query
}

/// The question to the store. Whatever is asked, it is about the reader's project.
fn query(reader: &Reader, question: &SumsQuestion) -> Result<Query, Status> {
    let wrong = |what: &str| Status::invalid_argument(what.to_owned());
    if question.by.len() > FIELDS_MAX || question.filters.len() > FILTERS_MAX {
        return Err(wrong("there are too many fields or filters"));
    }
    if !(1..=GROUPS_MAX).contains(&question.groups_max) {
        return Err(wrong("`groups_max` is out of range"));
    }
    // Not by the iterator that is made for it, which leaves out what it does not know.
    let by = question
        .by
        .iter()
        .map(|raw| field(SumField::try_from(*raw).ok()?));
    let by: Option<Vec<Field>> = by.collect();
    let among: Option<Vec<Among>> = question.filters.iter().map(among).collect();
    Ok(Query {
        hours: Hours {
            from: question.from_hour,
            until: question.until_hour,
        },
        equal: vec![
            (Dimension::Organization, reader.organization().to_string()),
            (Dimension::Project, reader.project().to_string()),
        ],
        among: among
            .ok_or_else(|| wrong("a filter has too many values, or a field that is none of usage"))?,
        by: by.ok_or_else(|| wrong("`by` has a field that is not known"))?,
        after: None,
        limit: usize::try_from(question.groups_max).unwrap_or(1),
        latencies: question.latencies,
    })
}

fn field(field: SumField) -> Option<Field> {
    Some(match field {
        SumField::Hour => Field::Hour,
        SumField::Day => Field::Day,
        SumField::Week => Field::Week,
        SumField::Month => Field::Month,
        other => Field::Of(dimension(other)?),
    })
}

fn dimension(field: SumField) -> Option<Dimension> {
    Some(match field {
        SumField::Unspecified | SumField::Hour | SumField::Day | SumField::Week | SumField::Month => {
            return None;
        }
        SumField::Key => Dimension::Key,
        SumField::User => Dimension::User,
        SumField::Model => Dimension::Model,
        SumField::Endpoint => Dimension::Endpoint,
        SumField::Provider => Dimension::Provider,
        SumField::Region => Dimension::Region,
        SumField::Byok => Dimension::Byok,
    })
}

fn among(filter: &SumFilter) -> Option<Among> {
    let dimension = dimension(filter.field())?;
    (filter.values.len() <= VALUES_MAX).then(|| Among {
        dimension,
        values: filter.values.clone(),
        none_of: filter.none_of,
    })
}

/// `None` when a number leaves its range.
fn group(values: Vec<String>, summed: &Summed, latencies: bool) -> Option<SumGroup> {
    let count = |sum: Sum| u64::try_from(summed.get(sum)).ok();
    let money = |sum: Sum| i64::try_from(summed.get(sum)).ok();
    Some(SumGroup {
        values,
        requests: count(Sum::Requests)?,
        completed: count(Sum::Completed)?,
        cancelled: count(Sum::Cancelled)?,
        failed: count(Sum::Failed)?,
        interrupted: count(Sum::Interrupted)?,
        estimated: count(Sum::Estimated)?,
        tokens: Some(TokenSums {
            input: count(Sum::TokensInput)?,
            input_cache_read: count(Sum::TokensCacheRead)?,
            input_cache_write: count(Sum::TokensCacheWrite)?,
            input_cache_write_1h: count(Sum::TokensCacheWrite1h)?,
            output: count(Sum::TokensOutput)?,
            output_reasoning: count(Sum::TokensReasoning)?,
        }),
        charge: money(Sum::Charge)?,
        cache_savings: money(Sum::CacheSavings)?,
        billed: money(Sum::Billed)?,
        first_byte_ms: latencies.then(|| percentiles(&summed.first_byte)),
        total_ms: latencies.then(|| percentiles(&summed.total)),
        byok_charge: 0,
    })
}

fn percentiles(histogram: &Histogram) -> Latencies {
    Latencies {
        p50: histogram.percentile(50),
        p90: histogram.percentile(90),
        p99: histogram.percentile(99),
    }
}
