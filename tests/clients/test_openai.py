"""The official client, in the version that the other clients here bring: whole, streamed, async, responses, batches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import client_library
from tests.server.process import ServerProcess

openai = client_library("openai")
pytestmark = [pytest.mark.clients, pytest.mark.model]

CHAT: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "hello llama"}],
    "max_tokens": 12,
    "temperature": 0,
}
RESPONSE: dict[str, Any] = {"model": "smollm2", "input": "hello llama", "max_output_tokens": 12, "temperature": 0}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as opened:
        yield opened


def test_chat_whole_and_streamed(client: Any, said: str) -> None:
    assert client.chat.completions.create(**CHAT).choices[0].message.content == said
    chunks = client.chat.completions.create(**CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said


def test_responses_whole_and_streamed(client: Any, said: str) -> None:
    made = client.responses.create(**RESPONSE)
    assert made.output_text == said
    assert client.responses.retrieve(made.id).output_text == said
    with client.responses.stream(**RESPONSE) as stream:
        assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == said
    client.responses.delete(made.id)


def test_the_async_client(server: ServerProcess, said: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as opened:
            chunks = await opened.chat.completions.create(**CHAT, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
            return [text, (await opened.responses.create(**RESPONSE)).output_text]

    assert asyncio.run(ask()) == [said, said]


def test_a_batch(client: Any, said: str) -> None:
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = client.files.create(file=("requests.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until = time.monotonic() + 60
    while batch.status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing"), batch
        assert time.monotonic() < until
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    answer = json.loads(client.files.content(batch.output_file_id).text)
    assert answer["custom_id"] == "one"
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == said
