"""The consumers of deploy/consumers and the Kafka tables of deploy/clickhouse, against a real Kafka: whoever dies, whatever comes
again, every event is counted once.
"""

import json
import os
import random
import sqlite3
import sys
from pathlib import Path

import psycopg
import pytest
from events import EXAMPLE, event, oracle
from parts import PARTITIONS, PATIENCE, ROOT, TOPIC, Kafka, Postgres, Program, wait_until

SEED = 20_261_123
EVENTS = int(os.environ.get("TOLLWAY_WAREHOUSE_EVENTS", "24000"))
WRITERS = 5
GROUPS = ["python-sqlite", "python-postgres", "rust-sqlite", "rust-postgres"]
HEADERS = {
    "content-type": "application/json",
    "ce_specversion": "1.0",
    "ce_source": "/cluster/region/node",
    "ce_type": "io.tollway.usage.recorded.v1",
    "ce_dataschema": "urn:tollway:schema:usage-event:v1",
}


@pytest.fixture(scope="module")
def kafka():
    kafka = Kafka()
    yield kafka
    kafka.close()


@pytest.fixture(scope="module")
def postgres():
    postgres = Postgres()
    yield postgres
    postgres.close()


class Counter:
    """Consumers of one kind that share a group and a database."""

    def __init__(self, name, kafka, postgres, folder):
        self.name, self.kafka, self.folder = name, kafka, folder
        self.url = postgres.database(name.replace("-", "_")) if "postgres" in name else f"sqlite:///{folder}/{name}.db"
        self.members = [self.start() for _ in range(2)]

    def start(self):
        rust = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "tollway-usage-consumer"
        command = [rust] if self.name.startswith("rust") else [sys.executable, "-m", "tollway_usage"]
        # Killed members are forgotten after this: a rebalance within the test's patience.
        command += ["--kafka", "session.timeout.ms=6000", "--group", self.name]
        env = {"PYTHONPATH": str(ROOT / "deploy/consumers/python"), "PYTHONDONTWRITEBYTECODE": "1"}
        log = self.folder / f"{self.name}.log"
        return Program([*command, "--brokers", self.kafka.bootstrap, "--store", self.url], log, env)

    def query(self, statement):
        try:
            if self.url.startswith("sqlite"):
                connection = sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=PATIENCE)
            else:
                connection = psycopg.connect(self.url)
            with connection:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
            connection.close()
            return rows
        except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            return []  # its tables are still to be made

    def counted(self):
        return dict(self.query("SELECT partition, next_offset FROM usage_offsets"))

    def cells(self):
        rows = self.query(
            "SELECT organization, api_key, model, hour, requests, input, input_cache_read, input_cache_write, output, output_reasoning, "
            "cost_nano, billed_nano FROM usage_hourly"
        )
        cells = {}
        for row in rows:
            sums = cells.get(row[:4], (0,) * 8)
            cells[row[:4]] = tuple(a + b for a, b in zip(sums, row[4:]))
        return cells

    def reaches(self, ends):
        wait_until(f"{self.name} has counted to {ends}; it is at {self.counted()}", lambda: self.counted() == ends)


def flood(rng, sequences):
    """Events of all writers in all partitions, in the order of their sequences, some stretches sent again as after a restart."""
    events, records = [], []
    for sequence in sequences:
        for writer in range(WRITERS):
            for partition in range(PARTITIONS):
                events.append(event(rng, f"{writer:032x}", partition, sequence))
    for begin in range(0, len(events), 600):
        part = events[begin : begin + 600]
        again = rng.random()
        records += part if again < 0.6 else events[max(0, begin - 300) : begin] + part if again < 0.8 else part + part
    return events, [(one["partition"], json.dumps(one), HEADERS) for one in records]


