//! The store in a SQLite file: one writer, which this is, and readers beside it.
//!
//! The file can be made anew from the usage log, so losing power may cost its last transactions but never its sense: WAL, and syncs
//! only at checkpoints. Rows and offset are one transaction, so what is lost is folded again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use tollway_shared::ids::WriterId;
use tollway_shared::time::UnixMillis;

use super::StoreFault;
use super::cell::{Cell, Digest, Dimension, Sum};
use super::fold::{Batch, Row};
use super::progress::{Book, Progress};
use super::schema::{
    GENERATION, GENERATION_SUMS, PROGRESS, SCHEMA, SKIPS, Sql, WRITER, listed, names, places,
};

/// How long a statement waits for another connection's lock.
const BUSY_MS: u64 = 5_000;
/// Prepared statements kept per connection.
const STATEMENTS: usize = 64;
/// Series whose numbers are kept in memory, some 100 bytes each; past it they are looked up again.
const SERIES_MAX: usize = 500_000;
/// Generations removed in one transaction.
const FORGET_ROWS: u32 = 20_000;

/// The connection that writes.
pub struct Writer {
    connection: Connection,
    series: HashMap<Digest, i64>,
    next_series: i64,
    next_generation: i64,
}

impl Writer {
    /// Opens the file, or makes it where there is none or it has another shape: what there was is set aside, as the usage log may not
    /// hold all of it any more, or it may be somebody else's. The flag says that it was made.
    pub fn open(path: &Path, cluster: &str) -> Result<(Self, bool), StoreFault> {
        if path.exists() {
            match Self::open_found(path, cluster) {
                Ok(Ok(writer)) => return Ok((writer, false)),
                Ok(Err(found)) => {
                    let kept = set_aside(path, &found.to_string())?;
                    tracing::warn!(found, wanted = SCHEMA, kept = %kept.display(), "the billing store has another shape; it is set aside and made anew from the usage log");
                }
                Err(fault) if fault.is_damage() => {
                    let kept = set_aside(path, "damaged")?;
                    tracing::warn!(error = %fault, kept = %kept.display(), "the billing store is damaged; it is set aside and made anew from the usage log");
                }
                Err(fault) => return Err(fault),
            }
        } else {
            remove(path)?; // what belonged to a file that is gone
        }
        let connection = connect(path, OpenFlags::default())?;
        let tables = Sql::Sqlite.tables().join(";\n");
        connection.execute_batch(&format!("BEGIN;\n{tables};"))?;
        connection.execute("INSERT INTO meta (name, value) VALUES ('cluster', ?1)", [cluster])?;
        connection.execute_batch(&format!("PRAGMA user_version = {SCHEMA}; COMMIT;"))?;
        Ok((Self::over(connection)?, true))
    }

    /// Opens the file there is; the number of its shape where that is not ours.
    fn open_found(path: &Path, cluster: &str) -> Result<Result<Self, i64>, StoreFault> {
        let connection = connect(path, OpenFlags::default())?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found != SCHEMA {
            return Ok(Err(found));
        }
        let owner: Option<String> = connection
            .query_row("SELECT value FROM meta WHERE name = 'cluster'", [], |row| {
                row.get(0)
            })
            .optional()?;
        if owner.as_deref() != Some(cluster) {
            return Err(StoreFault::OtherCluster(owner.unwrap_or_default()));
        }
        Self::over(connection).map(Ok)
    }

    fn over(connection: Connection) -> Result<Self, StoreFault> {
        let next = |table: &str| {
            connection.query_row(
                &format!("SELECT coalesce(max(id), 0) + 1 FROM {table}"),
                [],
                |row| row.get(0),
            )
        };
        let (next_series, next_generation) = (next("series")?, next("generation")?);
        Ok(Self {
            connection,
            series: HashMap::new(),
            next_series,
            next_generation,
        })
    }

