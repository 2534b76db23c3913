//! The tables, as SQL of either backend. See the [module](super) for what they mean.

use super::cell::{Dimension, Sum};

/// Number of the tables' shape. Another one in a store means that it is made anew from the usage log.
pub const SCHEMA: i64 = 3;

/// Columns of `generation` that are not in [`Sum`], with their kinds.
pub const GENERATION: [(&str, Kind); 23] = [
    ("id", Kind::Int),
    ("log_partition", Kind::Int),
    ("log_offset", Kind::Int),
    ("series", Kind::Int),
    ("organization", Kind::Text),
    ("request_id", Kind::Text),
    ("event_id", Kind::Text),
    ("node", Kind::Text),
    ("started_at", Kind::Int),
    ("first_byte_at", Kind::IntOrNull),
    ("finished_at", Kind::Int),
    ("requested_model", Kind::Text),
    ("dialect", Kind::Text),
    ("stream", Kind::Int),
    ("end_state", Kind::Text),
    ("status", Kind::Int),
    ("fault", Kind::TextOrNull),
    ("finish_reason", Kind::TextOrNull),
    ("free", Kind::Int),
    ("adjustment_bps", Kind::Int),
    ("usage_source", Kind::Text),
    ("estimator", Kind::TextOrNull),
    ("attempts", Kind::Text),
];

/// The sums that a generation has, too: tokens, charges and what follows from them.
pub const GENERATION_SUMS: &[Sum] = Sum::ALL.split_at(Sum::TokensInput as usize).1;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Int,
    /// A whole number, or nothing.
    IntOrNull,
    /// Text.
    Text,
    /// Text, or nothing.
    TextOrNull,
    /// Bytes.
    Bytes,
}

/// Where the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sql {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

impl Sql {
    fn column(self, name: &str, kind: Kind) -> String {
        let of = match (self, kind) {
            (Self::Sqlite, Kind::Int) => "INTEGER NOT NULL",
            (Self::Sqlite, Kind::IntOrNull) => "INTEGER",
            (Self::Postgres, Kind::Int) => "BIGINT NOT NULL",
            (Self::Postgres, Kind::IntOrNull) => "BIGINT",
            (Self::Sqlite, Kind::Text) => "TEXT NOT NULL",
            (Self::Sqlite, Kind::TextOrNull) => "TEXT",
            // By bytes, as everywhere else: groups come in the same order from both.
            (Self::Postgres, Kind::Text) => "TEXT COLLATE \"C\" NOT NULL",
            (Self::Postgres, Kind::TextOrNull) => "TEXT COLLATE \"C\"",
            (Self::Sqlite, Kind::Bytes) => "BLOB NOT NULL",
            (Self::Postgres, Kind::Bytes) => "BYTEA NOT NULL",
        };
        format!("{name} {of}")
    }

    /// Statements that make the tables and views.
    pub fn tables(self) -> Vec<String> {
        let columns = |list: &[(&str, Kind)]| {
            let texts: Vec<String> = list.iter().map(|(name, kind)| self.column(name, *kind)).collect();
            texts.join(", ")
        };
        let (strict, keyed) = match self {
            Self::Sqlite => (" STRICT", " STRICT, WITHOUT ROWID"),
            Self::Postgres => ("", ""),
        };
        let sums = |sums: &[Sum]| {
            let texts: Vec<String> = sums
                .iter()
                .map(|sum| self.column(sum.name(), Kind::Int))
                .collect();
            texts.join(", ")
        };
        let dimensions: Vec<(&str, Kind)> = Dimension::ALL
            .iter()
            .map(|dimension| (dimension.name(), Kind::Text))
            .collect();
        let names: Vec<&str> = Dimension::ALL.iter().map(|dimension| dimension.name()).collect();
        let int = |name| self.column(name, Kind::Int);
        let text = |name| self.column(name, Kind::Text);
        vec![
            format!(
                "CREATE TABLE meta (name TEXT PRIMARY KEY, {}){strict}",
                text("value")
            ),
            format!(
                "CREATE TABLE progress ({}, PRIMARY KEY (log_partition)){keyed}",
                columns(&PROGRESS)
            ),
            format!(
                "CREATE TABLE writer ({}, PRIMARY KEY (log_partition, writer)){keyed}",
                columns(&WRITER)
            ),
            format!(
                "CREATE TABLE series ({}, {}, {}, {}, PRIMARY KEY (id)){strict}",
                int("id"),
                self.column("digest", Kind::Bytes),
                columns(&dimensions),
                text("prices"),
            ),
            "CREATE UNIQUE INDEX series_digest ON series (digest)".to_owned(),
            "CREATE INDEX series_organization ON series (organization)".to_owned(),
            "CREATE INDEX series_key ON series (key)".to_owned(),
            format!(
                "CREATE TABLE rollup ({}, {}, {}, {}, {}, PRIMARY KEY (hour, series)){keyed}",
                int("hour"),
                int("series"),
                sums(Sum::ALL),
                text("first_byte_ms"),
                text("total_ms"),
            ),
            "CREATE INDEX rollup_series ON rollup (series, hour)".to_owned(),
            format!(
                "CREATE TABLE generation ({}, {}, PRIMARY KEY (id)){strict}",
                columns(&GENERATION),
                sums(GENERATION_SUMS),
            ),
            "CREATE INDEX generation_request ON generation (request_id)".to_owned(),
            "CREATE INDEX generation_organization ON generation (organization, id)".to_owned(),
            format!(
                "CREATE VIEW usage_by_hour AS SELECT hour, {}, {}, first_byte_ms, total_ms \
                 FROM rollup JOIN series ON series.id = rollup.series",
                names.join(", "),
                listed(Sum::ALL),
            ),
        ]
    }
}

/// Columns of `progress`.
pub const PROGRESS: [(&str, Kind); 5] = [
    ("log_partition", Kind::Int),
    ("first_offset", Kind::Int),
    ("next_offset", Kind::Int),
    ("oldest_at", Kind::IntOrNull),
    ("newest_at", Kind::Int),
];

/// What a row of `progress` that jumps over a gap does to the one there is.
pub const SKIPS: &str = "ON CONFLICT (log_partition) DO UPDATE SET first_offset = excluded.first_offset, \
     next_offset = excluded.next_offset, oldest_at = excluded.oldest_at WHERE progress.next_offset < excluded.next_offset";

/// Columns of `writer`.
pub const WRITER: [(&str, Kind); 4] = [
    ("log_partition", Kind::Int),
    ("writer", Kind::Bytes),
    ("sequence", Kind::Int),
    ("at", Kind::Int),
];

/// The names of sums, as SQL lists them.
pub fn listed(sums: &[Sum]) -> String {
    let names: Vec<&str> = sums.iter().map(|sum| sum.name()).collect();
    names.join(", ")
}

/// The names of columns, as SQL lists them.
pub fn names(columns: &[(&str, Kind)]) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// `?1, ?2, …`
pub fn places(count: usize) -> String {
    let places: Vec<String> = (1..=count).map(|n| format!("?{n}")).collect();
    places.join(", ")
}
