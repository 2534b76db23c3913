"""A real ClickHouse (chdb, in this process) on the files of deploy/clickhouse.

The Kafka engine is in there too, so the files run as they are shipped; only the brokers' address is put in.
"""

import re
from pathlib import Path

from chdb import session
from chdb._exceptions import ChdbError

FILES = Path(__file__).resolve().parents[2] / "deploy" / "clickhouse"


def statements(name):
    """The statements of one file, in order."""
    text = re.sub(r"--[^\n]*", "", (FILES / name).read_text())
    return [one.strip() for one in text.split(";\n") if one.strip()]


class Warehouse:
    """One ClickHouse with its data in a folder."""

    def __init__(self, folder):
        self.session = session.Session(str(folder))

    def run(self, name, replace=()):
        """Runs a file, with some texts replaced."""
        for statement in statements(name):
            for old, new in replace:
                statement = statement.replace(old, new)
            try:
                self.session.query(statement)
            except ChdbError as error:
                # chdb 4.4 makes a Kafka table and then answers this. Every statement is IF NOT EXISTS: the second time it has
                # to find what the first one made.
                if "Shutdown was called" not in str(error):
                    raise
                self.session.query(statement)

    def rows(self, query):
        """The rows of a query; every value is text, so nothing passes through a float."""
        answer = str(self.session.query(query, "TSVRaw"))
        return [tuple(line.split("\t")) for line in answer.splitlines()]

    def cells(self, view):
        """Requests, tokens and money by cell: (organization, key, model, hour)."""
        rows = self.rows(
            "SELECT organization, key, model, formatDateTime(hour, '%Y-%m-%dT%H:00:00Z', 'UTC'), sum(requests), "
            "sum(input), sum(input_cache_read), sum(input_cache_write), sum(output), sum(output_reasoning), "
            "toString(sum(cost) * 1000000000), toString(sum(billed) * 1000000000) "
            f"FROM tollway.{view} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        )
        return {row[:4]: (*map(int, row[4:10]), *(int(money.split(".")[0]) for money in row[10:])) for row in rows}

    def close(self):
        self.session.close()
