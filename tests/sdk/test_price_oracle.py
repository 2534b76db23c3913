"""Charges against an independent price calculator, `genai-prices`, on its catalog of real models and prices.

Every set of prices in it that Tollway can sell by is priced for random usages both ways. A difference is fine where one of the two says
why: each of Tollway's lines is rounded to a billionth of a dollar. Anything else fails. What Tollway cannot express is counted by reason.
"""

import json
import os
import random
import re
import subprocess
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import data_snapshot
from genai_prices.types import ModelPrice, Tier, TieredPrices, Usage

ROOT = Path(__file__).parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Tollway's word for a kind of token, and theirs.
KINDS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "input_cache_read": "cache_read_mtok",
    "input_cache_write": "cache_write_mtok",
    "input_cache_write_1h": "cache_write_1h_mtok",
    "output_reasoning": "output_reasoning_mtok",
}
USAGES_PER_PRICE = 6
SEED = 20261123
# Half a billionth of a dollar for each of six lines.
ROUNDING = Decimal("0.000000003")


def without_noise(theirs: ModelPrice) -> ModelPrice:
    """Their prices to nine digits after the point, which Tollway's have: some of theirs were floats once."""
    exact = Decimal("0.000000001")

    def cut(price: object) -> object:
        if isinstance(price, TieredPrices):
            return TieredPrices(cut(price.base), [Tier(tier.start, cut(tier.price)) for tier in price.tiers])
        return None if price is None else price.quantize(exact).normalize()

    names = [*KINDS.values(), "requests_kcount"]
    return ModelPrice(**{name: cut(getattr(theirs, name)) for name in names if getattr(theirs, name) is not None})


def at(price: object, prompt: int) -> Decimal | None:
    """A price of theirs for a prompt of so many tokens."""
    if not isinstance(price, TieredPrices):
        return price
    reached = [tier.price for tier in price.tiers if prompt > tier.start]
    return reached[-1] if reached else price.base


def ours(theirs: ModelPrice) -> dict | str:
    """Their prices in Tollway's words, or why they have none."""
    told = {kind: getattr(theirs, name) for kind, name in KINDS.items()}
    if told["input"] is None or told["output"] is None:
        return "no price of prompt or completion tokens, and an unknown price is never zero"
    starts = sorted({tier.start for price in told.values() if isinstance(price, TieredPrices) for tier in price.tiers})
    if starts and starts[0] < 1:
        return "a tier from the first token on"

    def rates(prompt: int) -> dict:
        found = {kind: at(price, prompt) for kind, price in told.items()}
        return {kind: format(price, "f") for kind, price in found.items() if price is not None}

    prices = rates(0)
    prices["tiers"] = [{"above_prompt_tokens": start, **rates(start + 1)} for start in starts]
    if theirs.requests_kcount is not None:
        prices["request"] = format(theirs.requests_kcount / 1000, "f")
    return prices


def catalog() -> list[tuple[str, ModelPrice]]:
    """Every set of prices, past and future ones too."""
    found = []
    for provider in data_snapshot.get_snapshot().providers:
        for model in provider.models:
            sets = model.prices if isinstance(model.prices, list) else [model]
            found += [(f"{provider.id}/{model.id}#{number}", one.prices) for number, one in enumerate(sets)]
    return found


def usage(dice: random.Random, starts: list[int]) -> dict[str, int]:
    """Disjoint counts; the ends of tiers more often than chance would have it."""
    prompt = dice.choice([1, 7, 999, dice.randrange(1, 20_000), dice.randrange(1, 1_200_000)])
    if starts and dice.random() < 0.5:
        prompt = dice.choice(starts) + dice.choice([0, 1, 2])
    completion = dice.choice([0, 1, dice.randrange(0, 128_000)])

    def part(of: int) -> int:
        return dice.choice([0, 0, of, dice.randrange(0, of + 1)])

    read = part(prompt)
    written = part(prompt - read)
    hour = part(written)
    reasoning = part(completion)
    return {
        "input": prompt - read - written,
        "input_cache_read": read,
        "input_cache_write": written - hour,
        "input_cache_write_1h": hour,
        "output": completion - reasoning,
        "output_reasoning": reasoning,
    }


