//! Reading the store: any statements, on one view of it, a few at a time and none for long.
//!
//! SQL is written once for both backends: parameters are `?1`, `?2`, …, numbers are BIGINT, and a sum is cast to one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use tokio_postgres::IsolationLevel;
use tokio_postgres::types::{ToSql, Type};

use super::cell::Sum;
use super::connect::{Server, connect};
use super::progress::Progress;
use super::query::{Groups, Query, Statement, Summed, Value};
use super::schema::{PROGRESS, Sql, names};
use super::sqlite::reader;
use super::{Billing, Place, StoreFault};
use tollway_shared::time::UnixMillis;

/// Queries at a time; more wait.
pub const READERS: usize = 3;
/// How long a query may take, its wait included. PostgreSQL works on no statement for longer.
const WITHIN: Duration = Duration::from_secs(20);
/// Most rows of one statement.
pub(super) const ROWS_MAX: usize = 2_000_000;

/// The rows of a statement.
pub type Table = Vec<Vec<Value>>;

/// What a query found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// A page of groups, in order.
    pub groups: Groups,
    /// Whether there are more groups behind it.
    pub more: bool,
    /// The sum over every group.
    pub total: Summed,
    /// How far the store was, in the same view of it.
    pub progress: Vec<Progress>,
}

impl Billing {
    /// The SQL that the store understands; `None` where there is none.
    pub fn sql(&self) -> Option<Sql> {
        match self.place() {
            Place::None => None,
            Place::File(_) => Some(Sql::Sqlite),
            Place::Server(_) => Some(Sql::Postgres),
        }
    }

    /// Answers a query.
    pub async fn query(&self, query: &Query) -> Result<Found, StoreFault> {
        let sql = self.sql().ok_or(StoreFault::Absent)?;
        let whole = query.whole();
        let mut tables = self
            .select(vec![query.statement(sql), whole.statement(sql), progress()])
            .await?;
        let progress = tables.pop().unwrap_or_default();
        let total = groups(&whole, tables.pop().unwrap_or_default()).pop();
        let mut groups = groups(query, tables.pop().unwrap_or_default());
        let more = groups.len() > query.limit;
        groups.truncate(query.limit);
        Ok(Found {
            groups,
            more,
            total: total.map(|(_, total)| total).unwrap_or_default(),
            progress: progress.iter().filter_map(|row| progress_of(row)).collect(),
        })
    }

    /// The groups of some queries, all on one view of the store. One more than a query's limit says that there are more.
    pub async fn groups<const N: usize>(&self, queries: [Query; N]) -> Result<[Groups; N], StoreFault> {
        let sql = self.sql().ok_or(StoreFault::Absent)?;
        let statements = queries.iter().map(|query| query.statement(sql)).collect();
        let mut tables = self.select(statements).await?.into_iter();
        Ok(queries.map(|query| groups(&query, tables.next().unwrap_or_default())))
    }

    /// How far the store is by its own account, also where another replica writes it.
    pub async fn progress(&self) -> Result<Vec<Progress>, StoreFault> {
        let table = self.select(vec![progress()]).await?.pop().unwrap_or_default();
        Ok(table.iter().filter_map(|row| progress_of(row)).collect())
    }

    /// Runs statements that only read, all on one view of the store, and returns the rows of each.
    pub async fn select(&self, statements: Vec<Statement>) -> Result<Vec<Table>, StoreFault> {
        let within = async {
            let _slot = self.readers.acquire().await.map_err(|_| StoreFault::Absent)?;
            match self.place() {
                Place::None => Err(StoreFault::Absent),
                Place::File(path) => select_file(path.clone(), statements).await,
                Place::Server(server) => select_server(server, &statements).await,
            }
        };
        tokio::time::timeout(WITHIN, within)
            .await
            .map_err(|_| StoreFault::Slow)?
    }
}

fn progress() -> Statement {
    Statement {
        text: format!("SELECT {} FROM progress ORDER BY log_partition", names(&PROGRESS)),
        values: Vec::new(),
    }
}

async fn select_file(path: PathBuf, statements: Vec<Statement>) -> Result<Vec<Table>, StoreFault> {
    let (interrupt, interrupted) = tokio::sync::oneshot::channel();
    let task = tokio::task::spawn_blocking(move || {
        let connection = open(&path)?;
        let _ = interrupt.send(connection.get_interrupt_handle()); // whoever asked may be gone
        let view = connection.unchecked_transaction()?;
        statements
            .iter()
            .map(|statement| rows(&view, statement))
            .collect()
    });
    let mut guard = Interrupt(interrupted.await.ok());
    let done = task.await?;
    guard.0 = None;
    done
}

