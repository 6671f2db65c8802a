"""A choice tells the seed it was drawn with, drawn or given, so that it can be had again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.process import ServerProcess

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello llama"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hello llama"}
DRAWN = {"max_tokens": 10, "temperature": 20.0, "n": 2}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_a_choice_can_be_had_again_by_its_seed(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    def text(choice: dict[str, Any]) -> str:
        return str(choice["text"] if "text" in choice else choice["message"]["content"])

    choices = server.post(path, body | DRAWN).json()["choices"]
    assert choices[1]["seed"] == choices[0]["seed"] + 1
    for choice in choices:
        assert 0 <= choice["seed"] < 2**53 + 2
        (again,) = server.post(path, body | DRAWN | {"n": 1, "seed": choice["seed"]}).json()["choices"]
        assert (text(again), again["seed"]) == (text(choice), choice["seed"])


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_a_stream_tells_the_seed_of_each_choice_once(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    events = server.events(path, body | DRAWN | {"seed": 41})
    told = [(c["index"], c["seed"]) for event in events[:-1] for c in event["choices"] if "seed" in c]
    assert sorted(told) == [(0, 41), (1, 42)]
