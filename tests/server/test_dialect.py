"""Each dialect has the shapes that clients and tests of that server expect; all else is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello llama"}],
    "max_tokens": 8,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def vllm_like(tiny_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny_model), "--backend", "reference", "--dialect", "vllm", "--name", "tiny")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def llamacpp_like(tiny_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny_model), "--backend", "reference", "--dialect", "llamacpp", "--name", "tiny")
    yield running
    running.kill()


def errors(server: ServerProcess) -> list[dict[str, Any]]:
    return [
        server.post("/v1/chat/completions", {**CHAT, "temperature": -1}).json()["error"],
        server.post("/v1/chat/completions", {**CHAT, "model": "other"}).json()["error"],
        server.post("/v1/completions", {"prompt": [70] * 250, "max_tokens": 100}).json()["error"],
    ]


def test_errors_have_openais_types(server: ServerProcess) -> None:
    assert [(e["type"], e["code"]) for e in errors(server)] == [
        ("invalid_request_error", None),
        ("invalid_request_error", "model_not_found"),
        ("invalid_request_error", "context_length_exceeded"),
    ]


def test_errors_have_vllms_types_and_the_status_as_code(vllm_like: ServerProcess) -> None:
    assert [(e["type"], e["code"], e["param"]) for e in errors(vllm_like)] == [
        ("BadRequestError", 400, "temperature"),
        ("NotFoundError", 404, "model"),
        ("BadRequestError", 400, "max_tokens"),
    ]
    assert vllm_like.get("/nothing").json()["error"]["type"] == "NotFoundError"


def test_errors_have_llamacpps_types_and_the_status_as_code(llamacpp_like: ServerProcess) -> None:
    assert [(e["type"], e["code"]) for e in errors(llamacpp_like)] == [
        ("invalid_request_error", 400),
        ("not_found_error", 404),
        ("exceed_context_size_error", 400),
    ]


def test_the_edges_of_a_chat_stream_are_each_servers_own(
    server: ServerProcess, vllm_like: ServerProcess, llamacpp_like: ServerProcess
) -> None:
    texts = set()
    edges = []
    for asked in (server, vllm_like, llamacpp_like):
        choices = [event["choices"][0] for event in asked.events("/v1/chat/completions", CHAT)[:-1]]
        texts.add("".join(choice["delta"].get("content") or "" for choice in choices))
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
        edges.append((choices[0]["delta"], bool(choices[-1]["delta"].get("content"))))
    assert len(texts) == 1
    assert edges == [
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": ""}, True),
        ({"role": "assistant", "content": None}, False),
    ]


def test_whole_answers_do_not_differ(server: ServerProcess, vllm_like: ServerProcess) -> None:
    one, two = (s.post("/v1/chat/completions", CHAT).json()["choices"] for s in (server, vllm_like))
    assert one == two


def test_the_official_client_reads_every_dialect(vllm_like: ServerProcess, llamacpp_like: ServerProcess) -> None:
    for asked in (vllm_like, llamacpp_like):
        with openai.OpenAI(base_url=f"{asked.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="tiny", messages=CHAT["messages"], max_tokens=5, temperature=0, stream=True
            )
            assert [c.choices[0].finish_reason for c in stream][-1] in ("stop", "length")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("other")


def test_llamacpp_calls_text_content(llamacpp_like: ServerProcess, server: ServerProcess) -> None:
    assert llamacpp_like.post("/tokenize", {"content": "ab"}).json()["tokens"] == [3 + 97, 3 + 98]
    assert llamacpp_like.post("/detokenize", {"tokens": [3 + 97]}).json() == {"content": "a"}
    assert server.post("/tokenize", {"prompt": "ab", "content": "x"}).headers["puna-ignored"] == "content"
