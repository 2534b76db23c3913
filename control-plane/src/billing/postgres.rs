//! The store in PostgreSQL, shared by all replicas: one of them writes, whichever holds the lock; the others read.
//!
//! Tables lie in a schema named by the number of their shape, so another version makes its own from the usage log and leaves what there
//! was to the operator. The lock is the session's: it goes with the connection, and an offset that somebody else has moved is noticed
//! in the transaction all the same.
//!
//! Called on a thread that may block: folding is synchronous, and each call here waits for the server on that thread.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::SinkExt;
use tokio::runtime::Handle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Transaction};
use tollway_shared::ids::WriterId;
use tollway_shared::time::UnixMillis;

use super::StoreFault;
use super::cell::{Cell, Digest, Dimension, Series, Sum};
use super::connect::{Server, connect};
use super::fold::{Batch, Row};
use super::progress::{Book, Progress};
use super::schema::{GENERATION, GENERATION_SUMS, PROGRESS, SCHEMA, SKIPS, Sql, WRITER, listed, names};
use crate::ledger::event::{self, Str};

/// The advisory lock of whoever writes: `toll`, and the number of the shape.
const LOCK: (i32, i32) = (0x746f_6c6c, SCHEMA as i32);
/// Series whose numbers are kept in memory, some 100 bytes each; past it they are looked up again.
const SERIES_MAX: usize = 500_000;
/// Generations removed in one transaction.
const FORGET_ROWS: i64 = 20_000;
/// How long one transaction may take.
const WITHIN: Duration = Duration::from_secs(60);

/// The connection that writes.
pub struct Writer {
    runtime: Handle,
    client: Client,
    series: HashMap<Digest, i64>,
    next_series: i64,
    next_generation: i64,
}

/// What opening came to.
pub enum Opened {
    /// This replica writes. The flag says that the tables were made.
    Writes(Box<Writer>, bool),
    /// Another replica writes, and is so far.
    Reads(Vec<Progress>),
}

/// The schema that the tables lie in.
pub fn schema() -> String {
    format!("tollway_billing_{SCHEMA}")
}

impl Writer {
    /// Connects and takes the lock, unless another replica has it.
    pub fn open(runtime: &Handle, server: &Server, cluster: &str) -> Result<Opened, StoreFault> {
        runtime.block_on(within(Self::opened(runtime, server, cluster)))
    }

    async fn opened(runtime: &Handle, server: &Server, cluster: &str) -> Result<Opened, StoreFault> {
        let mut client = connect(server, WITHIN).await?;
        let locked = client
            .query_one("SELECT pg_try_advisory_lock($1, $2)", &[&LOCK.0, &LOCK.1])
            .await?;
        if !locked.get::<_, bool>(0) {
            return Ok(Opened::Reads(progress(&client).await?));
        }
        let made = make(&mut client, cluster).await?;
        let next = async |table: &str| {
            let text = format!("SELECT coalesce(max(id), 0) + 1 FROM {table}");
            client.query_one(&text, &[]).await.map(|row| row.get::<_, i64>(0))
        };
        let (next_series, next_generation) = (next("series").await?, next("generation").await?);
        let writer = Self {
            runtime: runtime.clone(),
            client,
            series: HashMap::new(),
            next_series,
            next_generation,
        };
        Ok(Opened::Writes(Box::new(writer), made))
    }

    /// How far the store is.
    pub fn book(&self) -> Result<Book, StoreFault> {
        self.runtime.block_on(within(async {
            let mut book = Book::default();
            for progress in progress(&self.client).await? {
                book.partitions.insert(progress.partition, progress);
            }
            let text = format!("SELECT {} FROM writer", names(&WRITER));
            for row in self.client.query(&text, &[]).await? {
                let partition = partition(row.get(0))?;
                let bytes = <[u8; 16]>::try_from(row.get::<_, &[u8]>(1)).unwrap_or_default();
                let writer = WriterId(u128::from_be_bytes(bytes));
                book.marks
                    .insert((partition, writer), row.get::<_, i64>(2).cast_unsigned());
            }
            Ok(book)
        }))
    }

