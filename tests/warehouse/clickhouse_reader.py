"""A ClickHouse that reads the usage topic, as a process that can be killed.

clickhouse_reader.py FOLDER QUEUE-FILE BROKERS GROUP OUT: writes what it has to OUT, again whenever that file is taken away.

What is read is on disk in FOLDER. The queue alone is made anew in each life, in a database in memory: chdb 4.4 cannot start on a
folder with a Kafka table in it. How far it has read is Kafka's to know either way.
"""

import json
import re
import sys
import time
from pathlib import Path

from warehouse import Warehouse, statements

# Pause between two looks at whether the file is there, seconds.
PAUSE = 0.05


def main(folder, queue, brokers, group, out):
    out = Path(out)
    warehouse = Warehouse(folder)
    for file in ["00-connection.sql", "10-events.sql", "30-rollups.sql"]:
        warehouse.run(file, [("localhost:9092", brokers)])
    # Whatever comes twice stays in the table twice: it is the queries that have to see it once.
    warehouse.session.query("SYSTEM STOP MERGES tollway.usage_events")
    shipped = re.search(r"kafka_group_name = '[^']+'", "\n".join(statements(queue)))[0]
    warehouse.session.query("CREATE DATABASE IF NOT EXISTS queue ENGINE = Memory")
    changes = [
        (shipped, f"kafka_group_name = '{group}'"),
        ("kafka_flush_interval_ms = 5000", "kafka_flush_interval_ms = 200"),
        ("tollway.usage_queue", "queue.usage_queue"),
        ("tollway.usage_ce_queue", "queue.usage_ce_queue"),
    ]
    warehouse.run(queue, changes)
    number = lambda query: int(warehouse.rows(query)[0][0])
    while True:
        if not out.exists():
            state = {
                "rows": number("SELECT count() FROM tollway.usage_events"),
                "events": number("SELECT count() FROM tollway.usage_events FINAL"),
                "rejected": number("SELECT count() FROM tollway.usage_rejected FINAL"),
                "missing": number("SELECT sum(missing) + sum(before) FROM tollway.usage_gaps"),
                "sources": [row[0] for row in warehouse.rows("SELECT DISTINCT ce_source FROM tollway.usage_events")],
                "cells": list(warehouse.cells("usage_hourly").items()),
            }
            draft = out.with_suffix(".draft")
            draft.write_text(json.dumps(state))
            draft.rename(out)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