    /// How far the store is.
    pub fn book(&self) -> Result<Book, StoreFault> {
        let mut book = Book::default();
        for progress in progress(&self.connection)? {
            book.partitions.insert(progress.partition, progress);
        }
        let mut marks = self
            .connection
            .prepare(&format!("SELECT {} FROM writer", names(&WRITER)))?;
        let mut rows = marks.query([])?;
        while let Some(row) = rows.next()? {
            let (writer, sequence): ([u8; 16], i64) = (row.get(1)?, row.get(2)?);
            book.marks.insert(
                (row.get(0)?, WriterId(u128::from_be_bytes(writer))),
                sequence.cast_unsigned(),
            );
        }
        Ok(book)
    }

    /// Writes stretches of some partitions, all of them or none.
    pub fn write(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreFault> {
        if self.series.len() > SERIES_MAX {
            self.series.clear();
        }
        let (series, generation) = (self.next_series, self.next_generation);
        let written = self.write_all(batches);
        if written.is_err() {
            // Whatever was numbered is not there.
            self.series.clear();
            (self.next_series, self.next_generation) = (series, generation);
        }
        written
    }

    fn write_all(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreFault> {
        let transaction = self.connection.transaction()?;
        for batch in batches {
            write_progress(&transaction, batch)?; // first: whoever is not the writer finds out here
            let mut numbers = HashMap::with_capacity(batch.series.len());
            for (digest, of) in &batch.series {
                let known = self.series.get(digest).copied();
                let number = match known {
                    Some(number) => number,
                    None => number(&transaction, &mut self.next_series, digest, of)?,
                };
                self.series.insert(*digest, number);
                numbers.insert(*digest, number);
            }
            write_cells(&transaction, batch, &numbers)?;
            for row in &batch.rows {
                write_row(
                    &transaction,
                    batch.partition,
                    self.next_generation,
                    numbers[&row.series],
                    row,
                )?;
                self.next_generation += 1;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Notes that the log has lost a partition's records from the next one on (the first, of a partition that is not in the store) up to
    /// `to`, all of them of before `at`.
    pub fn skip(&mut self, partition: i32, to: i64, at: UnixMillis) -> Result<(), StoreFault> {
        let text = format!(
            "INSERT INTO progress ({}) VALUES (?1, ?2, ?2, ?3, 0) {SKIPS}",
            names(&PROGRESS)
        );
        self.connection.execute(&text, params![partition, to, at.0])?;
        Ok(())
    }

    /// Removes the oldest generations that ended before an instant, and returns whether there may be more.
    pub fn forget(&mut self, before: UnixMillis) -> Result<bool, StoreFault> {
        // They are numbered as they came, which is nearly the order of their ends: some that stay do not end the search, a whole step does.
        let removed = self.connection.execute(
            "DELETE FROM generation WHERE id IN (SELECT id FROM generation ORDER BY id LIMIT ?1) AND finished_at < ?2",
            params![FORGET_ROWS, before.0],
        )?;
        Ok(removed > 0)
    }

    /// Forgets writers that have been silent everywhere since before an instant, as the replicated state does.
    pub fn forget_writers(&mut self, before: UnixMillis) -> Result<(), StoreFault> {
        self.connection.execute(
            "DELETE FROM writer WHERE writer IN (SELECT writer FROM writer GROUP BY writer HAVING max(at) < ?1)",
            [before.0],
        )?;
        self.connection.execute_batch("PRAGMA optimize")?; // what the planner knows of the tables
        Ok(())
    }
}

/// How far each partition is.
pub(super) fn progress(connection: &Connection) -> Result<Vec<Progress>, StoreFault> {
    let text = format!("SELECT {} FROM progress ORDER BY log_partition", names(&PROGRESS));
    let mut statement = connection.prepare_cached(&text)?;
    let rows = statement.query_map([], |row| {
        Ok(Progress {
            partition: row.get(0)?,
            first: row.get(1)?,
            next: row.get(2)?,
            begins: row.get::<_, Option<i64>>(3)?.map(UnixMillis),
            newest: UnixMillis(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Opens a connection that only reads.
pub fn reader(path: &Path) -> Result<Connection, StoreFault> {
    connect(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreFault> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    let writes = !flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY);
    if writes {
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8192; \
             PRAGMA journal_size_limit = 67108864;",
        )?;
    }
    // What a reader sorts may be more than there is memory; what the writer does is not.
    let temporary = if writes { "MEMORY" } else { "FILE" };
    connection.execute_batch(&format!(
        "PRAGMA cache_size = -65536; PRAGMA temp_store = {temporary};"
    ))?;
    Ok(connection)
}

/// Renames the file and what belongs to it to `<file>.<what>`, in place of what has that name, and returns it.
fn set_aside(path: &Path, what: &str) -> Result<PathBuf, StoreFault> {
    let kept = with(path, &format!(".{what}"));
    remove(&kept)?;
    // The file last: after a crash in between it is found again.
    for suffix in ["-shm", "-wal", ""] {
        unless_absent(path, std::fs::rename(with(path, suffix), with(&kept, suffix)))?;
    }
    Ok(kept)
}

fn remove(path: &Path) -> Result<(), StoreFault> {
    for suffix in ["-shm", "-wal", ""] {
        unless_absent(path, std::fs::remove_file(with(path, suffix)))?;
    }
    Ok(())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn unless_absent(path: &Path, done: std::io::Result<()>) -> Result<(), StoreFault> {
    match done {
        Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreFault::File(path.to_owned(), fault))
        }
        _ => Ok(()),
    }
}

/// The number of a series, which is given here when it is new.
fn number(
    transaction: &Transaction<'_>,
    next: &mut i64,
    digest: &Digest,
    series: &super::cell::Series,
) -> Result<i64, StoreFault> {
    let mut find = transaction.prepare_cached("SELECT id FROM series WHERE digest = ?1")?;
    if let Some(found) = find.query_row([digest], |row| row.get(0)).optional()? {
        return Ok(found);
    }
    let columns: Vec<&str> = Dimension::ALL.iter().map(|dimension| dimension.name()).collect();
    let text = format!(
        "INSERT INTO series (id, digest, prices, {}) VALUES ({})",
        columns.join(", "),
        places(3 + Dimension::COUNT)
    );
    let mut insert = transaction.prepare_cached(&text)?;
    let number = *next;
    insert.raw_bind_parameter(1, number)?;
    insert.raw_bind_parameter(2, digest)?;
    insert.raw_bind_parameter(3, &series.prices)?;
    for (place, value) in series.values.iter().enumerate() {
        insert.raw_bind_parameter(place + 4, value)?;
    }
    insert.raw_execute()?;
    *next += 1;
    Ok(number)
}

/// Adds to the cells: read, added here, where sums stay in their range, and written.
fn write_cells(
    transaction: &Transaction<'_>,
    batch: &Batch<'_>,
    numbers: &HashMap<Digest, i64>,
) -> Result<(), StoreFault> {
    let sums = listed(Sum::ALL);
    let mut find = transaction.prepare_cached(&format!(
        "SELECT {sums}, first_byte_ms, total_ms FROM rollup WHERE hour = ?1 AND series = ?2"
    ))?;
    let mut put = transaction.prepare_cached(&format!(
        "REPLACE INTO rollup (hour, series, {sums}, first_byte_ms, total_ms) VALUES ({})",
        places(Sum::COUNT + 4)
    ))?;
    // In the order of the table's key, so that pages are touched once.
    let mut cells: Vec<_> = batch
        .cells
        .iter()
        .map(|((hour, series), cell)| (*hour, numbers[series], cell))
        .collect();
    cells.sort_unstable_by_key(|(hour, series, _)| (*hour, *series));
    for (hour, series, more) in cells {
        let mut rows = find.query([hour, series])?;
        let mut cell = match rows.next()? {
            Some(row) => read_cell(row, 0)?,
            None => Cell::default(),
        };
        drop(rows);
        cell.merge(more);
        put.raw_bind_parameter(1, hour)?;
        put.raw_bind_parameter(2, series)?;
        for (place, sum) in cell.sums.0.iter().enumerate() {
            put.raw_bind_parameter(place + 3, sum)?;
        }
        put.raw_bind_parameter(Sum::COUNT + 3, cell.first_byte.text())?;
        put.raw_bind_parameter(Sum::COUNT + 4, cell.total.text())?;
        put.raw_execute()?;
    }
    Ok(())
}

/// Reads a cell from a row's columns, from `first` on.
fn read_cell(row: &rusqlite::Row<'_>, first: usize) -> Result<Cell, StoreFault> {
    let mut cell = Cell::default();
    for (place, sum) in cell.sums.0.iter_mut().enumerate() {
        *sum = row.get(first + place)?;
    }
    let text = |place: usize| row.get_ref(place).map(|value| value.as_str().unwrap_or_default());
    cell.first_byte.merge_text(text(first + Sum::COUNT)?);
    cell.total.merge_text(text(first + Sum::COUNT + 1)?);
    Ok(cell)
}

fn write_row(
    transaction: &Transaction<'_>,
    partition: i32,
    id: i64,
    series: i64,
    row: &Row<'_>,
) -> Result<(), StoreFault> {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        format!(
            "INSERT INTO generation ({}, {}) VALUES ({})",
            names(&GENERATION),
            listed(GENERATION_SUMS),
            places(GENERATION.len() + GENERATION_SUMS.len())
        )
    });
    let event = &row.event;
    let mut insert = transaction.prepare_cached(&TEXT)?;
    let mut place = 0;
    let mut bind = |value: &dyn rusqlite::ToSql| {
        place += 1;
        insert.raw_bind_parameter(place, value)
    };
    let optional =
        |text: &'_ Option<crate::ledger::event::Str<'_>>| text.as_ref().map(|text| text.get().to_owned());
    bind(&id)?;
    bind(&partition)?;
    bind(&row.offset)?;
    bind(&series)?;
    bind(&event.tenant.organization.get())?;
    bind(&event.request_id.get())?;
    bind(&event.id.get())?;
    bind(&event.node.get())?;
    bind(&event.started_at.0.0)?;
    bind(&event.first_byte_at.map(|at| at.0.0))?;
    bind(&event.finished_at.0.0)?;
    bind(&event.requested_model.get())?;
    bind(&event.dialect.as_str())?;
    bind(&event.stream)?;
    bind(&crate::ledger::event::end(event.end))?;
    bind(&event.status)?;
    bind(&optional(&event.fault))?;
    bind(&optional(&event.finish_reason))?;
    bind(&event.free)?;
    bind(&event.adjustment.bps)?;
    bind(&crate::ledger::event::source(event.usage_source))?;
    bind(&optional(&event.estimator))?;
    bind(&event.attempts.get())?;
    for sum in GENERATION_SUMS {
        bind(&row.sums.get(*sum))?;
    }
    insert.raw_execute()?;
    Ok(())
}

/// Moves the offset with everything else, if nobody else has.
fn write_progress(transaction: &Transaction<'_>, batch: &Batch<'_>) -> Result<(), StoreFault> {
    let mut moved = transaction.prepare_cached(
        "UPDATE progress SET next_offset = ?3, oldest_at = ?4, newest_at = ?5 \
         WHERE log_partition = ?1 AND next_offset = ?2",
    )?;
    let begins = batch.begins.map(|at| at.0);
    let values = params![batch.partition, batch.from, batch.to, begins, batch.newest.0];
    if moved.execute(values)? == 0 {
        let text = format!(
            "INSERT INTO progress ({}) VALUES ({}) ON CONFLICT DO NOTHING",
            names(&PROGRESS),
            places(PROGRESS.len())
        );
        let made = transaction.prepare_cached(&text)?.execute(values)?;
        if made == 0 {
            return Err(StoreFault::Moved(batch.partition));
        }
    }
    let mut mark = transaction.prepare_cached("REPLACE INTO writer VALUES (?1, ?2, ?3, ?4)")?;
    for (writer, sequence) in &batch.marks {
        mark.execute(params![
            batch.partition,
            writer.0.to_be_bytes(),
            sequence.cast_signed(),
            batch.newest.0
        ])?;
    }
    Ok(())
}
