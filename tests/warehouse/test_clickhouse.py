"""The files of deploy/clickhouse add up exactly, in a real ClickHouse, whatever order records come in and however often.

Records go into the table that the Kafka tables feed (`usage_inbox`); with Kafka before it, the files run in the cluster suite.
"""

import json
import random

import pytest
from events import event, oracle
from warehouse import Warehouse

SEED = 20_261_123


@pytest.fixture
def warehouse(tmp_path):
    """A ClickHouse with the tables and views, and no queue."""
    warehouse = Warehouse(tmp_path / "clickhouse")
    for file in ["00-connection.sql", "10-events.sql", "30-rollups.sql"]:
        warehouse.run(file)
    yield warehouse
    warehouse.close()


def insert(warehouse, records):
    """Inserts records: (value, partition, offset)."""
    rows = [json.dumps({"event": value, "lies_in": partition, "record_offset": offset}) for value, partition, offset in records]
    warehouse.session.query("INSERT INTO tollway.usage_inbox (event, lies_in, record_offset) FORMAT JSONEachRow " + "\n".join(rows))


def refresh(warehouse):
    """A round of the refreshable view, now: the second one began after the insert, whatever the clock had begun before it."""
    for _ in range(2):
        warehouse.session.query("SYSTEM REFRESH VIEW tollway.usage_hourly_refresh")
        warehouse.session.query("SYSTEM WAIT VIEW tollway.usage_hourly_refresh")


def test_sums_are_exact_whatever_comes_twice_late_or_in_another_order(warehouse):
    print("seed", SEED)
    rng = random.Random(SEED)
    most = 2**63 - 10**12  # what fits into one event; sums go far beyond it
    events = [event(rng, f"{w:032x}", w % 3, s, most) for w in range(5) for s in range(1, 401)]
    records = [(json.dumps(one), one["partition"], offset) for offset, one in enumerate(events)]
    arrivals = records + rng.choices(records, k=1_500)
    rng.shuffle(arrivals)
    arrived = set()
    for begin in range(0, len(arrivals), 250):
        part = arrivals[begin : begin + 250]
        insert(warehouse, part)
        arrived.update(offset for _, _, offset in part)
        if begin % 1_000 == 0:
            refresh(warehouse)
            wanted = oracle(events[offset] for offset in arrived)
            assert warehouse.cells("usage_hourly") == wanted
            assert warehouse.cells("usage_hourly_stored") == wanted
    insert(warehouse, records)  # the topic from its beginning, once more
    refresh(warehouse)
    wanted = oracle(events)
    assert warehouse.cells("usage_hourly") == wanted
    assert warehouse.cells("usage_hourly_stored") == wanted
    assert warehouse.rows("SELECT count() FROM tollway.usage_events FINAL") == [("2000",)]
    assert warehouse.rows("SELECT count() FROM tollway.usage_gaps") == [("0",)]
    warehouse.session.query("OPTIMIZE TABLE tollway.usage_events FINAL")
    assert warehouse.cells("usage_hourly") == wanted


def test_what_never_came_is_a_gap(warehouse):
    rng = random.Random(SEED)
    came = [1, 2, 5, 6, 9, 9]
    insert(warehouse, [(json.dumps(event(rng, "a" * 32, 0, s)), 0, s) for s in came])
    insert(warehouse, [(json.dumps(event(rng, "b" * 32, 0, s)), 0, s) for s in [3, 4]])
    gaps = warehouse.rows("SELECT writer, first, last, missing, before FROM tollway.usage_gaps ORDER BY writer")
    assert gaps == [("a" * 32, "1", "9", "4", "0"), ("b" * 32, "3", "4", "0", "2")]


def test_of_two_records_that_claim_one_identity_the_first_counts_as_in_the_ledger(warehouse):
    rng = random.Random(SEED)
    first, second = (event(rng, "a" * 32, 0, 1) for _ in range(2))
    insert(warehouse, [(json.dumps(second), 0, 8)])
    insert(warehouse, [(json.dumps(first), 0, 7)])
    insert(warehouse, [(json.dumps(second), 0, 8)])
    assert warehouse.cells("usage_hourly") == oracle([first])


def test_what_is_no_event_is_kept_aside_and_stops_nothing(warehouse):
    rng = random.Random(SEED)
    good = event(rng, "a" * 32, 0, 1)
    wrong = {
        "not JSON": "{",
        "no identity": json.dumps({**good, "sequence": 0}),
        "of another partition": json.dumps({**good, "partition": 1}),
        "no tenant or model": json.dumps({**good, "tenant": {}}),
        "no time": json.dumps({**good, "started_at": "yesterday"}),
        "no money in decimal text": json.dumps({**good, "billed": "0.0000000001"}),
    }
    values = [*wrong.values(), json.dumps(good), '{"a":1}{"b":2}', "7", ""]
    insert(warehouse, [(value, 0, offset) for offset, value in enumerate(values)])
    assert warehouse.cells("usage_hourly") == oracle([good])
    reasons = warehouse.rows("SELECT reason, record FROM tollway.usage_rejected FINAL ORDER BY record_offset")
    assert reasons == [*wrong.items(), ("not JSON", '{"a":1}{"b":2}'), ("no identity", "7"), ("not JSON", "")]
