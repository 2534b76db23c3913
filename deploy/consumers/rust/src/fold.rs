//! Folds records of one partition into sums by the hour. Pure: no Kafka, no database, no clock.
//!
//! Sequences are dense per writer and partition. So one number per writer, the highest sequence counted, tells a repeat from news,
//! and a jump is lost data. Money is whole nano-dollars; there is no float in this file.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Hour, organization, team, project, key, user label, model, endpoint, provider, region, price version; own credential.
pub(crate) type Cell = ([String; 11], bool);
/// Requests, estimated ones, tokens by kind (input, cache read, cache write, output, reasoning), nano-dollars at list price and owed.
pub(crate) type Sums = [i64; 9];

/// Why a record or a sum cannot be counted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("no usage event: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`{0}` is not what version 1 says")]
    Field(&'static str),
    #[error("an event of partition {0} lies elsewhere")]
    Partition(i32),
    #[error("a sum is out of range")]
    Sum,
}

/// What is counted of an event. Fields that are not named here are ignored, so later releases may add some.
#[derive(Deserialize)]
struct Written {
    writer: String,
    partition: i32,
    sequence: i64,
    started_at: String,
    region: String,
    tenant: Tenant,
    user: Option<String>,
    model: String,
    endpoint: String,
    provider: String,
    price_version: String,
    usage_source: String,
    tokens: Tokens,
    charge: Charge,
    byok: bool,
    billed: String,
}

#[derive(Deserialize)]
struct Tenant {
    organization: String,
    team: Option<String>,
    project: String,
    key: String,
}

#[derive(Deserialize)]
struct Tokens {
    input: u64,
    input_cache_read: u64,
    input_cache_write: u64,
    /// Kept for an hour; counted with the others here.
    #[serde(default)]
    input_cache_write_1h: u64,
    output: u64,
    output_reasoning: u64,
}

#[derive(Deserialize)]
struct Charge {
    total: String,
}

/// An event, with its place in the partition.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) offset: i64,
    pub(crate) writer: String,
    pub(crate) sequence: i64,
    pub(crate) cell: Cell,
    pub(crate) sums: Sums,
}

/// Events that never came: the record after them, its writer, the last sequence before, its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) offset: i64,
    pub(crate) writer: String,
    pub(crate) after: i64,
    pub(crate) sequence: i64,
}

/// What a stretch of one partition comes to.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    pub(crate) cells: BTreeMap<Cell, Sums>,
    pub(crate) marks: BTreeMap<String, i64>,
    pub(crate) gaps: Vec<Gap>,
}

/// The event in a record's value.
pub(crate) fn parse(partition: i32, offset: i64, value: &[u8]) -> Result<Event, Fault> {
    let written: Written = serde_json::from_slice(value)?;
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if written.writer.len() != 32 || !written.writer.bytes().all(hex) {
        return Err(Fault::Field("writer"));
    }
    if written.sequence < 1 {
        return Err(Fault::Field("sequence"));
    }
    if written.partition != partition {
        return Err(Fault::Partition(written.partition));
    }
    let tokens = &written.tokens;
    let tokens = [
        tokens.input,
        tokens.input_cache_read,
        tokens
            .input_cache_write
            .saturating_add(tokens.input_cache_write_1h),
        tokens.output,
        tokens.output_reasoning,
    ];
    let [input, cache_read, cache_write, output, reasoning] =
        tokens.map(|count| i64::try_from(count).map_err(|_| Fault::Field("tokens")));
    let sums = [
        1,
        i64::from(written.usage_source == "estimated"),
        input?,
        cache_read?,
        cache_write?,
        output?,
        reasoning?,
        nano(&written.charge.total).ok_or(Fault::Field("charge.total"))?,
        nano(&written.billed).ok_or(Fault::Field("billed"))?,
    ];
    let words = [
        hour(&written.started_at).ok_or(Fault::Field("started_at"))?,
        written.tenant.organization,
        written.tenant.team.unwrap_or_default(),
        written.tenant.project,
        written.tenant.key,
        written.user.unwrap_or_default(),
        written.model,
        written.endpoint,
        written.provider,
        written.region,
        written.price_version,
    ]
    .map(|word| word.replace('\0', "\u{fffd}")); // PostgreSQL takes U+0000 in no text
    Ok(Event {
        offset,
        writer: written.writer,
        sequence: written.sequence,
        cell: (words, written.byok),
        sums,
    })
}