def test_every_consumer_counts_every_event_once_whoever_dies_and_whatever_is_rewound(kafka, postgres, tmp_path):
    print("seed", SEED)
    rng = random.Random(SEED)
    each = EVENTS // (WRITERS * PARTITIONS)
    first, records = flood(rng, range(1, each // 2 + 1))
    kafka.produce(records)
    counters = [Counter(name, kafka, postgres, tmp_path) for name in GROUPS]
    ends = kafka.ends()
    for counter in counters:
        wait_until(f"{counter.name} counts", lambda: sum(counter.counted().values()) > 0)
        counter.members[0].kill()
        at = sum(counter.counted().values())
        print(f"{counter.name} killed at {at} of {sum(ends.values())}")
        counter.members[0] = counter.start()

    second, records = flood(rng, range(each // 2 + 1, each + 1))
    third = len(records) // 3
    kafka.produce(records[:third])
    for counter in counters:
        # An operator sets the stored offsets back, under a running consumer and to the very beginning.
        counter.query("UPDATE usage_offsets SET next_offset = 0 WHERE partition <> 1")
    kafka.kill()
    for counter in counters:
        counter.members[1].kill()
    kafka.restart()
    kafka.produce(records[third:])
    for counter in counters:
        counter.members[1] = counter.start()

    wanted, ends = oracle(first + second), kafka.ends()
    print(f"{len(first + second)} events in {sum(ends.values())} records, {len(wanted)} cells")
    for counter in counters:
        counter.reaches(ends)
        found = counter.cells()
        different = [cell for cell in wanted.keys() | found.keys() if wanted.get(cell) != found.get(cell)]
        assert not different, f"{counter.name}: {len(different)} cells differ, e.g. {different[0]}"
        assert counter.query("SELECT * FROM usage_gaps") == []
        assert [member.stop() for member in counter.members] == [0, 0], counter.members[0].log.read_text()[-2_000:]
        assert sum(counter.cells().values(), ()) == sum(found.values(), ()), "nothing is counted on the way out"


def test_an_event_that_never_came_is_an_alarm_and_what_is_no_event_is_kept_aside(kafka, postgres, tmp_path):
    begin = kafka.ends()[0]
    writer = "f" * 32
    values = [json.dumps({**EXAMPLE, "partition": 0, "writer": writer, "sequence": n}) for n in (1, 2, 6, 7)]
    kafka.produce([(0, value, HEADERS) for value in [*values[:2], "no event", *values[2:]]])
    for name in ["python-sqlite", "rust-postgres"]:
        counter = Counter(f"{name}-gaps", kafka, postgres, tmp_path)
        counter.reaches(kafka.ends())
        assert [member.stop() for member in counter.members] == [0, 0]
        gaps = counter.query("SELECT record_offset, writer, after_sequence, sequence FROM usage_gaps")
        assert gaps == [(begin + 3, writer, 2, 6)]
        assert [offset for (offset,) in counter.query("SELECT record_offset FROM usage_rejected")] == [begin + 2]
        assert "ALARM" in counter.members[0].log.read_text()
        counted = counter.query("SELECT requests, cost_nano FROM usage_hourly WHERE organization = 'acme'")
        assert counted == [(4, 4 * 6_380_000)]


@pytest.mark.parametrize("queue", ["20-queue.sql", "21-queue-cloudevents.sql"])
def test_the_kafka_tables_of_clickhouse_count_once_although_they_read_again(kafka, tmp_path, queue):
    """The shipped files with the Kafka engine and all, killed in the middle and then sent back to the topic's beginning."""
    rng = random.Random(queue)
    writers = [f"{rng.randrange(16**32):032x}" for _ in range(3)]
    events = [event(rng, writer, partition, s) for s in range(1, 301) for writer in writers for partition in range(PARTITIONS)]
    for one in events:
        one["tenant"]["organization"] = f"{queue[:2]}-{one['tenant']['organization']}"
    kafka.produce([(one["partition"], json.dumps(one), HEADERS) for one in events])
    out, log = tmp_path / "state.json", tmp_path / "clickhouse.log"

    def start(group):
        program = [sys.executable, Path(__file__).with_name("clickhouse_reader.py")]
        return Program([*program, tmp_path / "clickhouse", queue, kafka.bootstrap, group, out], log)

    def state():
        """What ClickHouse has after the call."""
        for _ in range(2):  # the first one may have been begun before
            out.unlink(missing_ok=True)
            wait_until("ClickHouse answers", out.exists)
        return json.loads(out.read_text())

    def committed(group, enough):
        wait_until(f"{group} has read enough", lambda: enough(kafka.committed(group)) or reader.process.poll() is not None)
        assert reader.process.poll() is None, log.read_text()[-2_000:]

    reader = start(f"first-{queue}")
    committed(f"first-{queue}", lambda places: sum(places.values()) > 0)
    reader.kill()
    # Another group begins at the beginning, into the same tables.
    reader = start(f"second-{queue}")
    committed(f"second-{queue}", lambda places: places == kafka.ends())
    assert reader.process.poll() is None, log.read_text()[-2_000:]
    found = state()
    reader.kill()
    ours = {tuple(cell): tuple(sums) for cell, sums in found["cells"] if cell[0].startswith(queue[:2])}
    assert ours == oracle(events)
    assert found["rows"] > found["events"], "some were read again"
    if "cloudevents" in queue:
        assert found["sources"] == [HEADERS["ce_source"]]
