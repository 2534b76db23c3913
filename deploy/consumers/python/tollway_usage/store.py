"""The sums, and how far they go, in one database: both change in the same transaction or not at all.

A stretch is taken only while the stored offset is where the stretch begins. Whoever comes second, because a partition has moved to
another consumer meanwhile or an operator has set the offset back, finds another offset there and changes nothing (`Moved`).
"""

import sqlite3
from pathlib import Path

from .fold import fold

SCHEMA = Path(__file__).resolve().parents[2] / "schema.sql"
CELL = "hour organization team project api_key user_label model endpoint provider region price_version byok".split()
SUMS = "requests estimated input input_cache_read input_cache_write output output_reasoning cost_nano billed_nano".split()
# How long a writer of SQLite waits for another one, seconds.
SQLITE_WAIT = 30
# Any number of our own: consumers that start together make the tables one after another.
SCHEMA_LOCK = 8_270_341


class Moved(Exception):
    """The stored offset is not where this stretch begins."""


class Store:
    """A connection. `url`: postgresql://…, or sqlite:///path/of/the/file."""

    def __init__(self, url):
        if url.startswith("sqlite:///"):
            self.mark, self.begin = "?", "BEGIN IMMEDIATE"
            # Autocommit, so that transactions are exactly those below.
            self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=SQLITE_WAIT, isolation_level=None)
            self.fault = sqlite3.Error
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.executescript(SCHEMA.read_text())
        else:
            import psycopg

            self.mark, self.begin = "%s", "BEGIN"
            self.connection = psycopg.connect(url, autocommit=True)
            self.fault = psycopg.Error
            with self.connection.transaction():
                self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                self.connection.execute(SCHEMA.read_text())
        keys, names = ", ".join(CELL), ", ".join(CELL + SUMS)
        add = ", ".join(f"{name} = usage_hourly.{name} + excluded.{name}" for name in SUMS)
        self.add_cell = self.sql(
            f"INSERT INTO usage_hourly ({names}) VALUES ({', '.join('?' * len(CELL + SUMS))}) ON CONFLICT ({keys}) DO UPDATE SET {add}"
        )

    def sql(self, statement):
        return statement.replace("?", self.mark)

    def query(self, statement, values=()):
        return self.connection.execute(self.sql(statement), values)

    def many(self, statement, rows):
        cursor = self.connection.cursor()
        cursor.executemany(self.sql(statement), rows)

    def close(self):
        self.connection.close()

    def offset(self, topic, partition):
        """The next offset to read."""
        self.query("INSERT INTO usage_offsets VALUES (?, ?, 0) ON CONFLICT DO NOTHING", (topic, partition))
        rows = self.query("SELECT next_offset FROM usage_offsets WHERE topic = ? AND partition = ?", (topic, partition))
        return rows.fetchone()[0]

    def record(self, topic, stretches):
        """Counts stretches, all in one transaction. Returns what each partition's came to."""
        self.query(self.begin)
        try:
            folds = {stretch.partition: self.record_one(topic, stretch) for stretch in stretches}
            self.query("COMMIT")
            return folds
        except BaseException:
            # A connection that is gone has rolled back by itself; whether a COMMIT went through, the stored offset tells.
            try:
                self.query("ROLLBACK")
            except self.fault:
                pass
            raise

    def record_one(self, topic, stretch):
        partition = stretch.partition
        # First: the row's lock keeps others out of this partition until the commit.
        moved = self.query(
            "UPDATE usage_offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND next_offset = ?",
            (stretch.end, topic, partition, stretch.begin),
        )
        if moved.rowcount != 1:
            raise Moved(f"partition {partition} is not at {stretch.begin} any more")
        marks = {}
        for writer in {event.writer for event in stretch.events}:
            mark = self.query(
                "SELECT sequence FROM usage_writers WHERE topic = ? AND partition = ? AND writer = ?", (topic, partition, writer)
            )
            marks.update((writer, sequence) for (sequence,) in mark.fetchall())
        found = fold(stretch.events, marks)
        self.many(
            "INSERT INTO usage_writers VALUES (?, ?, ?, ?) "
            "ON CONFLICT (topic, partition, writer) DO UPDATE SET sequence = excluded.sequence",
            [(topic, partition, writer, sequence) for writer, sequence in found.marks.items()],
        )
        # In one order everywhere, so that two consumers that meet in a cell wait for each other instead of dying together.
        self.many(self.add_cell, [(*cell, *sums) for cell, sums in sorted(found.cells.items())])
        again = "ON CONFLICT DO NOTHING"
        self.many(f"INSERT INTO usage_gaps VALUES (?, ?, ?, ?, ?, ?) {again}", [(topic, partition, *gap) for gap in found.gaps])
        self.many(
            f"INSERT INTO usage_rejected VALUES (?, ?, ?, ?) {again}",
            [(topic, partition, offset, reason) for offset, reason in stretch.rejected],
        )
        return found

    def skip(self, topic, partition, begin, end):
        """Goes on behind records that Kafka has let go, and writes the alarm down."""
        self.query(self.begin)
        self.query(
            "UPDATE usage_offsets SET next_offset = ? WHERE topic = ? AND partition = ? AND next_offset = ?",
            (end, topic, partition, begin),
        )
        self.query("INSERT INTO usage_gaps VALUES (?, ?, ?, '', 0, 0) ON CONFLICT DO NOTHING", (topic, partition, begin))
        self.query("COMMIT")