def their_total(prices: ModelPrice, tokens: dict[str, int]) -> Decimal:
    """Their price of a usage. Their counts are totals that include their parts."""
    written = tokens["input_cache_write"] + tokens["input_cache_write_1h"]
    counts = {
        "input_tokens": tokens["input"] + tokens["input_cache_read"] + written,
        "cache_read_tokens": tokens["input_cache_read"],
        "cache_write_tokens": written,
        "cache_write_1h_tokens": tokens["input_cache_write_1h"],
        "output_tokens": tokens["output"] + tokens["output_reasoning"],
        "output_reasoning_tokens": tokens["output_reasoning"],
    }
    if prices.requests_kcount is not None:
        counts["requests"] = 1
    return prices.calc_price(Usage(**counts))["total_price"]


def charges(lines: list[dict]) -> list[dict]:
    program = TARGET / "debug/examples/charge"
    if not program.exists():
        pytest.fail(f"{program} is missing: cargo build -p tollway-shared --example charge")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_charges_of_real_catalogs_are_those_of_an_independent_calculator():
    dice, lines, theirs, names, left_out = random.Random(SEED), [], [], [], Counter()
    for name, prices in catalog():
        cut = without_noise(prices)
        told = ours(cut)
        if isinstance(told, str):
            left_out[told] += 1
            continue
        starts = [tier["above_prompt_tokens"] for tier in told["tiers"]]
        for _ in range(USAGES_PER_PRICE):
            tokens = usage(dice, starts)
            lines.append({"prices": told, "tokens": tokens})
            theirs.append((their_total(prices, tokens), their_total(cut, tokens)))
            names.append(name)
    equal, differences, unexplained = 0, Counter(), []
    for name, line, (their, cut), our in zip(names, lines, theirs, charges(lines), strict=True):
        if "fault" in our:
            unexplained.append(f"{name}: {our['fault']}: {line}")
            continue
        difference = Decimal(our["total"]) - their
        if difference == 0:
            equal += 1
        elif abs(difference) <= ROUNDING:
            differences["each line is rounded to a billionth of a dollar"] += 1
        elif abs(Decimal(our["total"]) - cut) <= ROUNDING:
            differences["a price of theirs has the noise of a float behind its ninth digit"] += 1
        else:
            unexplained.append(f"{name}: ours {our['total']}, theirs {their}: {line}")
    print(f"{len(lines)} usages of {len(set(names))} sets of prices: {equal} equal")
    for why, count in (differences + left_out).items():
        print(f"{count}: {why}")
    assert not unexplained, f"{len(unexplained)} differences:\n" + "\n".join(unexplained[:10])
    assert len(lines) > 5_000 and len(set(names)) > 1_000
    assert sum(bool(line["prices"]["tiers"]) for line in lines) > 300


def test_list_prices_that_come_with_tollway_are_those_of_the_catalog():
    source = (ROOT / "deploy/tollway/src/up/list_prices.rs").read_text()
    listed = re.findall(
        r'listed\(\s*"([^"]+)",\s*"([^"]+)",\s*[\d_]+,\s*\["([^"]+)", "([^"]+)"\],\s*(None|Some\("[^"]+"\)),\s*(None|Some\("[^"]+"\)),?\s*\)',
        source,
    )
    assert len(listed) == len(re.findall(r"\blisted\(\s*\"", source)) > 5
    known = {(provider.id, model.id): model for provider in data_snapshot.get_snapshot().providers for model in provider.models}
    compared, unexplained = 0, []
    for model, upstream, *ours_text in listed:
        found = known.get((model.split("/")[0], upstream))
        if found is None:
            continue
        sets = found.prices if isinstance(found.prices, list) else [found]
        names = ["input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok"]
        text = [re.sub(r'None|Some|[("")]', "", part) for part in ours_text]
        told = [Decimal(part) if part else None for part in text]
        theirs = [[at(getattr(one.prices, name), 0) for name in names] for one in sets]
        # A kind that is not listed costs as its parent; a price of one day is among those of its model.
        matches = any(all(our is None or our == their for our, their in zip(told, their)) for their in theirs)
        compared += 1
        if not matches:
            unexplained.append(f"{model}: ours {[str(p) for p in told]}, theirs {[[str(p) for p in one] for one in theirs]}")
    print(f"{compared} of {len(listed)} list prices are in the catalog")
    assert compared and not unexplained, "\n".join(unexplained)