    /// Writes stretches of some partitions, all of them or none.
    pub fn write(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreFault> {
        if self.series.len() > SERIES_MAX {
            self.series.clear();
        }
        let (series, generation) = (self.next_series, self.next_generation);
        let runtime = self.runtime.clone();
        let written = runtime.block_on(within(self.write_all(batches)));
        if written.is_err() {
            // Whatever was numbered is not there.
            self.series.clear();
            (self.next_series, self.next_generation) = (series, generation);
        }
        written
    }

    async fn write_all(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreFault> {
        let Self {
            client,
            series,
            next_series,
            next_generation,
            ..
        } = self;
        let transaction = client.transaction().await?;
        let mut rows = CopyRows::new();
        for batch in batches {
            write_progress(&transaction, batch).await?; // first: whoever is not the writer finds out here
            number(&transaction, &batch.series, series, next_series).await?;
            write_cells(&transaction, batch, series).await?;
            for row in &batch.rows {
                rows.put(batch.partition, *next_generation, series[&row.series], row);
                *next_generation += 1;
            }
        }
        rows.send(&transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Notes that the log has lost a partition's records from the next one on (the first, of a partition that is not in the store) up to
    /// `to`, all of them of before `at`.
    pub fn skip(&mut self, partition: i32, to: i64, at: UnixMillis) -> Result<(), StoreFault> {
        let text = format!(
            "INSERT INTO progress ({}) VALUES ($1, $2, $2, $3, 0) {SKIPS}",
            names(&PROGRESS)
        );
        self.runtime.block_on(within(async {
            let partition = i64::from(partition);
            self.client.execute(&text, &[&partition, &to, &at.0]).await?;
            Ok(())
        }))
    }

    /// Removes the oldest generations that ended before an instant, and returns whether there may be more.
    pub fn forget(&mut self, before: UnixMillis) -> Result<bool, StoreFault> {
        let removed = self.runtime.block_on(within(async {
            // They are numbered as they came, which is nearly the order of their ends: some that stay do not end the search, a whole
            // step does.
            let text = "DELETE FROM generation WHERE id IN (SELECT id FROM generation ORDER BY id LIMIT $1) AND finished_at < $2";
            Ok(self.client.execute(text, &[&FORGET_ROWS, &before.0]).await?)
        }))?;
        Ok(removed > 0)
    }

    /// Forgets writers that have been silent everywhere since before an instant, as the replicated state does.
    pub fn forget_writers(&mut self, before: UnixMillis) -> Result<(), StoreFault> {
        let text = "DELETE FROM writer WHERE writer IN (SELECT writer FROM writer GROUP BY writer HAVING max(at) < $1)";
        self.runtime.block_on(within(async {
            self.client.execute(text, &[&before.0]).await?;
            Ok(())
        }))
    }
}

async fn within<T>(work: impl Future<Output = Result<T, StoreFault>>) -> Result<T, StoreFault> {
    tokio::time::timeout(WITHIN, work)
        .await
        .map_err(|_| StoreFault::Slow)?
}

fn partition(number: i64) -> Result<i32, StoreFault> {
    i32::try_from(number).map_err(|_| StoreFault::Shape("a partition's number is out of range"))
}

/// How far each partition is.
pub(super) async fn progress(
    client: &impl tokio_postgres::GenericClient,
) -> Result<Vec<Progress>, StoreFault> {
    let text = format!("SELECT {} FROM progress ORDER BY log_partition", names(&PROGRESS));
    let rows = client.query(&text, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Progress {
                partition: partition(row.get(0))?,
                first: row.get(1),
                next: row.get(2),
                begins: row.get::<_, Option<i64>>(3).map(UnixMillis),
                newest: UnixMillis(row.get(4)),
            })
        })
        .collect()
}

/// Makes the tables where there are none; whether it has.
async fn make(client: &mut Client, cluster: &str) -> Result<bool, StoreFault> {
    let transaction = client.transaction().await?;
    let name = schema();
    transaction
        .batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS {name}; SET search_path TO {name}"
        ))
        .await?;
    let there = transaction
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("{name}.meta")])
        .await?;
    if there.get(0) {
        let text = "SELECT value FROM meta WHERE name = 'cluster'";
        let owner = transaction.query_opt(text, &[]).await?;
        let owner: String = owner.map(|row| row.get(0)).unwrap_or_default();
        transaction.commit().await?;
        return if owner == cluster {
            Ok(false)
        } else {
            Err(StoreFault::OtherCluster(owner))
        };
    }
    transaction
        .batch_execute(&Sql::Postgres.tables().join(";\n"))
        .await?;
    let text = "INSERT INTO meta (name, value) VALUES ('cluster', $1), ('schema', $2)";
    transaction
        .execute(text, &[&cluster, &SCHEMA.to_string()])
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Sees to it that all series have numbers, and that `known` has them.
async fn number(
    transaction: &Transaction<'_>,
    wanted: &HashMap<Digest, Series>,
    known: &mut HashMap<Digest, i64>,
    next: &mut i64,
) -> Result<(), StoreFault> {
    let unknown: Vec<&[u8]> = wanted
        .keys()
        .filter(|digest| !known.contains_key(*digest))
        .map(|digest| digest.as_slice())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let text = "SELECT id, digest FROM series WHERE digest = ANY($1)";
    for row in transaction.query(text, &[&unknown]).await? {
        let digest = Digest::try_from(row.get::<_, &[u8]>(1))
            .map_err(|_| StoreFault::Shape("a digest has another length"))?;
        known.insert(digest, row.get(0));
    }
    let new: Vec<(&Digest, &Series)> = wanted
        .iter()
        .filter(|(digest, _)| !known.contains_key(*digest))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = (*next..).take(new.len()).collect();
    let digests: Vec<&[u8]> = new.iter().map(|(digest, _)| digest.as_slice()).collect();
    let prices: Vec<&str> = new.iter().map(|(_, series)| series.prices.as_str()).collect();
    let texts: Vec<Vec<&str>> = (0..Dimension::COUNT)
        .map(|place| {
            new.iter()
                .map(|(_, series)| series.values[place].as_str())
                .collect()
        })
        .collect();
    let columns: Vec<&str> = Dimension::ALL.iter().map(|dimension| dimension.name()).collect();
    let arrays: Vec<String> = (4..4 + Dimension::COUNT)
        .map(|n| format!("${n}::text[]"))
        .collect();
    let text = format!(
        "INSERT INTO series (id, digest, prices, {}) SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::text[], {})",
        columns.join(", "),
        arrays.join(", ")
    );
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&numbers, &digests, &prices];
    values.extend(texts.iter().map(|texts| texts as &(dyn ToSql + Sync)));
    transaction.execute(&text, &values).await?;
    for ((digest, _), number) in new.iter().zip(numbers) {
        known.insert(**digest, number);
        *next = number + 1;
    }
    Ok(())
}

