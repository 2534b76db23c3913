"""Folds records of one partition into sums by the hour. Pure: no Kafka, no database, no clock.

Sequences are dense per writer and partition. So one number per writer, the highest sequence counted, tells a repeat from news, and a
jump is lost data. Money is whole nano-dollars (`int`); there is no float in this file.
"""

import json
import re
from dataclasses import dataclass, field

WRITER = re.compile(r"[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z")
USD = re.compile(r"(-?)(\d{1,19})(?:\.(\d{1,9}))?")
KINDS = ("input", "input_cache_read", "input_cache_write", "output", "output_reasoning")


class Malformed(Exception):
    """A record that is no usage event of version 1."""


@dataclass(frozen=True)
class Event:
    """What is counted of an event: fields that this consumer does not know are ignored, so later releases may add some."""

    offset: int
    writer: str
    sequence: int
    cell: tuple[str | int, ...]
    sums: tuple[int, ...]


@dataclass
class Fold:
    """What a stretch of one partition comes to."""

    cells: dict[tuple[str | int, ...], list[int]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    gaps: list[tuple[int, str, int, int]] = field(default_factory=list)
    events: int = 0
    repeats: int = 0


def nano(text):
    """Nano-dollars of decimal text, as whole numbers all the way."""
    match = USD.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Malformed(f"{text!r} is not an amount in decimal text")
    sign, whole, part = match.groups()
    amount = int(whole) * 1_000_000_000 + int((part or "").ljust(9, "0"))
    return -amount if sign else amount


def count(value, name):
    """A whole number that is not below 0."""
    if type(value) is not int or value < 0:
        raise Malformed(f"`{name}` is not a count")
    return value


def label(value, name):
    """A text, or null, which is empty. Without U+0000, which PostgreSQL takes in no text."""
    if value is not None and not isinstance(value, str):
        raise Malformed(f"`{name}` is no text")
    return (value or "").encode().decode().replace("\0", "\ufffd")  # half a surrogate pair fails here, and is no text either


def text(value, name):
    """A text that says something."""
    if not value:
        raise Malformed(f"`{name}` is missing")
    return label(value, name)


def parse(partition, offset, value):
    """The event in a record's value; `Malformed` says why there is none."""
    try:
        event = json.loads(value or b"")
        writer, sequence = text(event["writer"], "writer"), count(event["sequence"], "sequence")
        if not WRITER.fullmatch(writer) or sequence == 0:
            raise Malformed("no identity")
        if event["partition"] != partition:
            raise Malformed(f"an event of partition {event['partition']!r} lies in {partition}")
        started, tenant, tokens = text(event["started_at"], "started_at"), event["tenant"], event["tokens"]
        if not TIME.fullmatch(started):
            raise Malformed("`started_at` is not a time in UTC")
        cell = (
            started[:13] + ":00:00Z",
            text(tenant["organization"], "tenant.organization"),
            label(tenant.get("team"), "tenant.team"),
            text(tenant["project"], "tenant.project"),
            text(tenant["key"], "tenant.key"),
            label(event.get("user"), "user"),
            text(event["model"], "model"),
            text(event["endpoint"], "endpoint"),
            text(event["provider"], "provider"),
            text(event["region"], "region"),
            text(event["price_version"], "price_version"),
            int(event["byok"] is True),
        )
        # Writes that the cache keeps for an hour are counted with the others.
        tokens = tokens | {"input_cache_write": tokens["input_cache_write"] + tokens.get("input_cache_write_1h", 0)}
        estimated = int(event["usage_source"] == "estimated")
        sums = (1, estimated, *(count(tokens[kind], kind) for kind in KINDS), nano(event["charge"]["total"]), nano(event["billed"]))
        return Event(offset, writer, sequence, cell, sums)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise Malformed(f"{type(why).__name__}: {why}") from why


def fold(events, marks):
    """Sums of events in the order of their offsets. `marks`: the highest sequence counted so far, by writer."""
    found = Fold()
    for event in events:
        last = found.marks.get(event.writer, marks.get(event.writer, 0))
        if event.sequence <= last:
            found.repeats += 1
            continue
        if event.sequence > last + 1:
            found.gaps.append((event.offset, event.writer, last, event.sequence))
        found.marks[event.writer] = event.sequence
        found.events += 1
        sums = found.cells.setdefault(event.cell, [0] * len(event.sums))
        for place, value in enumerate(event.sums):
            sums[place] += value
    return found
