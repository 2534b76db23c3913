"""The FOCUS export of a running Tollway against the rules of FOCUS 1.4 as somebody else wrote them down, and against the ledger."""

import csv
import io
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from focus_data_toolkit.model import validator

DATASET = "Cost and Usage"
# What we say of ourselves: there are price lists, so every usage names its price.
CONDITIONS = [validator.COND_UNIT_PRICING]
GOLDEN = Path(__file__).with_name("charges.csv")
REQUESTS = 7
COUNTED_WITHIN_S = 60


def lint(rows):
    return validator.lint_focus_1_4_structure(DATASET, rows, supported_conditions=CONDITIONS).messages()


def read_csv(text: str):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def download(quickstart, path: str) -> bytes:
    request = urllib.request.Request(
        quickstart.admin_url.rstrip("/") + path, headers={"authorization": f"Bearer {quickstart.admin_key}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def used(quickstart, client):
    """The days that were used, and the ledger's total of them once everything has been counted."""
    before = quickstart.admin_get("/admin/v1/usage")["total"]["requests"]
    for n in range(REQUESTS):
        client.chat.completions.create(
            model=quickstart.model, messages=[{"role": "user", "content": f"count to {n} " * (3 * n + 1)}]
        )
    deadline = time.monotonic() + COUNTED_WITHIN_S
    while True:
        total = quickstart.admin_get("/admin/v1/usage")["total"]
        if total["requests"] >= before + REQUESTS:
            break
        assert time.monotonic() < deadline, f"not counted within {COUNTED_WITHIN_S} s: {total}"
        time.sleep(0.1)
    today = datetime.now(UTC).date()
    return f"from={today - timedelta(days=1)}&to={today}", total


def exported(quickstart, used, form: str) -> bytes:
    """The export, once the store has what the ledger has."""
    days, total = used
    deadline = time.monotonic() + COUNTED_WITHIN_S
    while True:
        charges = read_csv(download(quickstart, f"/admin/v1/exports/focus?{days}&format=csv").decode())
        if sum(Decimal(row["x_RequestCount"] or 0) for row in charges) >= total["requests"]:
            return download(quickstart, f"/admin/v1/exports/focus?{days}&format={form}")
        assert time.monotonic() < deadline, "the export does not have what the ledger has counted"
        time.sleep(0.1)


def test_every_kind_of_charge_keeps_the_rules_of_focus():
    rows = read_csv(GOLDEN.read_text(encoding="utf-8"))
    assert {row["ChargeCategory"] for row in rows} >= {"Usage", "Adjustment"}
    assert lint(rows) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("BilledCost", "1e5"),
        ("ChargeCategory", "Spending"),
        ("ChargePeriodStart", "2026-11-22 12:00:00"),
        ("BillingCurrency", ""),
        ("ListCost", "123"),
        ("Surprise", "x"),
    ],
)
def test_the_rules_find_a_charge_that_breaks_them(column, value):
    rows = read_csv(GOLDEN.read_text(encoding="utf-8"))
    rows[0][column] = value
    assert any(column in message for message in lint(rows))


def test_the_csv_keeps_the_rules_and_sums_to_the_ledger(quickstart, used):
    rows = read_csv(exported(quickstart, used, "csv").decode())
    assert lint(rows) == []
    total = used[1]
    for column in ["ListCost", "EffectiveCost", "BilledCost"]:
        assert sum(Decimal(row[column]) for row in rows) == Decimal(total["cost"]), column
    assert sum(Decimal(row["x_RequestCount"] or 0) for row in rows) == total["requests"]
    tokens = sum(Decimal(row["ConsumedQuantity"]) for row in rows if row["ConsumedUnit"] == "Tokens")
    assert tokens == sum(total["tokens"].values())


def test_the_parquet_has_decimals_and_says_what_the_csv_says(quickstart, used):
    table = pq.read_table(io.BytesIO(exported(quickstart, used, "parquet")))
    model = validator.load_model()["datasets"][DATASET]["columns"]
    types = {"Decimal": pa.decimal128(38, 9), "Date/Time": pa.timestamp("us", tz="UTC")}
    for field in table.schema:
        assert not pa.types.is_floating(field.type), field
        if field.name in model:
            assert field.type == types.get(model[field.name]["data_type"], pa.string()), field
    total = used[1]
    for column in ["ListCost", "EffectiveCost", "BilledCost"]:
        assert pc.sum(table[column]).as_py() == Decimal(total["cost"]), column

    def written(value) -> str:
        if value is None:
            return ""
        if isinstance(value, Decimal):
            return format(value.normalize(), "f") if value else "0"
        if isinstance(value, datetime):
            return value.strftime("%Y-%m-%dT%H:%M:%SZ")
        return value

    rows = [{name: written(value) for name, value in row.items()} for row in table.to_pylist()]
    assert lint(rows) == []
    assert rows == read_csv(exported(quickstart, used, "csv").decode())


def test_an_invoice_of_the_month_sums_to_the_ledger(quickstart, used):
    # The month of the demo is the only one with usage, unless it is the first minutes of another.
    organization = quickstart.admin_get("/admin/v1/organizations")["data"][0]["id"]
    month = datetime.now(UTC).strftime("%Y-%m")
    path = f"/admin/v1/organizations/{organization}/invoices/{month}"
    invoice = quickstart.admin_get(path)
    assert Decimal(invoice["totals"]["total"]) == sum(Decimal(line["amount"]) for line in invoice["lines"])
    assert Decimal(invoice["totals"]["list"]) == Decimal(used[1]["cost"])
    page = download(quickstart, path + ".html").decode()
    assert page.startswith("<!DOCTYPE html>") and invoice["totals"]["total"] in page
