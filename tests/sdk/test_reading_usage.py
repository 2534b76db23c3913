"""What requests of the official OpenAI client cost is read back with the official OpenRouter client, to the nano-dollar."""

import time
from datetime import datetime, timezone

import openai
import pytest
from openrouter import OpenRouter
from openrouter.errors import BadRequestResponseError, NotFoundResponseError, UnauthorizedResponseError
from openrouter.utils import BackoffStrategy, RetryConfig

QUESTION = [{"role": "user", "content": "Say hello in one short sentence."}]
# Usage is counted within seconds; a busy machine takes longer.
COUNTED_WITHIN_S = 60
BOUGHT = 25


def nano(dollars):
    """Whole nano-dollars: clients read amounts as floats, which are exact enough to tell them apart."""
    return round(dollars * 1e9)


def until(condition, what):
    """Asks until there is an answer that is not None."""
    deadline = time.monotonic() + COUNTED_WITHIN_S
    while (found := condition()) is None:
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def tenant(quickstart):
    """A key of an organization of its own that has bought credit, with a daily budget: nothing else is counted there."""
    quickstart.admin_send("PUT", "/admin/v1/organizations/reader", {"name": "Reader"})
    quickstart.admin_send("PUT", "/admin/v1/projects/reader-project", {"organization": "reader", "name": "Reader"})
    made = quickstart.admin_send("POST", "/admin/v1/keys", {"project": "reader-project"})
    top_up = {"amount": str(BOUGHT), "method": "card", "reference": "reader-1", "reason": "a test"}
    quickstart.admin_send("POST", "/admin/v1/organizations/reader/top-ups", top_up)
    quickstart.admin_send("PUT", "/admin/v1/organizations/reader/billing", {"mode": "prepaid"})
    budget = {"scope": {"key": made["id"]}, "limit": "10", "period": "daily"}
    quickstart.admin_send("PUT", "/admin/v1/budgets/reader-daily", budget)
    return made


@pytest.fixture(scope="module")
def answers(quickstart, tenant):
    """Two whole answers and a streamed one: id, usage, whether it was streamed."""
    client = quickstart.client(tenant["key"])
    ask = {"model": quickstart.model, "messages": QUESTION, "user": "ann"}

    def first():
        try:  # the node may not have heard of the key yet
            return client.chat.completions.with_raw_response.create(**ask)
        except (openai.AuthenticationError, openai.InternalServerError):
            return None

    whole = [until(first, "the new key is let in"), client.chat.completions.with_raw_response.create(**ask)]
    found = [(raw.headers["x-generation-id"], raw.parse().usage, False) for raw in whole]
    options = {"include_usage": True}
    with client.chat.completions.with_streaming_response.create(**ask, stream=True, stream_options=options) as raw:
        *_, last = raw.parse()
        found.append((raw.headers["x-generation-id"], last.usage, True))
    return found


def reader(quickstart, key):
    once = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 1), False)
    return OpenRouter(api_key=key, server_url=quickstart.base_url, retry_config=once)


def test_every_request_is_read_back_with_the_cost_and_the_counts_that_its_answer_had(quickstart, tenant, answers):
    with reader(quickstart, tenant["key"]) as client:
        for id, usage, streamed in answers:

            def generation():
                try:
                    return client.generations.get_generation(id=id).data
                except NotFoundResponseError as absent:
                    assert absent.data.error.code == 404
                    assert id in absent.data.error.message and "seconds" in absent.data.error.message
                    return None

            found = until(generation, f"generation {id}")
            assert found.id == id
            assert nano(found.total_cost) == nano(usage.cost) > 0
            assert found.usage == found.total_cost
            assert found.tokens_prompt == usage.prompt_tokens
            assert found.native_tokens_prompt == usage.prompt_tokens
            assert found.tokens_completion == usage.completion_tokens
            assert found.model == quickstart.model
            assert (found.streamed, found.cancelled, found.is_byok) == (streamed, False, False)
            assert (found.external_user, found.workspace_id) == ("ann", "reader-project")
            assert found.finish_reason in ("stop", "length")
            assert [attempt.status for attempt in found.provider_responses] == [200]
            assert datetime.fromisoformat(found.created_at) <= datetime.now(timezone.utc)


