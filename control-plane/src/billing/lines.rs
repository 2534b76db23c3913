//! Rows by hour as [`report`](crate::report) takes them, from either backend. Blocking, for a thread of its own that the runtime knows.
//!
//! One read transaction sees one state of the store, however long it takes. Hours come one after the other, so that what is sorted in
//! memory is never more than an hour (a day, of one organization), and from PostgreSQL a bounded number of rows at a time. Both backends
//! give the same rows in the same order.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use rusqlite::params;
use tokio::runtime::Handle;
use tokio_postgres::IsolationLevel;
use tokio_postgres::types::ToSql;
use tollway_shared::cost::Charge;
use tollway_shared::ids::{
    ApiKeyId, EndpointId, ModelId, OrganizationId, PriceId, ProjectId, ProviderId, Region, TeamId,
};
use tollway_shared::money::NanoUsd;
use tollway_shared::tenant::TenantPath;
use tollway_shared::time::UnixMillis;
use tollway_shared::tokens::TokenCounts;

use super::cell::{Dimension, Sum};
use super::connect::{Server, connect};
use super::read::dollars;
use super::{Place, StoreFault, sqlite};
use crate::report::line::{HOUR_MS, Line};

/// Hours read at once: of one organization, and of all.
const HOURS_AT_ONCE: [i64; 2] = [24, 1];
/// Rows that PostgreSQL sends at once.
const ROWS_AT_ONCE: i32 = 500;
/// How long PostgreSQL may work on one statement.
const STATEMENT_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take for one answer: longer than it may work on a statement.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// Why lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// The store says no.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// A row that is none of ours.
    #[error("the billing store: the prices of version `{0}` cannot be read: {1}")]
    Prices(String, serde_json::Error),
}

impl From<rusqlite::Error> for ReadFault {
    fn from(fault: rusqlite::Error) -> Self {
        Self::Store(fault.into())
    }
}

