"""The files of deploy/clickhouse add up exactly, in a real ClickHouse, whatever order records come in and however often.

Records go into the table that the Kafka tables feed (`usage_inbox`); with Kafka before it, the files run in the cluster suite.
"""

import json
import random
from pathlib import Path

import pytest
from warehouse import Warehouse

EXAMPLE = json.loads((Path(__file__).resolve().parents[2] / "proto" / "examples" / "usage-event.v1.json").read_text())
NANO = 1_000_000_000
LINES = ["input", "input_cache_read", "input_cache_write", "output", "output_reasoning"]
SEED = 20_261_123


def usd(nano):
    """Decimal text of nano-dollars, as the control plane writes it."""
    whole, part = divmod(abs(nano), NANO)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return ("-" if nano < 0 else "") + text


def event(rng, writer, partition, sequence):
    """One event, with odd money and sometimes as much of it as fits."""
    tokens = {line: rng.randrange(5_000) for line in LINES}
    lines = {line: rng.randrange(10**9) for line in LINES}
    if rng.random() < 0.01:
        lines["output"] = 2**63 - 1 - 10**12
    hour = rng.randrange(48)
    organization = f"org-{rng.randrange(4)}"
    return {
        **EXAMPLE,
        "id": f"{writer[:8]}-{partition}-{sequence}",
        "writer": writer,
        "partition": partition,
        "sequence": sequence,
        "started_at": f"2026-11-{29 + hour // 24:02d}T{hour % 24:02d}:{rng.randrange(60):02d}:59.999Z",
        "tenant": {
            "organization": organization,
            "team": rng.choice([None, "search"]),
            "project": "p",
            "key": f"{organization}-key-{rng.randrange(3)}",
        },
        "user": rng.choice([None, "ünï — code", "tab\tand \"quote\""]),
        "model": rng.choice(["acme/fast", "acme/long"]),
        "usage_source": rng.choice(["provider", "estimated"]),
        "tokens": tokens,
        "charge": {**{line: usd(nano) for line, nano in lines.items()}, "request": "0", "total": usd(sum(lines.values()))},
        "something_new": {"from": ["a later release"]},
    }


def nano(text):
    """Nano-dollars of decimal text, in whole numbers all the way."""
    whole, _, part = text.partition(".")
    return int(whole) * NANO + int(part.ljust(9, "0"))


def oracle(events):
    """What the views have to say of these events, each once."""
    cells = {}
    for one in {(e["writer"], e["partition"], e["sequence"]): e for e in events}.values():
        cell = (one["tenant"]["organization"], one["tenant"]["key"], one["model"], one["started_at"][:13] + ":00:00Z")
        sums = cells.setdefault(cell, [0] * 7)
        counted = [1, *(one["tokens"][line] for line in LINES), nano(one["charge"]["total"])]
        cells[cell] = [a + b for a, b in zip(sums, counted)]
    return {cell: tuple(sums) for cell, sums in cells.items()}


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
    events = [event(rng, f"{w:032x}", w % 3, s) for w in range(5) for s in range(1, 401)]
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
        "no charge in decimal text": json.dumps({**good, "charge": {**good["charge"], "total": "0.0000000001"}}),
    }
    values = [*wrong.values(), json.dumps(good), '{"a":1}{"b":2}', "7", ""]
    insert(warehouse, [(value, 0, offset) for offset, value in enumerate(values)])
    assert warehouse.cells("usage_hourly") == oracle([good])
    reasons = warehouse.rows("SELECT reason, record FROM tollway.usage_rejected FINAL ORDER BY record_offset")
    assert reasons == [*wrong.items(), ("not JSON", '{"a":1}{"b":2}'), ("no identity", "7"), ("not JSON", "")]
