//! Sums by organization and hour: what to ask the store, and what its answers mean. Pure.
//!
//! Generations are numbered as they came, within each partition in the order of their offsets. So what has changed since the last look
//! is what has a higher number, and each hour that any of it belongs to is read again as a whole.

use std::collections::BTreeMap;

use tollway_proto::billing::{BillingAggregate, Covers};
use tollway_proto::usage::UnixMillisText;
use tollway_shared::ids::{ClusterId, OrganizationId, Revision};
use tollway_shared::money::NanoUsd;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

use super::cell::Sum;
use super::fold::HOUR_MS;
use super::query::{Statement, Value};
use super::read::Table;

/// Generations looked at in one step: at most so many aggregates are in one transaction.
const STEP: i64 = 20_000;
/// Sums are added up as multiples of this and the rest, so that none leaves the database's range.
const PART: i64 = 1_000_000_000;
/// The sums of an aggregate, as the store names them.
const SUMS: [Sum; 11] = [
    Sum::Requests,
    Sum::Estimated,
    Sum::TokensInput,
    Sum::TokensCacheRead,
    Sum::TokensCacheWrite,
    Sum::TokensCacheWrite1h,
    Sum::TokensOutput,
    Sum::TokensReasoning,
    Sum::Charge,
    Sum::Adjustment,
    Sum::Billed,
];
/// Columns of an hour before its sums.
const HEAD: usize = 3;

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

/// An hour of an organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hour {
    organization: OrganizationId,
    hour: i64,
    covers: Covers,
    sums: [i64; SUMS.len()],
}

/// What has changed since some generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The generation up to which changes are in here.
    pub through: i64,
    /// The hours that changed, with all that the store has of them.
    pub hours: Vec<Hour>,
    /// How far the store has each partition: what the sums go up to.
    pub reached: Offsets,
    /// How far each partition is published with this.
    pub publishes: Offsets,
}

impl Changes {
    /// Whether the store has everything that is published. One that has not, a copy that lags or one that is being made anew, would
    /// put older sums over newer ones.
    pub fn is_past(&self, published: &Offsets) -> bool {
        published
            .iter()
            .all(|(partition, offset)| self.reached.get(partition).copied().unwrap_or(0) >= *offset)
    }
}

impl Hour {
    /// As it is published.
    pub fn aggregate(self, cluster: &ClusterId, revision: Revision) -> BillingAggregate {
        let [
            requests,
            estimated,
            input,
            cache_read,
            cache_write,
            cache_write_1h,
            output,
            reasoning,
            charge,
            adjustment,
            billed,
        ] = self.sums;
        let count = |sum: i64| sum.max(0).unsigned_abs();
        BillingAggregate {
            cluster: cluster.clone(),
            organization: self.organization,
            hour: UnixMillisText(UnixMillis(self.hour * HOUR_MS)),
            covers: self.covers,
            revision,
            requests: count(requests),
            estimated: count(estimated),
            tokens: TokenCounts {
                input: count(input),
                input_cache_read: count(cache_read),
                input_cache_write: count(cache_write),
                input_cache_write_1h: count(cache_write_1h),
                output: count(output),
                output_reasoning: count(reasoning),
            },
            charge: NanoUsd(charge),
            adjustment: NanoUsd(adjustment),
            billed: NanoUsd(billed),
        }
    }
}

/// Asks for the first generation that is not published, when partitions are published up to these offsets.
pub fn first(published: &Offsets, partitions: i32) -> Statement {
    let beyond: Vec<String> = (0..partitions)
        .map(|partition| {
            let offset = published.get(&partition).copied().unwrap_or(0);
            format!("(log_partition = {partition} AND log_offset >= {offset})")
        })
        .collect();
    asked(format!(
        "SELECT coalesce((SELECT min(id) - 1 FROM generation WHERE {}), (SELECT max(id) FROM generation), 0)",
        beyond.join(" OR ")
    ))
}

/// The answer to [`first`]: the generation before it.
pub fn first_of(tables: &[Table]) -> Option<i64> {
    int(tables.first()?.first()?.first()?)
}

/// Asks for what has changed after a generation.
pub fn statements(after: i64) -> Vec<Statement> {
    let step = format!("id > {after} AND id <= {}", after.saturating_add(STEP));
    let mut sums = Vec::with_capacity(2 * SUMS.len());
    for sum in SUMS {
        for operator in ["/", "%"] {
            sums.push(format!(
                "CAST(sum(rollup.{} {operator} {PART}) AS BIGINT)",
                sum.name()
            ));
        }
    }
    let texts = [
        "SELECT log_partition, first_offset, next_offset FROM progress ORDER BY log_partition".to_owned(),
        "SELECT coalesce(max(id), 0) FROM generation".to_owned(),
        format!(
            "SELECT log_partition, max(log_offset) + 1 FROM generation WHERE {step} GROUP BY log_partition"
        ),
        // SQLite joins in the order that CROSS JOIN has, so that the rows of the hours are read once, whoever they are of.
        format!(
            "WITH cell AS (SELECT organization, started_at / {HOUR_MS} AS hour, max(log_partition) AS place FROM generation \
             WHERE {step} GROUP BY 1, 2) \
             SELECT cell.organization, cell.hour, cell.place, {} FROM rollup CROSS JOIN series CROSS JOIN cell \
             WHERE rollup.hour IN (SELECT hour FROM cell) AND series.id = rollup.series \
             AND cell.hour = rollup.hour AND cell.organization = series.organization \
             GROUP BY cell.organization, cell.hour, cell.place ORDER BY 1, 2",
            sums.join(", ")
        ),
    ];
    texts.into_iter().map(asked).collect()
}

/// A statement whose numbers are all our own.
fn asked(text: String) -> Statement {
    Statement {
        text,
        values: Vec::new(),
    }
}

