//! SQLite and PostgreSQL behind the four calls that the store makes. Both understand `$1`, `$2`, … in the order of the values.

use std::collections::HashMap;
use std::error::Error;

use anyhow::Result;
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use rusqlite::OptionalExtension as _;

/// A text or a whole number.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Text(text) => rusqlite::ToSql::to_sql(text),
            Self::Number(number) => rusqlite::ToSql::to_sql(number),
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Text(text) => text.to_sql(kind, out),
            Self::Number(number) if *kind == Type::INT4 => i32::try_from(*number)?.to_sql(kind, out),
            Self::Number(number) => number.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        [Type::TEXT, Type::INT4, Type::INT8].contains(kind)
    }

    to_sql_checked!();
}

/// A database.
pub(crate) enum Client {
    Sqlite(rusqlite::Connection),
    Postgres {
        client: Box<postgres::Client>,
        /// Statements by their text: each is parsed once per connection.
        prepared: HashMap<&'static str, postgres::Statement>,
    },
}

impl Client {
    pub(crate) fn postgres(client: postgres::Client) -> Self {
        let (client, prepared) = (Box::new(client), HashMap::new());
        Self::Postgres { client, prepared }
    }

    /// Does `work` and commits; an error on the way, or a death, leaves everything as it was.
    pub(crate) fn transaction<T>(&mut self, work: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Sqlite(connection) => {
                let behavior = rusqlite::TransactionBehavior::Immediate;
                let transaction = connection.transaction_with_behavior(behavior)?;
                let mut doing = Work::Sqlite(transaction);
                let done = work(&mut doing)?;
                if let Work::Sqlite(transaction) = doing {
                    transaction.commit()?;
                }
                Ok(done)
            }
            Self::Postgres { client, prepared } => {
                let transaction = client.transaction()?;
                let mut doing = Work::Postgres {
                    transaction,
                    prepared,
                };
                let done = work(&mut doing)?;
                if let Work::Postgres { transaction, .. } = doing {
                    transaction.commit()?;
                }
                Ok(done)
            }
        }
    }
}

/// A transaction.
pub(crate) enum Work<'a> {
    Sqlite(rusqlite::Transaction<'a>),
    Postgres {
        transaction: postgres::Transaction<'a>,
        prepared: &'a mut HashMap<&'static str, postgres::Statement>,
    },
}

impl Work<'_> {
    /// Runs many statements without values.
    pub(crate) fn script(&mut self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(transaction) => transaction.execute_batch(sql)?,
            Self::Postgres { transaction, .. } => transaction.batch_execute(sql)?,
        }
        Ok(())
    }

    /// Runs one statement; returns how many rows it changed.
    pub(crate) fn execute(&mut self, sql: &'static str, values: &[Value]) -> Result<u64> {
        match self {
            Self::Sqlite(transaction) => {
                let mut statement = transaction.prepare_cached(sql)?;
                Ok(statement
                    .execute(rusqlite::params_from_iter(values))?
                    .try_into()?)
            }
            Self::Postgres {
                transaction,
                prepared,
            } => {
                let statement = prepare(transaction, prepared, sql)?;
                Ok(transaction.execute(&statement, &arguments(values))?)
            }
        }
    }

    /// The one number that a query finds, if it finds one.
    pub(crate) fn number(&mut self, sql: &'static str, values: &[Value]) -> Result<Option<i64>> {
        match self {
            Self::Sqlite(transaction) => {
                let mut statement = transaction.prepare_cached(sql)?;
                let row = statement.query_row(rusqlite::params_from_iter(values), |row| row.get(0));
                Ok(row.optional()?)
            }
            Self::Postgres {
                transaction,
                prepared,
            } => {
                let statement = prepare(transaction, prepared, sql)?;
                let row = transaction.query_opt(&statement, &arguments(values))?;
                Ok(row.map(|row| row.try_get(0)).transpose()?)
            }
        }
    }
}

fn prepare(
    transaction: &mut postgres::Transaction<'_>,
    prepared: &mut HashMap<&'static str, postgres::Statement>,
    sql: &'static str,
) -> Result<postgres::Statement> {
    if let Some(statement) = prepared.get(sql) {
        return Ok(statement.clone());
    }
    let statement = transaction.prepare(sql)?;
    prepared.insert(sql, statement.clone());
    Ok(statement)
}

fn arguments(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}