def test_credit_the_key_and_the_activity_say_the_same_sum(quickstart, tenant, answers):
    spent = sum(nano(usage.cost) for _, usage, _ in answers)
    with reader(quickstart, tenant["key"]) as client:

        def used(read, field):
            """Reads until what was used has all of it; more than that it must never be."""

            def read_once():
                found = read().data
                assert nano(getattr(found, field)) <= spent
                return found if nano(getattr(found, field)) == spent else None

            return until(read_once, field)

        credits = used(client.credits.get_credits, "total_usage")
        assert nano(credits.total_credits) == nano(BOUGHT)

        key = used(client.api_keys.get_current_key_metadata, "usage")
        # Requests at midnight are of one day or the other.
        assert nano(key.usage_daily) <= nano(key.usage_weekly) and nano(key.usage_daily) <= nano(key.usage_monthly)
        assert (key.organization_id, key.workspace_id) == ("reader", "reader-project")
        assert key.label.endswith(tenant["last4"]) and tenant["key"] not in key.label
        assert (key.is_management_key, key.is_free_tier, key.expires_at) == (False, False, None)
        assert (nano(key.limit), key.limit_reset) == (nano(10), "daily")

        def settled():
            key = client.api_keys.get_current_key_metadata().data
            return key if nano(key.limit) - nano(key.limit_remaining) == spent else None

        key = until(settled, "the budget is settled")
        assert [budget.scope for budget in key.budgets] == ["key_limit"]
        assert nano(key.effective_budget.spend_usd) == spent
        assert key.effective_budget.budget_id == "reader-daily"
        assert key.effective_budget.resets_at > datetime.now(timezone.utc)

        def rows():
            rows = client.analytics.get_user_activity(request={"group_by": "workspace"}).data
            assert sum(row.requests for row in rows) <= len(answers)
            return rows if sum(row.requests for row in rows) == len(answers) else None

        rows = until(rows, "activity")
        assert sum(nano(row.usage) for row in rows) == spent
        assert sum(row.prompt_tokens for row in rows) == sum(usage.prompt_tokens for _, usage, _ in answers)
        assert sum(row.completion_tokens for row in rows) == sum(usage.completion_tokens for _, usage, _ in answers)
        assert {(row.model, row.workspace_id) for row in rows} == {(quickstart.model, "reader-project")}
        assert all(datetime.fromisoformat(row.date_) for row in rows)
        own = client.analytics.get_user_activity(request={"api_key_hash": tenant["id"]}).data
        assert sum(nano(row.usage) for row in own) == spent
        assert client.analytics.get_user_activity(request={"api_key_hash": "another"}).data == []


def test_analytics_answer_every_metric_and_add_up(quickstart, tenant, answers):
    with reader(quickstart, tenant["key"]) as client:
        meta = client.analytics.get_analytics_meta().data
        names = [metric.name for metric in meta.metrics]
        query = {"metrics": names, "dimensions": ["external_user", "api_key_id"], "granularity": "hour"}

        def counted():
            # The client's own rows have no fields: it leaves them out.
            answer = quickstart.post(tenant["key"], "/analytics/query", query)["data"]
            return answer if sum(row["request_count"] for row in answer["data"]) == len(answers) else None

        answer = until(counted, "analytics")
        assert answer["metadata"]["row_count"] == len(answer["data"])
        assert answer["metadata"]["truncated"] is False
        for row in answer["data"]:
            assert set(row) == {"date", "external_user", "api_key_id", *names}
            assert (row["external_user"], row["api_key_id"]) == ("ann", tenant["id"])
            assert 0 < row["p50_latency"] <= row["p90_latency"]
            assert row["error_rate"] == 0
        spent = sum(nano(usage.cost) for _, usage, _ in answers)
        for name in ("total_usage", "credits_usage"):
            assert sum(nano(row[name]) for row in answer["data"]) == spent
        assert sum(row["tokens_total"] for row in answer["data"]) == sum(usage.total_tokens for _, usage, _ in answers)
        read = client.analytics.query_analytics(metrics=["total_usage"], dimensions=["model"]).data
        assert (read.metadata.row_count, read.metadata.truncated) == (1, False)
        with pytest.raises(BadRequestResponseError) as caught:
            client.analytics.query_analytics(metrics=["luck"])
        assert "request_count" in caught.value.data.error.message


def test_other_organizations_see_nothing_of_it(quickstart, tenant, answers):
    stranger = quickstart.api_key
    with reader(quickstart, tenant["key"]) as client:
        until(lambda: client.analytics.get_user_activity().data or None, "usage is counted")
    with reader(quickstart, stranger) as client:
        with pytest.raises(NotFoundResponseError):
            client.generations.get_generation(id=answers[0][0])
        assert client.credits.get_credits().data.total_credits == 0
        assert client.api_keys.get_current_key_metadata().data.workspace_id != "reader-project"
        rows = client.analytics.get_user_activity(request={"group_by": "workspace"}).data
        assert all(row.workspace_id != "reader-project" for row in rows)
        with pytest.raises(BadRequestResponseError):
            client.analytics.get_user_activity(request={"workspace_id": "reader-project"})


def test_a_wrong_key_and_a_wrong_parameter_are_errors_that_the_client_reads(quickstart, tenant):
    with reader(quickstart, "sk-tw-v1-notavalidkey") as client:
        for read in (client.credits.get_credits, client.api_keys.get_current_key_metadata):
            with pytest.raises(UnauthorizedResponseError) as caught:
                read()
            assert caught.value.data.error.code == 401
            assert "notavalidkey" not in str(caught.value)
    with reader(quickstart, tenant["key"]) as client:
        with pytest.raises(BadRequestResponseError) as caught:
            client.analytics.get_user_activity(request={"date_": "yesterday"})
        assert "`date`" in caught.value.data.error.message
