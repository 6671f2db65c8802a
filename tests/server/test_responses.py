"""`/v1/responses` by the official client: whole, streamed, stored, gone on from, forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess

ASKED: dict[str, Any] = {"model": "tiny", "input": "hello llama", "max_output_tokens": 12, "temperature": 20.0}
SEEDED: dict[str, Any] = {**ASKED, "extra_body": {"seed": 7, "ignore_eos": True}}
# By itself, after five tokens: at a temperature of 20 the bias would leave one answer in twenty without its end.
ENDING: dict[str, Any] = {**ASKED, "temperature": 1.0, "extra_body": {"logit_bias": {"2": 100}, "min_tokens": 5}}
# In this order; text deltas may be any number.
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
]


def test_a_response_has_openais_shape(client: openai.OpenAI) -> None:
    response = client.responses.create(**SEEDED, metadata={"who": "me"}, instructions="be brief")
    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert (response.metadata, response.instructions, response.temperature) == ({"who": "me"}, "be brief", 20.0)
    assert response.output[0].type == "message"
    assert response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    assert response.usage.total_tokens == response.usage.input_tokens + 12


def test_it_says_what_chat_would_say(client: openai.OpenAI) -> None:
    response = client.responses.create(**SEEDED, instructions="be brief")
    messages: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello llama"}]
    chat = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=12, temperature=20.0, extra_body=SEEDED["extra_body"]
    )
    assert response.output_text == chat.choices[0].message.content


def test_an_answer_that_ended_by_itself_is_completed(client: openai.OpenAI) -> None:
    response = client.responses.create(**ENDING)
    assert (response.status, response.incomplete_details) == ("completed", None)


def test_a_stream_has_its_events_in_order_and_ends_with_the_whole_response(client: openai.OpenAI) -> None:
    events: list[Any] = list(client.responses.create(**SEEDED, stream=True))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == EVENTS
    assert [kinds.count(kind) for kind in EVENTS if kind != EVENTS[4]] == [1] * (len(EVENTS) - 1)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == EVENTS[4])
    whole = client.responses.create(**SEEDED)
    assert text == events[-1].response.output_text == whole.output_text
    assert {e.item_id for e in events if e.type == EVENTS[4]} == {events[-1].response.output[0].id}


def test_the_clients_stream_helper_ends_with_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(**ENDING) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(texts)


async def ask_async(server: ServerProcess) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.responses.create(**SEEDED)
        chat = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello llama"}],
            max_tokens=12,
            temperature=20.0,
            stream=True,
            extra_body=SEEDED["extra_body"],
        )
        return whole.output_text, "".join([chunk.choices[0].delta.content or "" async for chunk in chat])


def test_the_async_client_reads_the_same(server: ServerProcess) -> None:
    import asyncio

    one, two = asyncio.run(ask_async(server))
    assert one == two != ""


def test_a_stored_response_can_be_read_and_forgotten(client: openai.OpenAI) -> None:
    made = client.responses.create(**SEEDED)
    assert made.store is True  # type: ignore[attr-defined]
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    items = list(client.responses.input_items.list(made.id))
    assert [(item.role, item.content[0].text) for item in items] == [("user", "hello llama")]  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.input_items.list(made.id, after="msg_nothing")
    assert caught.value.param == "after"
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)


def test_a_response_that_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    made = client.responses.create(**SEEDED, store=False)
    assert made.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASKED, previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_conversation_goes_on_from_a_stored_response_without_its_instructions(client: openai.OpenAI) -> None:
    first = client.responses.create(**SEEDED, instructions="be brief")
    body = {**SEEDED, "input": "and you?"}
    second = client.responses.create(**body, previous_response_id=first.id)
    by_hand: list[Any] = [
        {"role": "user", "content": "hello llama"},
        *[item.to_dict() for item in first.output],
        {"role": "user", "content": [{"type": "input_text", "text": "and you?"}]},
    ]
    assert second.output_text == client.responses.create(**{**SEEDED, "input": by_hand}).output_text
    assert second.previous_response_id == first.id
    assert [i.content[0].text for i in client.responses.input_items.list(second.id)] == ["and you?"]  # type: ignore
    third = client.responses.create(**body, previous_response_id=second.id)
    assert third.usage is not None
    assert second.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens


def test_a_streamed_response_is_stored_too(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(**SEEDED, stream=True)
    assert client.responses.retrieve(last.response.id).output_text == last.response.output_text  # type: ignore


def test_logprobs_come_with_each_delta_and_with_the_whole(client: openai.OpenAI) -> None:
    events: list[Any] = list(
        client.responses.create(**SEEDED, stream=True, top_logprobs=2, include=["message.output_text.logprobs"])
    )
    parts = [entry for event in events if event.type == EVENTS[4] for entry in event.logprobs]
    whole = events[-1].response.output[0].content[0].logprobs
    assert [entry.logprob for entry in parts] == [entry.logprob for entry in whole]
    assert len(whole) == 12
    assert all(len(entry.top_logprobs) == 2 for entry in whole)


def test_the_tokens_of_an_input_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input="hello llama")
    made = client.responses.create(**SEEDED)
    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens


def test_what_is_too_long_is_cut_only_where_truncation_is_auto(server: ServerProcess) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 200}, {"role": "user", "content": "what?"}] * 2
    body = {"input": long, "max_output_tokens": 5}
    assert server.post("/v1/responses", body).json()["error"]["code"] == "context_length_exceeded"
    answer = server.post("/v1/responses", {**body, "truncation": "auto"})
    assert answer.json()["truncated_tokens"] == int(answer.headers["puna-truncated-tokens"]) > 0
    assert server.get(f"/v1/responses/{answer.json()['id']}").json() == answer.json()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "messages"),
        ({"input": [{"type": "computer_call", "call_id": "1"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"previous_response_id": "resp_nothing"}, "previous_response_id"),
    ],
)
def test_what_is_not_here_or_wrong_is_refused_by_name(
    server: ServerProcess, change: dict[str, Any], param: str
) -> None:
    response = server.post("/v1/responses", {"input": "hi", "max_output_tokens": 2, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_unknown_names_are_named_here_too(server: ServerProcess) -> None:
    body = {"input": [{"role": "user", "content": "hi", "when": 1}], "max_output_tokens": 2, "text": {"colour": "red"}}
    names = server.post("/v1/responses", body).headers["puna-ignored"]
    assert names.split(", ") == ["text.colour", "input[0].when"]


def test_a_server_told_to_store_nothing_says_so(tiny_model: Path) -> None:
    running = ServerProcess.start(str(tiny_model), "--backend", "reference", "--store-mb", "0")
    try:
        answer = running.post("/v1/responses", {"input": "hi", "max_output_tokens": 2}).json()
        assert answer["store"] is False
        refused = running.post("/v1/responses", {"input": "hi", "store": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    finally:
        running.kill()