/// Adds to the cells: read, added here, where sums stay in their range, and written.
async fn write_cells(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    numbers: &HashMap<Digest, i64>,
) -> Result<(), StoreFault> {
    if batch.cells.is_empty() {
        return Ok(());
    }
    let mut cells: HashMap<(i64, i64), Cell> = batch
        .cells
        .iter()
        .map(|((hour, series), cell)| ((*hour, numbers[series]), cell.clone()))
        .collect();
    let mut keys: Vec<(i64, i64)> = cells.keys().copied().collect();
    keys.sort_unstable();
    let hours: Vec<i64> = keys.iter().map(|(hour, _)| *hour).collect();
    let series: Vec<i64> = keys.iter().map(|(_, series)| *series).collect();
    let sums = listed(Sum::ALL);
    let find = transaction
        .prepare(&format!(
            "SELECT hour, series, first_byte_ms, total_ms, {sums} FROM rollup \
             JOIN unnest($1::bigint[], $2::bigint[]) AS wanted (hour, series) USING (hour, series)"
        ))
        .await?;
    for row in transaction.query(&find, &[&hours, &series]).await? {
        let Some(cell) = cells.get_mut(&(row.get(0), row.get(1))) else {
            continue;
        };
        let mut kept = Cell::default();
        kept.first_byte.merge_text(row.get(2));
        kept.total.merge_text(row.get(3));
        for (place, sum) in kept.sums.0.iter_mut().enumerate() {
            *sum = row.get(place + 4);
        }
        cell.merge(&kept);
    }
    let ordered: Vec<&Cell> = keys.iter().map(|key| &cells[key]).collect();
    let first: Vec<String> = ordered.iter().map(|cell| cell.first_byte.text()).collect();
    let total: Vec<String> = ordered.iter().map(|cell| cell.total.text()).collect();
    let counts: Vec<Vec<i64>> = (0..Sum::COUNT)
        .map(|place| ordered.iter().map(|cell| cell.sums.0[place]).collect())
        .collect();
    let arrays: Vec<String> = (5..5 + Sum::COUNT).map(|n| format!("${n}::bigint[]")).collect();
    let replaced: Vec<String> = Sum::ALL
        .iter()
        .map(|sum| format!("{0} = excluded.{0}", sum.name()))
        .collect();
    let put = format!(
        "INSERT INTO rollup (hour, series, first_byte_ms, total_ms, {sums}) \
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], {}) \
         ON CONFLICT (hour, series) DO UPDATE SET first_byte_ms = excluded.first_byte_ms, total_ms = excluded.total_ms, {}",
        arrays.join(", "),
        replaced.join(", ")
    );
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&hours, &series, &first, &total];
    values.extend(counts.iter().map(|counts| counts as &(dyn ToSql + Sync)));
    transaction.execute(&put, &values).await?;
    Ok(())
}

