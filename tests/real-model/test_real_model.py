"""A real model through a whole Tollway, with the official client.

Gemma 3 270M is a base model: it goes on with a text and follows no instruction. So these cases look at shape,
tokens and accounts, never at wording. The server behind it ignores `stream_options.include_usage` and reports no
usage in a stream at all, which makes it a real case of counts that have to be estimated, and said to be.

Each request is looked up by its id in the usage log; at the end of a case the ledger's sums have to be those of the
whole log.
"""

import json
import os
import pathlib
import time
from decimal import Decimal

import pytest

PROMPT = [{"role": "user", "content": "The capital of France is"}]
MAX_TOKENS = 16

# What the model goes on with for long, and a length that it would need many seconds for.
LONG_PROMPT = [{"role": "user", "content": "Say hello in one short sentence."}]
LONG_MAX_TOKENS = 400

# Events are shipped and folded a little behind the traffic.
BEHIND_S_MAX = 30

KINDS = ("input", "input_cache_read", "input_cache_write", "output", "output_reasoning")


def test_an_answer_carries_the_tokens_that_the_model_counted(client, quickstart, price):
    raw = client.chat.completions.with_raw_response.create(
        model=quickstart.model, messages=PROMPT, max_tokens=MAX_TOKENS, temperature=0
    )
    answer = raw.parse()

    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= MAX_TOKENS
    assert answer.usage.prompt_tokens > 5
    event = event_of(quickstart, raw)
    assert (event["end"], event["stream"], event["usage_source"]) == ("completed", False, "provider")
    assert event["tokens"]["input"] == answer.usage.prompt_tokens
    assert event["tokens"]["output"] == answer.usage.completion_tokens
    assert_charged(event, price)
    assert_ledger_agrees(quickstart)


def test_a_stream_without_usage_is_counted_by_estimate_and_says_so(client, quickstart, price):
    stream = client.chat.completions.create(
        model=quickstart.model, messages=PROMPT, max_tokens=MAX_TOKENS, temperature=0, stream=True
    )
    chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip()
    assert len(chunks) > 2, "it came in one piece"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    event = event_of(quickstart, stream.response)
    assert (event["end"], event["stream"], event["usage_source"]) == ("completed", True, "estimated")
    assert event["estimator"]
    # An estimate, but not a wild one: between a quarter and four times the pieces that were streamed.
    pieces = sum(1 for chunk in chunks if chunk.choices[0].delta.content)
    assert pieces / 4 <= event["tokens"]["output"] <= pieces * 4
    assert event["tokens"]["input"] > 0
    assert_charged(event, price)
    assert_ledger_agrees(quickstart)


def test_a_stream_and_an_answer_say_the_same(client, quickstart):
    ask = {"model": quickstart.model, "messages": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "seed": 7}
    answer = client.chat.completions.create(**ask)
    chunks = client.chat.completions.create(**ask, stream=True)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content


def test_who_hangs_up_in_mid_stream_leaves_one_event_for_what_was_streamed(client, quickstart, price):
    stream = client.chat.completions.create(
        model=quickstart.model, messages=LONG_PROMPT, max_tokens=LONG_MAX_TOKENS, temperature=0, stream=True
    )
    with stream:
        pieces = 0
        while pieces < 4:
            pieces += bool(next(stream).choices[0].delta.content)

    event = event_of(quickstart, stream.response)
    assert (event["end"], event["usage_source"], event["finish_reason"]) == ("cancelled", "estimated", None)
    assert 0 < event["tokens"]["output"] < LONG_MAX_TOKENS / 2, "it was billed as if it had been streamed to the end"
    assert_charged(event, price)
    # The model is free for the next one, and by then a second event of the first would be in the log.
    after = client.chat.completions.with_raw_response.create(
        model=quickstart.model, messages=PROMPT, max_tokens=MAX_TOKENS, temperature=0
    )
    event_of(quickstart, after)
    assert event_of(quickstart, stream.response) == event
    assert_ledger_agrees(quickstart)


def test_the_models_list_names_the_model_of_the_upstream(client, quickstart):
    assert "gemma3-270m" in quickstart.model
    assert quickstart.model in [model.id for model in client.models.list()]


@pytest.fixture(scope="session")
def price() -> dict[str, Decimal]:
    """US dollars per million tokens, as the suite told them to `tollway up`."""
    given = os.environ.get("TOLLWAY_UPSTREAM_PRICE")
    if not given:
        pytest.fail("TOLLWAY_UPSTREAM_PRICE is not set; run this by `tests/run real-model`")
    return dict(zip(("input", "output"), map(Decimal, given.split(",")), strict=True))


def events(quickstart) -> list[dict]:
    """Every event in the embedded usage log; a line without its end is still being written."""
    found = []
    for file in sorted(pathlib.Path(quickstart.data_dir, "usage-log").glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        found += [json.loads(line)["event"] for line in lines if line.endswith("\n")]
    return found


def event_of(quickstart, response) -> dict:
    """The one event of the request that `response` answers."""
    request = response.headers["x-tollway-request-id"]

    def mine():
        return [event for event in events(quickstart) if event["request_id"] == request]

    found = until(mine, lambda: f"an event of {request} in the usage log")
    assert len(found) == 1, f"{request} has {len(found)} events"
    return found[0]


def assert_charged(event: dict, price: dict[str, Decimal]):
    """The charge is the counts times the price that was set, to the nano-dollar, and not nothing."""
    tokens = event["tokens"]
    assert all(tokens[kind] == 0 for kind in KINDS if kind not in price)
    total = sum(tokens[kind] * price[kind] for kind in price) / 1_000_000
    assert total > 0
    assert Decimal(event["charge"]["total"]) == total


def assert_ledger_agrees(quickstart):
    """The sums of `GET /admin/v1/usage` become those of the usage log."""
    seen = []

    def agree():
        seen[:] = [sums_of_log(quickstart), sums_of_ledger(quickstart)]
        return seen[0] == seen[1]

    until(agree, lambda: f"the ledger's sums are the log's; last: log {seen[0]}, ledger {seen[1]}")


def sums_of_log(quickstart) -> dict:
    counted = [event for event in events(quickstart) if event["usage_source"] != "none"]
    return {
        "requests": len(counted),
        "estimated": sum(event["usage_source"] == "estimated" for event in counted),
        "tokens": {kind: sum(event["tokens"][kind] for event in counted) for kind in KINDS},
        "cost": sum(Decimal(event["charge"]["total"]) for event in counted),
    }


def sums_of_ledger(quickstart) -> dict | None:
    rows = quickstart.admin_get("/admin/v1/usage")["data"]
    assert len(rows) <= 1, "without group_by there is one row"
    return {**rows[0], "cost": Decimal(rows[0]["cost"])} if rows else None


def until(look, what):
    """What `look` finds, as soon as it finds anything; `what` says what was missed."""
    deadline = time.monotonic() + BEHIND_S_MAX
    while not (found := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {BEHIND_S_MAX} s: {what()}")
        time.sleep(0.1)
    return found