impl From<tokio_postgres::Error> for ReadFault {
    fn from(fault: tokio_postgres::Error) -> Self {
        Self::Store(fault.into())
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The first instant.
    pub from: UnixMillis,
    /// The first instant that is not wanted any more.
    pub to: UnixMillis,
    /// Only of this organization.
    pub organization: Option<OrganizationId>,
}

impl Wanted {
    /// Hours read at once.
    fn at_once(&self) -> i64 {
        let [one, all] = HOURS_AT_ONCE;
        if self.organization.is_some() { one } else { all }
    }
}

/// Reads lines in order of hour and dimensions, those that only end users tell apart one after the other, until `each` breaks.
///
/// `each` is called outside of the runtime, so it may wait on it, too.
pub fn lines<B>(
    place: &Place,
    wanted: &Wanted,
    each: impl FnMut(Line) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, ReadFault> {
    match place {
        Place::None => Err(StoreFault::Absent.into()),
        Place::File(path) => of_file(path, wanted, each),
        Place::Server(server) => of_server(server, wanted, each),
    }
}

fn of_file<B>(
    path: &Path,
    wanted: &Wanted,
    mut each: impl FnMut(Line) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, ReadFault> {
    let connection = sqlite::reader(path)?;
    // Never committed: it only reads, and dropping the connection ends it.
    connection.execute_batch("BEGIN")?;
    let end = hours_up(wanted.to);
    let mut next = connection.prepare(NEXT)?;
    let mut chunk = connection.prepare(&chunk_sql(wanted.organization.is_some()))?;
    let mut from = hours_up(wanted.from);
    while let Some(hour) = next.query_row(params![from, end], |row| row.get::<_, Option<i64>>(0))? {
        let to = end.min(hour + wanted.at_once());
        let mut rows = match &wanted.organization {
            Some(organization) => chunk.query(params![hour, to, organization.as_str()])?,
            None => chunk.query(params![hour, to])?,
        };
        while let Some(row) = rows.next()? {
            if let ControlFlow::Break(value) = each(Found::of_file(row)?.line()?) {
                return Ok(ControlFlow::Break(value));
            }
        }
        from = to;
    }
    Ok(ControlFlow::Continue(()))
}

fn of_server<B>(
    server: &Server,
    wanted: &Wanted,
    mut each: impl FnMut(Line) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, ReadFault> {
    let runtime = Handle::current();
    let mut client = answer(&runtime, connect(server, STATEMENT_WITHIN))?;
    let opening = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start();
    // Never committed: it only reads, and dropping it ends it.
    let view = answer(&runtime, opening)?;
    let end = hours_up(wanted.to);
    let organization = wanted.organization.as_ref().map(OrganizationId::as_str);
    let next = answer(&runtime, view.prepare(&dollars(NEXT)))?;
    let chunk = answer(
        &runtime,
        view.prepare(&dollars(&chunk_sql(organization.is_some()))),
    )?;
    let mut from = hours_up(wanted.from);
    loop {
        let found = answer(&runtime, view.query_one(&next, &[&from, &end]))?;
        let Some(hour) = found.try_get::<_, Option<i64>>(0)? else {
            return Ok(ControlFlow::Continue(()));
        };
        let to = end.min(hour + wanted.at_once());
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&hour, &to];
        if let Some(organization) = &organization {
            values.push(organization);
        }
        let portal = answer(&runtime, view.bind(&chunk, &values))?;
        let mut has_more = true;
        while has_more {
            let rows = answer(&runtime, view.query_portal(&portal, ROWS_AT_ONCE))?;
            has_more = i32::try_from(rows.len()) == Ok(ROWS_AT_ONCE);
            for row in &rows {
                if let ControlFlow::Break(value) = each(Found::of_server(row)?.line()?) {
                    return Ok(ControlFlow::Break(value));
                }
            }
        }
        from = to;
    }
}

/// Waits on this thread, which is none of those that answer.
fn answer<T, E: Into<StoreFault>>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, StoreFault> {
    let answered = runtime.block_on(async { tokio::time::timeout(ANSWER_WITHIN, work).await });
    answered.map_err(|_| StoreFault::Slow)?.map_err(Into::into)
}

/// The first whole hour that does not begin before `at`.
fn hours_up(at: UnixMillis) -> i64 {
    at.0.saturating_add(HOUR_MS - 1).div_euclid(HOUR_MS)
}

/// The next hour that has rows.
const NEXT: &str = "SELECT min(hour) FROM rollup WHERE hour >= ?1 AND hour < ?2";

fn chunk_sql(of_one: bool) -> String {
    let dimensions: Vec<&str> = Dimension::ALL.iter().map(|dimension| dimension.name()).collect();
    let sums: Vec<String> = Sum::ALL
        .iter()
        .map(|sum| format!("rollup.{}", sum.name()))
        .collect();
    let mut order: Vec<&str> = dimensions
        .iter()
        .copied()
        .filter(|name| *name != Dimension::User.name())
        .collect();
    // Versions of a price that differ under one id stay apart, and end users come together.
    order.extend(["prices", Dimension::User.name()]);
    let organization = if of_one { " AND organization = ?3" } else { "" };
    format!(
        "SELECT hour, prices, {}, {} FROM rollup JOIN series ON series.id = rollup.series \
         WHERE hour >= ?1 AND hour < ?2{organization} ORDER BY hour, {}",
        dimensions.join(", "),
        sums.join(", "),
        order.join(", ")
    )
}

/// Columns before the dimensions.
const HEAD: usize = 2;

/// A row of [`chunk_sql`].
struct Found<'a> {
    hour: i64,
    prices: &'a str,
    texts: [&'a str; Dimension::COUNT],
    sums: [i64; Sum::COUNT],
}

impl<'a> Found<'a> {
    fn of_file(row: &'a rusqlite::Row<'_>) -> Result<Self, rusqlite::Error> {
        let text = |place: usize| row.get_ref(place)?.as_str().map_err(rusqlite::Error::from);
        let mut found = Self {
            hour: row.get(0)?,
            prices: text(1)?,
            texts: [""; Dimension::COUNT],
            sums: [0; Sum::COUNT],
        };
        for (place, value) in found.texts.iter_mut().enumerate() {
            *value = text(HEAD + place)?;
        }
        for (place, value) in found.sums.iter_mut().enumerate() {
            *value = row.get(HEAD + Dimension::COUNT + place)?;
        }
        Ok(found)
    }

    fn of_server(row: &'a tokio_postgres::Row) -> Result<Self, tokio_postgres::Error> {
        let mut found = Self {
            hour: row.try_get(0)?,
            prices: row.try_get(1)?,
            texts: [""; Dimension::COUNT],
            sums: [0; Sum::COUNT],
        };
        for (place, value) in found.texts.iter_mut().enumerate() {
            *value = row.try_get(HEAD + place)?;
        }
        for (place, value) in found.sums.iter_mut().enumerate() {
            *value = row.try_get(HEAD + Dimension::COUNT + place)?;
        }
        Ok(found)
    }

    fn line(&self) -> Result<Line, ReadFault> {
        let text = |dimension: Dimension| self.texts[dimension as usize];
        let sum = |sum: Sum| self.sums[sum as usize];
        let count = |of: Sum| u64::try_from(sum(of)).unwrap_or(0);
        let money = |of: Sum| NanoUsd(sum(of));
        let (version, team) = (text(Dimension::PriceVersion), text(Dimension::Team));
        let prices = serde_json::from_str(self.prices);
        Ok(Line {
            hour: UnixMillis(self.hour.saturating_mul(HOUR_MS)),
            path: TenantPath {
                organization: OrganizationId::trusted(text(Dimension::Organization)),
                team: (!team.is_empty()).then(|| TeamId::trusted(team)),
                project: ProjectId::trusted(text(Dimension::Project)),
                key: ApiKeyId::trusted(text(Dimension::Key)),
            },
            model: ModelId::trusted(text(Dimension::Model)),
            endpoint: EndpointId::trusted(text(Dimension::Endpoint)),
            provider: ProviderId::trusted(text(Dimension::Provider)),
            region: Region::trusted(text(Dimension::Region)),
            price: PriceId::trusted(version),
            prices: prices.map_err(|fault| ReadFault::Prices(version.to_owned(), fault))?,
            byok: text(Dimension::Byok) == "true",
            requests: count(Sum::Requests),
            estimated: count(Sum::Estimated),
            tokens: TokenCounts {
                input: count(Sum::TokensInput),
                input_cache_read: count(Sum::TokensCacheRead),
                input_cache_write: count(Sum::TokensCacheWrite),
                input_cache_write_1h: count(Sum::TokensCacheWrite1h),
                output: count(Sum::TokensOutput),
                output_reasoning: count(Sum::TokensReasoning),
            },
            charge: Charge {
                input: money(Sum::ChargeInput),
                input_cache_read: money(Sum::ChargeCacheRead),
                input_cache_write: money(Sum::ChargeCacheWrite),
                input_cache_write_1h: money(Sum::ChargeCacheWrite1h),
                output: money(Sum::ChargeOutput),
                output_reasoning: money(Sum::ChargeReasoning),
                request: money(Sum::ChargeRequest),
                total: money(Sum::Charge),
            },
            billed: money(Sum::Billed),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tollway_shared::cost;

    use super::super::sample;
    use super::*;
    use crate::ledger;
    use crate::report::line::Merge;

    fn read(place: &Place, wanted: &Wanted) -> Vec<Line> {
        let mut out = Vec::new();
        let read = lines(place, wanted, |line| {
            out.push(line);
            ControlFlow::<()>::Continue(())
        });
        assert!(matches!(read, Ok(ControlFlow::Continue(()))), "{read:?}");
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Events of any hours, organizations, end users and prices, against the events themselves.
        #[test]
        fn the_lines_of_any_hours_are_the_events_that_started_in_them(
            events in prop::collection::vec((0..200i64, 0..3u8, 0..3u8, any::<bool>(), 0..5_000u64), 1..40),
            from in 0..150i64,
            hours in 1..100i64,
            of_one in any::<bool>(),
        ) {
            let events: Vec<_> = (1..).zip(&events).map(|(sequence, (hour, organization, user, dear, input))| {
                let mut event = ledger::sample::event(1, sequence);
                event.started_at.0 = UnixMillis(hour * HOUR_MS + 1_234_567);
                event.finished_at.0 = event.started_at.0;
                event.tenant.organization = OrganizationId::trusted(format!("o{organization}"));
                event.user = (*user > 0).then(|| format!("user-{user}"));
                if *dear {
                    event.prices.input.0 *= 2;
                }
                event.tokens.input = *input;
                event.charge = cost::charge(&event.tokens, &event.prices).unwrap();
                event.billed = event.charge.total;
                event
            }).collect();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("billing.sqlite");
            sample::store(&path, &events);
            let wanted = Wanted {
                from: UnixMillis(from * HOUR_MS),
                to: UnixMillis((from + hours) * HOUR_MS),
                organization: of_one.then(|| OrganizationId::trusted("o1")),
            };
            let found = read(&Place::File(path), &wanted);
            let mut naive: BTreeMap<(i64, OrganizationId, i64), (u64, i64)> = BTreeMap::new();
            for event in &events {
                let hour = event.started_at.0.0.div_euclid(HOUR_MS) * HOUR_MS;
                let organization = &event.tenant.organization;
                if (wanted.from.0..wanted.to.0).contains(&hour) && wanted.organization.as_ref().is_none_or(|only| only == organization) {
                    let sums = naive.entry((hour, organization.clone(), event.prices.input.0)).or_default();
                    sums.0 += 1;
                    sums.1 += event.charge.total.0;
                }
            }
            let mut merge = Merge::default();
            let mut merged: Vec<Line> = found.into_iter().filter_map(|line| merge.push(line)).collect();
            merged.extend(merge.finish());
            let hours: Vec<i64> = merged.iter().map(|line| line.hour.0).collect();
            prop_assert!(hours.is_sorted());
            let count = merged.len();
            let merged: BTreeMap<_, _> = merged.into_iter().map(|line| {
                ((line.hour.0, line.path.organization, line.prices.input.0), (line.requests, line.charge.total.0))
            }).collect();
            prop_assert_eq!(merged.len(), count, "end users come one after the other");
            prop_assert_eq!(merged, naive);
        }
    }
}
