"""The official Python client, given only what `tollway up` printed."""

import os
import stat

import openai
import pytest

QUESTION = [{"role": "user", "content": "Say hello in one short sentence."}]


def test_an_answer_has_text_tokens_and_a_finish_reason(client, quickstart):
    answer = client.chat.completions.create(model=quickstart.model, messages=QUESTION)

    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_brings_the_text_in_chunks_and_ends_with_a_reason(client, quickstart):
    chunks = list(client.chat.completions.create(model=quickstart.model, messages=QUESTION, stream=True))

    assert len({chunk.id for chunk in chunks}) == 1
    # Who did not ask for usage gets no chunk without a choice: many programs index choices[0] blindly.
    assert all(chunk.choices for chunk in chunks)
    assert text_of(chunks).strip()
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] in (["stop"], ["length"])


def test_a_stream_that_asks_for_usage_ends_with_it(client, quickstart):
    chunks = list(
        client.chat.completions.create(
            model=quickstart.model, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )

    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_caller_who_hangs_up_leaves_the_gateway_serving(client, quickstart):
    stream = client.chat.completions.create(model=quickstart.model, messages=QUESTION, stream=True)
    next(iter(stream))
    stream.close()

    assert client.chat.completions.create(model=quickstart.model, messages=QUESTION).choices


def test_the_models_list_names_the_model(client, quickstart):
    assert quickstart.model in [model.id for model in client.models.list()]


def test_one_model_is_retrieved_by_its_name(client, quickstart):
    # The client sends the slash of the name as %2F.
    assert client.models.retrieve(quickstart.model).id == quickstart.model


def test_a_wrong_key_is_an_authentication_error(quickstart):
    stranger = quickstart.client(api_key="sk-tw-v1-notavalidkey")
    with pytest.raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(model=quickstart.model, messages=QUESTION)

    assert caught.value.status_code == 401
    assert "key" in caught.value.body["message"]
    assert "notavalidkey" not in str(caught.value)


def test_an_unknown_model_is_not_found_and_the_close_match_is_named(client, quickstart):
    misspelt = quickstart.model[:-1] + "zz"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=misspelt, messages=QUESTION)

    assert caught.value.code == "model_not_found"
    assert misspelt in caught.value.body["message"]
    assert quickstart.model in caught.value.body["message"]


def test_a_wrong_field_is_a_bad_request_that_names_it(client, quickstart):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=quickstart.model, messages=QUESTION, extra_body={"stream": "yes, please"}
        )

    assert "stream" in caught.value.body["message"]


def test_the_quickstart_file_is_for_its_owner_only():
    mode = os.stat(os.environ["TOLLWAY_QUICKSTART"]).st_mode
    assert stat.S_IMODE(mode) == 0o600


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
