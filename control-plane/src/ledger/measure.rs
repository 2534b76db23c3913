//! A measurement, not a test: `cargo test -p tollway-control --release --lib measures_ -- --ignored --nocapture`.

use std::time::Instant;

use tollway_proto::command::{Command, Outcome};
use tollway_proto::usage::UsageEvent;
use tollway_shared::cost;
use tollway_shared::ids::{ApiKeyId, OrganizationId};

use super::rollup::{self, Record};
use super::sample;
use super::source::RECORDS_MAX;
use crate::state::samples;

/// Events folded.
const EVENTS: u64 = 50_000;
/// Writers, organizations and keys that they are spread over.
const WRITERS: u64 = 16;
const ORGANIZATIONS: u64 = 50;
const KEYS: u64 = 500;

/// Where the time of one event goes: JSON, fold, apply.
#[test]
#[ignore = "a measurement"]
fn measures_folding_and_applying_events() {
    let records: Vec<Record> = (0..EVENTS).map(record).collect();
    let bytes: usize = records.iter().map(|record| record.value.len()).sum();
    let begun = Instant::now();
    for record in &records {
        let event: UsageEvent = serde_json::from_slice(&record.value).unwrap();
        assert!(event.sequence > 0);
    }
    let decode = begun.elapsed();

    let mut state = samples::catalog();
    let (mut fold, mut apply) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    for batch in records.chunks(RECORDS_MAX) {
        let begun = Instant::now();
        let from = state.usage_offsets.get(&3).copied().unwrap_or(0);
        let seen = |writer| state.usage_writers.get(&(3, writer)).map(|mark| mark.sequence);
        let (spend, report) = rollup::fold(3, from, batch, state.now, seen);
        assert_eq!(
            (report.events, report.gaps, report.mismatches),
            (batch.len() as u64, 0, 0)
        );
        fold += begun.elapsed();
        let begun = Instant::now();
        assert!(matches!(
            samples::run(&mut state, Command::RecordSpend(spend)),
            Outcome::Done(_)
        ));
        apply += begun.elapsed();
    }
    let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / EVENTS as f64;
    println!(
        "{} bytes an event; JSON {:.1} µs, the rest of the fold {:.1} µs, apply {:.1} µs: {:.0} events/s on one core",
        bytes as u64 / EVENTS,
        micros(decode),
        micros(fold.saturating_sub(decode)),
        micros(apply),
        EVENTS as f64 / (fold + apply).as_secs_f64()
    );
}

fn record(n: u64) -> Record {
    let mut event = sample::event(u128::from(n % WRITERS + 1), n / WRITERS + 1);
    event.partition = 3;
    event.tenant.organization = OrganizationId::trusted(format!("org-{}", n % ORGANIZATIONS));
    event.tenant.key = ApiKeyId::trusted(format!("key-{}", n % KEYS));
    event.charge = cost::charge(&event.tokens, &event.prices).unwrap();
    let offset = i64::try_from(n).unwrap();
    Record {
        partition: 3,
        offset,
        next: offset + 1,
        value: serde_json::to_vec(&event).unwrap(),
    }
}
