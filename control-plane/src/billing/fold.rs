//! Folds a stretch of one partition of the usage log into rows of the billing store. Pure.
//!
//! What is new is decided by [`Marks`], as for the replicated sums, and the charge is recomputed from counts and prices as there. The
//! one difference: an event is late by the log's own time, the newest end of a request so far, so that a store that is made anew from
//! the same log, however much later, comes to the same rows.

use std::collections::{BTreeMap, HashMap};

use ring::digest::{SHA256, digest};
use tollway_proto::usage::{EndState, UsageSource};
use tollway_shared::bill::{self, Bill};
use tollway_shared::ids::WriterId;
use tollway_shared::money::MoneyFault;
use tollway_shared::time::UnixMillis;

use super::cell::{Cells, Digest, Dimension, Series, Sum, Sums};
use crate::ledger::event::Event;
use crate::ledger::judge::{Marks, Verdict};
use crate::ledger::rollup::{Record, Report};

/// Milliseconds in an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// One event as a row.
#[derive(Debug)]
pub struct Row<'a> {
    /// Where it lies in its partition.
    pub offset: i64,
    /// The event.
    pub event: Event<'a>,
    /// Its series.
    pub series: Digest,
    /// What it adds to its cell.
    pub sums: Sums,
}

/// What a stretch adds to the store.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The partition.
    pub partition: i32,
    /// The first offset of the stretch.
    pub from: i64,
    /// The offset after its last record.
    pub to: i64,
    /// About when what the store has of the partition begins, after it: see [`Progress`](super::progress::Progress).
    pub begins: Option<UnixMillis>,
    /// The log's time after it: the newest end of a request so far.
    pub newest: UnixMillis,
    /// How far the writers that occur in it have been counted after it.
    pub marks: BTreeMap<WriterId, u64>,
    /// The series that occur in it.
    pub series: HashMap<Digest, Series>,
    /// What to add.
    pub cells: Cells,
    /// Its new events, in order.
    pub rows: Vec<Row<'a>>,
    /// What was found on the way.
    pub report: Report,
}

/// Where a partition's fold stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// The offset of the next record.
    pub offset: i64,
    /// About when what the store has begins, once that is known.
    pub begins: Option<UnixMillis>,
    /// The log's time: the newest end of a request so far.
    pub newest: UnixMillis,
}

/// Folds `records`, which lie in `partition`, in order. Records before `reached` are left out.
///
/// - `now`: wall time; the log's time does not run ahead of it, whatever a node with a wrong clock writes.
/// - `seen`: the highest sequence counted for a writer in this partition; `None` for one that is not known.
pub fn fold<'a>(
    partition: i32,
    reached: Reached,
    records: &'a [Record],
    now: UnixMillis,
    seen: impl Fn(WriterId) -> Option<u64>,
) -> Batch<'a> {
    let mut marks = Marks::new(seen);
    let mut batch = Batch {
        partition,
        from: reached.offset,
        to: reached.offset,
        begins: reached.begins,
        newest: reached.newest,
        marks: BTreeMap::new(),
        series: HashMap::new(),
        cells: Cells::new(),
        rows: Vec::with_capacity(records.len()),
        report: Report::default(),
    };
    let mut text = Vec::with_capacity(512);
    for record in records.iter().filter(|record| record.offset >= reached.offset) {
        batch.to = batch.to.max(record.next);
        let event = match Event::read(record, partition) {
            Ok(event) => event,
            Err(why) => {
                batch.report.malformed += 1;
                batch.report.note(record.offset, &why);
                continue;
            }
        };
        let finished = event.finished_at.0;
        match marks.judge(event.writer, event.sequence, finished, batch.newest) {
            Verdict::New { missing } => batch.report.missing(record.offset, event.writer, missing),
            Verdict::Repeat => {
                batch.report.duplicates += 1;
                continue;
            }
            Verdict::Late => {
                batch.report.late(record.offset, event.id.get());
                continue;
            }
        }
        batch.newest = batch.newest.max(finished.min(now));
        match sums(&event) {
            Ok((sums, as_said)) => {
                batch.report.events += 1;
                batch.report.mismatches += u64::from(!as_said);
                batch.count(record.offset, event, sums, &mut text);
            }
            Err(why) => {
                batch.report.malformed += 1;
                batch.report.note(record.offset, &why);
            }
        }
    }
    // What was gone before the first events ended before them, whenever it was found to be gone.
    let nothing_yet = reached.begins.is_none() || reached.newest == UnixMillis::default();
    if nothing_yet && !batch.rows.is_empty() {
        let end = batch.newest;
        batch.begins = Some(reached.begins.map_or(end, |begins| begins.min(end)));
    }
    batch.marks = marks.moved();
    batch
}

impl<'a> Batch<'a> {
    fn count(&mut self, offset: i64, event: Event<'a>, sums: Sums, text: &mut Vec<u8>) {
        let series = series_digest(&event, text);
        self.series.entry(series).or_insert_with(|| series_of(&event));
        let started = event.started_at.0;
        let cell = self
            .cells
            .entry((started.0.div_euclid(HOUR_MS), series))
            .or_default();
        cell.sums.merge(&sums);
        let since = |end: UnixMillis| end.0.saturating_sub(started.0).max(0).unsigned_abs();
        if let Some(first) = event.first_byte_at {
            cell.first_byte.count(since(first.0));
        }
        if event.end == EndState::Completed {
            cell.total.count(since(event.finished_at.0));
        }
        self.rows.push(Row {
            offset,
            event,
            series,
            sums,
        });
    }
}