/// Sums of `events`, in the order of their offsets. `marks`: the highest sequence counted so far, by writer.
pub(crate) fn fold(events: &[Event], marks: &BTreeMap<String, i64>) -> Result<Fold, Fault> {
    let mut found = Fold::default();
    for event in events {
        let seen = found
            .marks
            .get(&event.writer)
            .or_else(|| marks.get(&event.writer));
        let last = seen.copied().unwrap_or(0);
        if event.sequence <= last {
            continue; // a repeat
        }
        if event.sequence > last + 1 {
            found.gaps.push(Gap {
                offset: event.offset,
                writer: event.writer.clone(),
                after: last,
                sequence: event.sequence,
            });
        }
        found.marks.insert(event.writer.clone(), event.sequence);
        let sums = found.cells.entry(event.cell.clone()).or_default();
        for (sum, value) in sums.iter_mut().zip(event.sums) {
            *sum = sum.checked_add(value).ok_or(Fault::Sum)?;
        }
    }
    Ok(found)
}

/// `2026-11-22T18:21:04.125Z` → `2026-11-22T18:00:00Z`; `None` for another form, or another zone.
fn hour(time: &str) -> Option<String> {
    let form = |(place, byte): (usize, u8)| match place {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    };
    let head = time.get(..19)?;
    (time.ends_with('Z') && head.bytes().enumerate().all(form)).then(|| format!("{}:00:00Z", &head[..13]))
}

/// Nano-dollars of decimal text.
fn nano(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(part) || part.len() > 9 {
        return None;
    }
    let amount = whole.parse::<i64>().ok()?.checked_mul(1_000_000_000)?;
    amount
        .checked_add(format!("{part:0<9}").parse().ok()?)?
        .checked_mul(sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../../proto/examples/usage-event.v1.json");

    fn event(writer: char, sequence: i64) -> Event {
        let mut event = parse(3, sequence, EXAMPLE.as_bytes()).expect("the published example");
        event.writer = writer.to_string().repeat(32);
        event.sequence = sequence;
        event
    }

    #[test]
    fn a_repeat_is_counted_once_and_a_jump_is_a_gap() {
        let stretch = [
            event('a', 1),
            event('b', 3),
            event('a', 1),
            event('a', 2),
            event('a', 5),
        ];
        let found = fold(&stretch, &BTreeMap::from([("b".repeat(32), 3)])).expect("in range");
        let sums: Vec<Sums> = found.cells.values().copied().collect();
        assert_eq!(sums, [[3, 0, 3600, 2400, 0, 1050, 384, 19_140_000, 18_948_600]]);
        let gap = Gap {
            offset: 5,
            writer: "a".repeat(32),
            after: 2,
            sequence: 5,
        };
        assert_eq!(found.gaps, [gap]);
        assert_eq!(found.marks, BTreeMap::from([("a".repeat(32), 5)]));
    }

    #[test]
    fn new_fields_are_ignored_and_wrong_ones_are_named() {
        let with = |from: &str, to: &str| parse(3, 0, EXAMPLE.replace(from, to).as_bytes()).map(|_| ());
        assert!(with("\"stream\": true", "\"stream\": [7], \"new\": {}").is_ok());
        for (from, to) in [
            ("\"0.00638\"", "0.00638"),
            ("\"0.00638\"", "\"0.0000000001\""),
            ("\"sequence\": 41", "\"sequence\": 0"),
            ("\"partition\": 3", "\"partition\": 4"),
            ("18:21:04.125Z", "18:21:04.125+01:00"),
            ("5f0c3c6d1b2a", "no"),
        ] {
            assert!(with(from, to).is_err(), "{to}");
        }
    }

    #[test]
    fn money_is_read_to_the_nano_dollar() {
        for (text, amount) in [
            ("0", Some(0)),
            ("-1.5", Some(-1_500_000_000)),
            ("9223372036.854775807", Some(i64::MAX)),
            ("9223372036.854775808", None),
            (".5", None),
            ("1e3", None),
        ] {
            assert_eq!(nano(text), amount, "{text}");
        }
    }
}