/// The answers to [`statements`]; `None` when they are not what was asked for.
pub fn changes(tables: Vec<Table>, after: i64) -> Option<Changes> {
    let [progress, newest, publishes, hours] = <[Table; 4]>::try_from(tables).ok()?;
    let mut stretches = BTreeMap::new();
    for row in &progress {
        stretches.insert(partition(row.first()?)?, (int(row.get(1)?)?, int(row.get(2)?)?));
    }
    let newest = int(newest.first()?.first()?)?;
    let through = newest.min(after.saturating_add(STEP));
    let publishes = publishes
        .iter()
        .map(|row| Some((partition(row.first()?)?, int(row.get(1)?)?)))
        .collect::<Option<Offsets>>()?;
    let hours = hours
        .iter()
        .map(|row| hour(row, &stretches))
        .collect::<Option<Vec<_>>>()?;
    Some(Changes {
        through,
        hours,
        reached: stretches.iter().map(|(p, (_, next))| (*p, *next)).collect(),
        publishes,
    })
}

fn hour(row: &[Value], stretches: &BTreeMap<i32, (i64, i64)>) -> Option<Hour> {
    let (head, values) = row.split_at_checked(HEAD)?;
    let Value::Text(organization) = &head[0] else {
        return None;
    };
    let partition = partition(&head[2])?;
    let (from_offset, to_offset) = *stretches.get(&partition)?;
    let mut sums = [0; SUMS.len()];
    for (place, sum) in sums.iter_mut().enumerate() {
        let (billions, rest) = (int(values.get(2 * place)?)?, int(values.get(2 * place + 1)?)?);
        let whole = i128::from(billions) * i128::from(PART) + i128::from(rest);
        // At the end of its range, as the store's own sums.
        *sum = i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX });
    }
    Some(Hour {
        organization: OrganizationId::trusted(organization.clone()),
        hour: int(&head[1])?,
        covers: Covers {
            partition,
            from_offset,
            to_offset,
        },
        sums,
    })
}

fn partition(value: &Value) -> Option<i32> {
    int(value)?.try_into().ok()
}

fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Text(_) | Value::None => None,
    }
}

#[cfg(test)]
mod tests {
    use tollway_shared::cost;

    use super::super::{Billing, Place, sample};
    use super::*;
    use crate::ledger;

    const PARTITION: i32 = 3;

    #[tokio::test]
    async fn an_hour_is_published_whole_whichever_of_its_requests_is_new() {
        let events: Vec<_> = (1..=40u64)
            .map(|sequence| {
                let mut event = ledger::sample::event(1, sequence);
                event.partition = PARTITION;
                event.tenant.organization = OrganizationId::trusted(format!("o{}", sequence % 3));
                event.started_at.0 = UnixMillis(sequence.cast_signed() * 600_000); // six in an hour
                event.finished_at.0 = event.started_at.0;
                event.user = Some(format!("user-{sequence}"));
                event.tokens.input = sequence;
                event.state_charge(cost::charge(&event.tokens, &event.prices).unwrap());
                event
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("billing.sqlite");
        sample::store(&path, &events);
        let (billing, _shared) = Billing::new(Place::File(path));
        for (published, wanted) in [(0, 0), (17, 17), (39, 39), (40, 40)] {
            let published = Offsets::from([(PARTITION, published)]);
            let asked = billing.select(vec![first(&published, 6)]).await.unwrap();
            let after = first_of(&asked).unwrap();
            assert_eq!(after, wanted);
            let found = changes(billing.select(statements(after)).await.unwrap(), after).unwrap();
            assert_eq!(found.through, 40);
            assert_eq!(found.reached, Offsets::from([(PARTITION, 40)]));
            let touched = |event: &&tollway_proto::usage::UsageEvent| event.sequence.cast_signed() > after;
            let place = |event: &tollway_proto::usage::UsageEvent| {
                let hour = event.started_at.0.0 / HOUR_MS;
                (event.tenant.organization.clone(), hour)
            };
            let mut naive: BTreeMap<_, [i64; 3]> = events
                .iter()
                .filter(touched)
                .map(|event| (place(event), [0; 3]))
                .collect();
            for event in &events {
                if let Some(sums) = naive.get_mut(&place(event)) {
                    sums[0] += 1;
                    sums[1] += event.tokens.input.cast_signed();
                    sums[2] += event.billed.0;
                }
            }
            let published: Offsets = naive.keys().map(|_| (PARTITION, 40)).collect();
            assert_eq!(found.publishes, published);
            let found: BTreeMap<_, _> = found
                .hours
                .into_iter()
                .map(|hour| {
                    assert_eq!((hour.covers.from_offset, hour.covers.to_offset), (0, 40));
                    let of = |sum| hour.sums[SUMS.iter().position(|other| *other == sum).unwrap()];
                    let sums = [of(Sum::Requests), of(Sum::TokensInput), of(Sum::Billed)];
                    ((hour.organization, hour.hour), sums)
                })
                .collect();
            assert_eq!(found, naive);
        }
    }

    #[test]
    fn a_store_that_lacks_what_is_published_is_not_past_it() {
        let changes = Changes {
            through: 0,
            hours: Vec::new(),
            reached: Offsets::from([(0, 10), (1, 5)]),
            publishes: Offsets::new(),
        };
        for (published, is_past) in [
            (vec![], true),
            (vec![(0, 10), (1, 5)], true),
            (vec![(0, 9)], true),
            (vec![(0, 10), (1, 6)], false),
            (vec![(2, 1)], false),
        ] {
            let published: Offsets = published.into_iter().collect();
            assert_eq!(changes.is_past(&published), is_past, "{published:?}");
        }
    }
}
