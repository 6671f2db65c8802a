"""An engine that says what nobody understands: its streams end with an error, and it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from puna.engine.client import EngineClient
from puna.engine.config import EngineConfig
from puna.engine.messages import LENGTH, MAX_FRAME_BYTES
from puna.engine.params import SampleUpdate
from puna.errors import EngineError
from tests.engine.driving import prompt, request


async def rest(updates: AsyncIterator[SampleUpdate]) -> None:
    async for _ in updates:
        pass


@pytest.mark.parametrize(
    "garbage",
    [LENGTH.pack(3) + b"\xff\xff\xff", LENGTH.pack(2) + b"\x81\xa1", LENGTH.pack(MAX_FRAME_BYTES + 1)],
    ids=["no message", "half a message", "too long"],
)
def test_a_message_that_is_not_understood_ends_streams_instead_of_leaving_them_waiting(
    make_config: Callable[..., EngineConfig], garbage: bytes
) -> None:
    async def play() -> None:
        client = await EngineClient.start(make_config())
        try:
            updates = client.generate(request("a", prompt(5, 1), max_tokens=200, ignore_eos=True))
            await anext(updates)
            client._reader.feed_data(garbage)
            with pytest.raises(EngineError, match="not understood"):
                await asyncio.wait_for(rest(updates), 20)
            with pytest.raises(EngineError, match="not understood"):
                await anext(client.generate(request("b", prompt(5, 1))))
            assert not client.health().alive
        finally:
            await client.close()

    asyncio.run(play())
