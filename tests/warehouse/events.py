"""Usage events of all kinds, and what they add up to, in whole numbers all the way."""

import json
from pathlib import Path

EXAMPLE = json.loads((Path(__file__).resolve().parents[2] / "proto" / "examples" / "usage-event.v1.json").read_text())
NANO = 1_000_000_000
LINES = ["input", "input_cache_read", "input_cache_write", "output", "output_reasoning"]


def usd(nano):
    """Decimal text of nano-dollars, as the control plane writes it."""
    whole, part = divmod(abs(nano), NANO)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return ("-" if nano < 0 else "") + text


def event(rng, writer, partition, sequence, most=10**16):
    """One event, with odd money and now and then about as much of it as `most`, nano-dollars."""
    tokens = {line: rng.randrange(5_000) for line in LINES}
    lines = {line: rng.randrange(10**9) for line in LINES}
    if rng.random() < 0.01:
        lines["output"] = most - rng.randrange(10**6)
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
        "byok": rng.random() < 0.1,
        "adjustment": {"bps": 7, "amount": usd(rng.randrange(10**6))},
        "billed": usd(rng.randrange(10**9)),
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
        sums = cells.setdefault(cell, [0] * 8)
        counted = [1, *(one["tokens"][line] for line in LINES), nano(one["charge"]["total"]), nano(one["billed"])]
        cells[cell] = [a + b for a, b in zip(sums, counted)]
    return {cell: tuple(sums) for cell, sums in cells.items()}
