"""A real model through a whole Tollway, with the official client.

Gemma 3 270M is a base model: it goes on with a text and follows no instruction. So these cases look at shape,
tokens and accounts, never at wording. The server behind it ignores `stream_options.include_usage` and reports no
usage in a stream at all, which makes it a real case of counts that have to be estimated, and said to be.
"""

import time

import pytest

PROMPT = [{"role": "user", "content": "The capital of France is"}]
MAX_TOKENS = 16

# The ledger folds the usage log a little behind the traffic.
LEDGER_S_MAX = 30


def test_an_answer_carries_the_tokens_that_the_model_counted(client, quickstart):
    before = usage(quickstart)
    answer = client.chat.completions.create(
        model=quickstart.model, messages=PROMPT, max_tokens=MAX_TOKENS, temperature=0
    )

    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= MAX_TOKENS
    assert answer.usage.prompt_tokens > 5
    after = usage_after(quickstart, before["requests"] + 1)
    assert after["estimated"] == before["estimated"], "the provider reported these counts"
    assert after["input"] - before["input"] == answer.usage.prompt_tokens
    assert after["output"] - before["output"] == answer.usage.completion_tokens


def test_a_stream_without_usage_is_counted_by_estimate_and_says_so(client, quickstart):
    before = usage(quickstart)
    chunks = list(
        client.chat.completions.create(
            model=quickstart.model, messages=PROMPT, max_tokens=MAX_TOKENS, temperature=0, stream=True
        )
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip()
    assert len(chunks) > 2, "it came in one piece"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    after = usage_after(quickstart, before["requests"] + 1)
    assert after["estimated"] == before["estimated"] + 1
    # An estimate, but not a wild one: between a quarter and four times the pieces that were streamed.
    estimate = after["output"] - before["output"]
    pieces = sum(1 for chunk in chunks if chunk.choices[0].delta.content)
    assert pieces / 4 <= estimate <= pieces * 4


def test_a_stream_and_an_answer_say_the_same(client, quickstart):
    ask = {"model": quickstart.model, "messages": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0, "seed": 7}
    answer = client.chat.completions.create(**ask)
    chunks = client.chat.completions.create(**ask, stream=True)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content


def test_the_models_list_names_the_model_of_the_upstream(client, quickstart):
    assert "gemma3-270m" in quickstart.model
    assert quickstart.model in [model.id for model in client.models.list()]


def usage(quickstart) -> dict:
    """The ledger's sums over everything: requests, estimated, and tokens in and out."""
    answer = quickstart.admin_get("/admin/v1/usage")
    sums = {"requests": 0, "estimated": 0, "input": 0, "output": 0}
    for row in rows(answer):
        tokens = row.get("tokens", row)
        sums["requests"] += row["requests"]
        sums["estimated"] += row["estimated"]
        sums["input"] += tokens["input"]
        sums["output"] += tokens["output"]
    return sums


def rows(answer) -> list[dict]:
    """The rows of the usage answer: its one list of objects."""
    lists = [answer] if isinstance(answer, list) else [v for v in answer.values() if isinstance(v, list)]
    assert len(lists) == 1, f"not one list of rows in {answer}"
    return lists[0]


def usage_after(quickstart, requests: int) -> dict:
    """The sums as soon as they count `requests` requests."""
    deadline = time.monotonic() + LEDGER_S_MAX
    while True:
        sums = usage(quickstart)
        if sums["requests"] >= requests:
            return sums
        if time.monotonic() > deadline:
            pytest.fail(f"after {LEDGER_S_MAX} s the ledger counts {sums['requests']} requests, not {requests}")
        time.sleep(0.1)