/// Moves the offset with everything else, if nobody else has.
async fn write_progress(transaction: &Transaction<'_>, batch: &Batch<'_>) -> Result<(), StoreFault> {
    let partition = i64::from(batch.partition);
    let begins = batch.begins.map(|at| at.0);
    let values: [&(dyn ToSql + Sync); 5] = [&partition, &batch.from, &batch.to, &begins, &batch.newest.0];
    let moved = transaction
        .execute(
            "UPDATE progress SET next_offset = $3, oldest_at = $4, newest_at = $5 \
             WHERE log_partition = $1 AND next_offset = $2",
            &values,
        )
        .await?;
    if moved == 0 {
        let text = format!(
            "INSERT INTO progress ({}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            names(&PROGRESS)
        );
        if transaction.execute(&text, &values).await? == 0 {
            return Err(StoreFault::Moved(batch.partition));
        }
    }
    let writers: Vec<Vec<u8>> = batch
        .marks
        .keys()
        .map(|writer| writer.0.to_be_bytes().to_vec())
        .collect();
    let sequences: Vec<i64> = batch
        .marks
        .values()
        .map(|sequence| sequence.cast_signed())
        .collect();
    let text = "INSERT INTO writer (log_partition, writer, sequence, at) \
                SELECT $1, writer, sequence, $4 FROM unnest($2::bytea[], $3::bigint[]) AS moved (writer, sequence) \
                ON CONFLICT (log_partition, writer) DO UPDATE SET sequence = excluded.sequence, at = excluded.at";
    transaction
        .execute(text, &[&partition, &writers, &sequences, &batch.newest.0])
        .await?;
    Ok(())
}

/// Generations in the binary form of COPY: a count of fields, then each with its length.
struct CopyRows(BytesMut);

impl CopyRows {
    fn new() -> Self {
        let mut bytes = BytesMut::with_capacity(1 << 20);
        bytes.put_slice(b"PGCOPY\n\xff\r\n\0");
        bytes.put_i32(0); // flags
        bytes.put_i32(0); // no header extension
        Self(bytes)
    }

    fn int(&mut self, number: i64) {
        self.0.put_i32(8);
        self.0.put_i64(number);
    }

    fn text(&mut self, text: &str) {
        // PostgreSQL's text cannot hold the character 0, which a caller's label may.
        if text.contains('\0') {
            return self.text(&text.replace('\0', "\u{fffd}"));
        }
        self.0.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX)); // an event is far shorter
        self.0.put_slice(text.as_bytes());
    }

    fn optional(&mut self, text: &Option<Str<'_>>) {
        match text {
            Some(text) => self.text(text.get()),
            None => self.0.put_i32(-1),
        }
    }

    fn put(&mut self, partition: i32, id: i64, series: i64, row: &Row<'_>) {
        let event = &row.event;
        let fields = GENERATION.len() + GENERATION_SUMS.len();
        self.0.put_i16(i16::try_from(fields).unwrap_or(i16::MAX)); // a few dozen
        self.int(id);
        self.int(i64::from(partition));
        self.int(row.offset);
        self.int(series);
        self.text(event.tenant.organization.get());
        self.text(event.request_id.get());
        self.text(event.id.get());
        self.text(event.node.get());
        self.int(event.started_at.0.0);
        match event.first_byte_at {
            Some(at) => self.int(at.0.0),
            None => self.0.put_i32(-1),
        }
        self.int(event.finished_at.0.0);
        self.text(event.requested_model.get());
        self.text(event.dialect.as_str());
        self.int(i64::from(event.stream));
        self.text(event::end(event.end));
        self.int(i64::from(event.status));
        self.optional(&event.fault);
        self.optional(&event.finish_reason);
        self.int(i64::from(event.free));
        self.int(i64::from(event.adjustment.bps));
        self.text(event::source(event.usage_source));
        self.optional(&event.estimator);
        self.text(event.attempts.get());
        for sum in GENERATION_SUMS {
            self.int(row.sums.get(*sum));
        }
    }

    async fn send(mut self, transaction: &Transaction<'_>) -> Result<(), StoreFault> {
        self.0.put_i16(-1); // the end
        let text = format!(
            "COPY generation ({}, {}) FROM STDIN BINARY",
            names(&GENERATION),
            listed(GENERATION_SUMS)
        );
        let sink = transaction.copy_in(&text).await?;
        futures::pin_mut!(sink);
        sink.send(self.0.freeze()).await?;
        sink.finish().await?;
        Ok(())
    }
}