/// Interrupts a query whose asker is gone.
struct Interrupt(Option<rusqlite::InterruptHandle>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.interrupt();
        }
    }
}

fn open(path: &Path) -> Result<rusqlite::Connection, StoreFault> {
    if path.exists() {
        reader(path)
    } else {
        Err(StoreFault::Absent)
    }
}

fn rows(view: &rusqlite::Connection, wanted: &Statement) -> Result<Table, StoreFault> {
    let mut statement = view.prepare(&wanted.text)?;
    for (place, value) in wanted.values.iter().enumerate() {
        match value {
            Value::None => statement.raw_bind_parameter(place + 1, rusqlite::types::Null)?,
            Value::Int(number) => statement.raw_bind_parameter(place + 1, number)?,
            Value::Text(text) => statement.raw_bind_parameter(place + 1, text)?,
        }
    }
    let columns = statement.column_count();
    let mut rows = statement.raw_query();
    let mut table = Table::new();
    while let Some(row) = rows.next()? {
        if table.len() == ROWS_MAX {
            return Err(StoreFault::Many);
        }
        let values = (0..columns).map(|place| {
            Ok(match row.get_ref(place)? {
                ValueRef::Null => Value::None,
                ValueRef::Integer(number) => Value::Int(number),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Real(_) | ValueRef::Blob(_) => {
                    return Err(StoreFault::Shape("a column is neither a whole number nor text"));
                }
            })
        });
        table.push(values.collect::<Result<_, StoreFault>>()?);
    }
    Ok(table)
}

async fn select_server(server: &Server, statements: &[Statement]) -> Result<Vec<Table>, StoreFault> {
    let mut client = connect(server, WITHIN).await?;
    let view = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let mut tables = Vec::with_capacity(statements.len());
    for statement in statements {
        let text = dollars(&statement.text);
        let values: Vec<&(dyn ToSql + Sync)> = statement
            .values
            .iter()
            .map(|value| match value {
                Value::None => &None::<i64> as &(dyn ToSql + Sync),
                Value::Int(number) => number,
                Value::Text(text) => text,
            })
            .collect();
        let rows = view.query(&text, &values).await?;
        if rows.len() > ROWS_MAX {
            return Err(StoreFault::Many);
        }
        let table = rows.iter().map(|row| {
            let values = row.columns().iter().enumerate().map(|(place, column)| {
                Ok(match *column.type_() {
                    Type::INT8 => row.get::<_, Option<i64>>(place).map_or(Value::None, Value::Int),
                    Type::TEXT | Type::VARCHAR | Type::NAME => row
                        .get::<_, Option<String>>(place)
                        .map_or(Value::None, Value::Text),
                    _ => return Err(StoreFault::Shape("a column is neither BIGINT nor text")),
                })
            });
            values.collect::<Result<Vec<Value>, StoreFault>>()
        });
        tables.push(table.collect::<Result<_, _>>()?);
    }
    Ok(tables)
}

/// `?1` as PostgreSQL writes it. Question marks stand for nothing else in our SQL.
pub(super) fn dollars(text: &str) -> String {
    text.replace('?', "$")
}

fn progress_of(row: &[Value]) -> Option<Progress> {
    let [
        Value::Int(partition),
        Value::Int(first),
        Value::Int(next),
        begins,
        Value::Int(newest),
    ] = row
    else {
        return None;
    };
    Some(Progress {
        partition: i32::try_from(*partition).ok()?,
        first: *first,
        next: *next,
        begins: match begins {
            Value::Int(begins) => Some(UnixMillis(*begins)),
            Value::None | Value::Text(_) => None,
        },
        newest: UnixMillis(*newest),
    })
}

/// Groups from their rows: the group's values, two for each [`Sum`], the latencies.
fn groups(query: &Query, table: Table) -> Groups {
    let of = |mut row: Vec<Value>| {
        let rest = row.split_off(query.by.len());
        let mut summed = Summed::default();
        let int = |value: Option<&Value>| match value {
            Some(Value::Int(number)) => *number,
            _ => 0,
        };
        for sum in 0..Sum::COUNT {
            summed.put(sum, int(rest.get(2 * sum)), int(rest.get(2 * sum + 1)));
        }
        let mut latencies = rest[2 * Sum::COUNT..].iter();
        for histogram in [&mut summed.first_byte, &mut summed.total] {
            if let Some(Value::Text(text)) = latencies.next() {
                histogram.merge_text(text);
            }
        }
        (row, summed)
    };
    table.into_iter().map(of).collect()
}