/// What one event adds, and whether its charge is what it says.
fn sums(event: &Event<'_>) -> Result<(Sums, bool), String> {
    if let Some((field, fault)) = event.prices.inadmissible() {
        return Err(format!("`prices.{field}` {fault}"));
    }
    if !bill::admissible(event.adjustment.bps) {
        return Err("`adjustment.bps` is out of its range".to_owned());
    }
    let charge = event.due().map_err(|fault| format!("the charge {fault}"))?;
    let bill = event.bill(&charge).map_err(|fault| format!("the bill {fault}"))?;
    let owes_nothing = event.byok || event.free;
    let adjustment = if owes_nothing { 0 } else { bill.adjustment.amount.0 };
    let savings = savings(event, &charge).map_err(|fault| format!("what the cache saved {fault}"))?;
    let mut sums = Sums::default();
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    let tokens = &event.tokens;
    let end = match event.end {
        EndState::Completed => Sum::Completed,
        EndState::Cancelled => Sum::Cancelled,
        EndState::Failed => Sum::Failed,
        EndState::Interrupted => Sum::Interrupted,
    };
    for (sum, more) in [
        (Sum::Requests, 1),
        (end, 1),
        (
            Sum::Estimated,
            i64::from(event.usage_source == UsageSource::Estimated),
        ),
        (Sum::TokensInput, count(tokens.input)),
        (Sum::TokensCacheRead, count(tokens.input_cache_read)),
        (Sum::TokensCacheWrite, count(tokens.input_cache_write)),
        (Sum::TokensCacheWrite1h, count(tokens.input_cache_write_1h)),
        (Sum::TokensOutput, count(tokens.output)),
        (Sum::TokensReasoning, count(tokens.output_reasoning)),
        (Sum::ChargeInput, charge.input.0),
        (Sum::ChargeCacheRead, charge.input_cache_read.0),
        (Sum::ChargeCacheWrite, charge.input_cache_write.0),
        (Sum::ChargeCacheWrite1h, charge.input_cache_write_1h.0),
        (Sum::ChargeOutput, charge.output.0),
        (Sum::ChargeReasoning, charge.output_reasoning.0),
        (Sum::ChargeRequest, charge.request.0),
        (Sum::Charge, charge.total.0),
        (Sum::CacheSavings, savings),
        (Sum::Adjustment, adjustment),
        (Sum::Billed, bill.billed.0),
    ] {
        sums.add(sum, more);
    }
    let said = Bill {
        adjustment: event.adjustment,
        billed: event.billed,
    };
    Ok((sums, charge == event.charge && bill == said))
}

/// What the cached tokens would have cost at the full price of a prompt, less what they cost.
fn savings(event: &Event<'_>, charge: &tollway_shared::cost::Charge) -> Result<i64, MoneyFault> {
    if event.usage_source == UsageSource::None {
        return Ok(0);
    }
    let input = event.prices.rates(event.tokens.prompt()).input;
    let full = |tokens| input.charge(tokens);
    let read = full(event.tokens.input_cache_read)?.minus(charge.input_cache_read)?;
    let written = full(event.tokens.input_cache_write)?.minus(charge.input_cache_write)?;
    let hour = full(event.tokens.input_cache_write_1h)?.minus(charge.input_cache_write_1h)?;
    Ok(read.plus(written)?.plus(hour)?.0)
}

/// The event's value in a dimension.
fn value<'a>(event: &'a Event<'_>, dimension: Dimension) -> &'a str {
    let optional =
        |text: &'a Option<crate::ledger::event::Str<'_>>| text.as_ref().map_or("", |text| text.get());
    match dimension {
        Dimension::Organization => event.tenant.organization.get(),
        Dimension::Team => optional(&event.tenant.team),
        Dimension::Project => event.tenant.project.get(),
        Dimension::Key => event.tenant.key.get(),
        Dimension::User => optional(&event.user),
        Dimension::Model => event.model.get(),
        Dimension::Endpoint => event.endpoint.get(),
        Dimension::Provider => event.provider.get(),
        Dimension::Region => event.region.get(),
        Dimension::PriceVersion => event.price_version.get(),
        Dimension::Byok if event.byok => "true",
        Dimension::Byok => "false",
    }
}

/// - `text`: what is hashed is put together in here.
fn series_digest(event: &Event<'_>, text: &mut Vec<u8>) -> Digest {
    text.clear();
    for dimension in Dimension::ALL {
        let value = value(event, *dimension);
        text.extend_from_slice(&value.len().to_le_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    // Of a tier's requests those that are in force: all of a series cost the same.
    let prices = event.prices.in_force(event.tokens.prompt());
    // A price that is not there differs from each that is: those are not negative.
    let price = |price: Option<tollway_shared::money::Price>| price.map_or(-1, |price| price.0);
    for number in [
        prices.input.0,
        prices.output.0,
        price(prices.input_cache_read),
        price(prices.input_cache_write),
        price(prices.input_cache_write_1h),
        price(prices.output_reasoning),
        prices.request.map_or(-1, |request| request.0),
    ] {
        text.extend_from_slice(&number.to_le_bytes());
    }
    let whole = digest(&SHA256, text);
    let mut half = Digest::default();
    half.copy_from_slice(&whole.as_ref()[..size_of::<Digest>()]);
    half
}

fn series_of(event: &Event<'_>) -> Series {
    let mut values: [String; Dimension::COUNT] = Default::default();
    for (kept, dimension) in values.iter_mut().zip(Dimension::ALL) {
        // PostgreSQL's text cannot hold the character 0, which a caller's label may.
        *kept = value(event, *dimension).replace('\0', "\u{fffd}");
    }
    Series {
        values,
        prices: serde_json::to_string(&event.prices.in_force(event.tokens.prompt())).unwrap_or_default(), // plain numbers always are JSON
    }
}
