//! The sums, and how far they go, in one database: both change in the same transaction or not at all.
//!
//! A stretch is taken only while the stored offset is where the stretch begins. Whoever comes second, because a partition has moved
//! to another consumer meanwhile or an operator has set the offset back, finds another offset there and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::fold::{self, Event, Fold};
use crate::sql::{Client, Value, Work};

const SCHEMA: &str = include_str!("../../schema.sql");
/// How long a writer of SQLite waits for another one.
const SQLITE_WAIT: Duration = Duration::from_secs(30);
/// Any number of our own: consumers that start together make the tables one after another.
const SCHEMA_LOCK: &str = "SELECT pg_advisory_xact_lock(8270341)";

const MOVE: &str =
    "UPDATE usage_offsets SET next_offset = $1 WHERE topic = $2 AND partition = $3 AND next_offset = $4";
const MARK: &str = "SELECT sequence FROM usage_writers WHERE topic = $1 AND partition = $2 AND writer = $3";
const SET_MARK: &str = "INSERT INTO usage_writers VALUES ($1, $2, $3, $4) \
    ON CONFLICT (topic, partition, writer) DO UPDATE SET sequence = excluded.sequence";
const ADD_CELL: &str = "INSERT INTO usage_hourly VALUES \
    ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21) \
    ON CONFLICT (hour, organization, team, project, api_key, user_label, model, endpoint, provider, region, price_version, byok) \
    DO UPDATE SET requests = usage_hourly.requests + excluded.requests, estimated = usage_hourly.estimated + excluded.estimated, \
    input = usage_hourly.input + excluded.input, input_cache_read = usage_hourly.input_cache_read + excluded.input_cache_read, \
    input_cache_write = usage_hourly.input_cache_write + excluded.input_cache_write, output = usage_hourly.output + excluded.output, \
    output_reasoning = usage_hourly.output_reasoning + excluded.output_reasoning, cost_nano = usage_hourly.cost_nano + excluded.cost_nano, \
    billed_nano = usage_hourly.billed_nano + excluded.billed_nano";
const ADD_GAP: &str = "INSERT INTO usage_gaps VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
const ADD_REJECTED: &str = "INSERT INTO usage_rejected VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";

/// Records of one partition, from the stored offset on.
pub(crate) struct Stretch {
    pub(crate) partition: i32,
    pub(crate) begin: i64,
    pub(crate) end: i64,
    pub(crate) events: Vec<Event>,
    pub(crate) rejected: Vec<(i64, String)>,
}

/// A connection, for one topic.
pub(crate) struct Store {
    client: Client,
    topic: String,
}

impl Store {
    /// Opens `sqlite:///FILE` or `postgresql://…` and makes the tables where they are missing.
    pub(crate) fn open(url: &str, topic: &str) -> Result<Self> {
        let mut client = match url.strip_prefix("sqlite:///") {
            Some(file) => {
                let connection =
                    rusqlite::Connection::open(file).with_context(|| format!("opening {file}"))?;
                connection.busy_timeout(SQLITE_WAIT)?;
                connection.pragma_update(None, "journal_mode", "WAL")?;
                connection.pragma_update(None, "synchronous", "FULL")?;
                Client::Sqlite(connection)
            }
            // In clear: give `connect` a TLS connector where the database is on another machine.
            None => Client::postgres(postgres::Client::connect(url, postgres::NoTls)?),
        };
        client.transaction(|work| {
            if matches!(work, Work::Postgres { .. }) {
                work.script(SCHEMA_LOCK)?;
            }
            work.script(SCHEMA)
        })?;
        let topic = topic.to_owned();
        Ok(Self { client, topic })
    }

    /// The next offset to read.
    pub(crate) fn offset(&mut self, partition: i32) -> Result<i64> {
        let place = [Value::text(&self.topic), partition.into()];
        self.client.transaction(|work| {
            work.execute(
                "INSERT INTO usage_offsets VALUES ($1, $2, 0) ON CONFLICT DO NOTHING",
                &place,
            )?;
            let offset = work.number(
                "SELECT next_offset FROM usage_offsets WHERE topic = $1 AND partition = $2",
                &place,
            )?;
            offset.context("the row was made a line ago")
        })
    }

    /// Counts stretches, all in one transaction. Returns what each came to, in their order.
    pub(crate) fn record(&mut self, stretches: &[Stretch]) -> Result<Vec<Fold>> {
        let topic = &self.topic;
        self.client.transaction(|work| {
            stretches
                .iter()
                .map(|stretch| record_one(work, topic, stretch))
                .collect()
        })
    }

    /// Goes on behind records that Kafka has let go, and writes the alarm down.
    pub(crate) fn skip(&mut self, partition: i32, begin: i64, end: i64) -> Result<()> {
        let topic = Value::text(&self.topic);
        self.client.transaction(|work| {
            work.execute(MOVE, &[end.into(), topic.clone(), partition.into(), begin.into()])?;
            let gap = [
                topic.clone(),
                partition.into(),
                begin.into(),
                Value::text(""),
                0.into(),
                0.into(),
            ];
            work.execute(ADD_GAP, &gap).map(|_| ())
        })
    }
}

fn record_one(work: &mut Work<'_>, topic: &str, stretch: &Stretch) -> Result<Fold> {
    let (topic, partition) = (Value::text(topic), Value::from(stretch.partition));
    // First: the row's lock keeps others out of this partition until the commit.
    let place = [
        stretch.end.into(),
        topic.clone(),
        partition.clone(),
        stretch.begin.into(),
    ];
    let moved = work.execute(MOVE, &place)?;
    ensure!(
        moved == 1,
        "partition {} is not at {} any more",
        stretch.partition,
        stretch.begin
    );
    let mut marks = BTreeMap::new();
    let writers: BTreeSet<&String> = stretch.events.iter().map(|event| &event.writer).collect();
    for writer in writers {
        if let Some(sequence) = work.number(MARK, &[topic.clone(), partition.clone(), Value::text(writer)])? {
            marks.insert(writer.clone(), sequence);
        }
    }
    let found = fold::fold(&stretch.events, &marks)?;
    for (writer, sequence) in &found.marks {
        work.execute(
            SET_MARK,
            &[
                topic.clone(),
                partition.clone(),
                Value::text(writer),
                (*sequence).into(),
            ],
        )?;
    }
    for ((words, byok), sums) in &found.cells {
        let words = words.iter().map(|word| Value::text(word));
        let row: Vec<Value> = words
            .chain([i32::from(*byok).into()])
            .chain(sums.map(Value::from))
            .collect();
        work.execute(ADD_CELL, &row)?;
    }
    for gap in &found.gaps {
        let (writer, after) = (Value::text(&gap.writer), gap.after.into());
        let row = [
            topic.clone(),
            partition.clone(),
            gap.offset.into(),
            writer,
            after,
            gap.sequence.into(),
        ];
        work.execute(ADD_GAP, &row)?;
    }
    for (offset, why) in &stretch.rejected {
        work.execute(
            ADD_REJECTED,
            &[
                topic.clone(),
                partition.clone(),
                (*offset).into(),
                Value::text(why),
            ],
        )?;
    }
    Ok(found)
}
