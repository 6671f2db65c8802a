"""Anthropic's client against `/v1/messages`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import client_library
from tests.server.process import ServerProcess

anthropic = client_library("anthropic")
pytestmark = [pytest.mark.clients, pytest.mark.model]

ASKED: dict[str, Any] = {
    "model": "smollm2",
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "hello llama"}],
    "extra_body": {"temperature": 0},  # newer versions of the client have no parameter for it
}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as opened:
        yield opened


def test_a_whole_message(client: Any, said: str) -> None:
    message = client.messages.create(**ASKED)
    assert (message.type, message.role, message.model) == ("message", "assistant", "smollm2")
    assert message.content[0].text == said
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0
    assert 0 < message.usage.output_tokens <= 12


def test_a_stream_and_its_final_message(client: Any, said: str) -> None:
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == said
        final = stream.get_final_message()
    assert final.content[0].text == said
    assert final.to_dict()["usage"]["output_tokens"] == client.messages.create(**ASKED).usage.output_tokens


def test_raw_events(client: Any) -> None:
    kinds = [event.type for event in client.messages.create(**ASKED, stream=True)]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


def test_the_async_client(server: ServerProcess, said: str) -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="secret", max_retries=0) as opened:
            return str((await opened.messages.create(**ASKED)).content[0].text)

    assert asyncio.run(ask()) == said


def test_tokens_are_counted_as_they_are_charged(client: Any) -> None:
    usage = client.messages.create(**ASKED).usage
    counted = client.messages.count_tokens(model="smollm2", messages=ASKED["messages"])
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_have_the_clients_own_classes(server: ServerProcess, client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="top_k"):
        client.messages.create(**{**ASKED, "extra_body": {"top_k": -5}})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASKED, "model": "other"})
    stranger = anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(**ASKED)
