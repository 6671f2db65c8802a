"""Text completions over HTTP: prompts of every shape, echo, log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess

BODY: dict[str, Any] = {"model": "tiny", "prompt": "hello llama", "max_tokens": 10, "seed": 3, "temperature": 20.0}


def test_a_completion_has_openais_shape(client: openai.OpenAI) -> None:
    answer = client.completions.create(**BODY)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 10


def test_a_stream_joined_is_the_whole_completion(server: ServerProcess) -> None:
    body = {**BODY, "prompt": ["hello", "llama and you"], "n": 2, "logprobs": 3}
    whole = server.post("/v1/completions", body).json()
    texts: dict[int, str] = {}
    logprobs: dict[int, list[float]] = {}
    events = server.events("/v1/completions", body)
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        assert event["object"] == "text_completion"
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["logprobs"]:
                logprobs.setdefault(choice["index"], []).extend(choice["logprobs"]["token_logprobs"])
    assert texts == {c["index"]: c["text"] for c in whole["choices"]}
    assert logprobs == {c["index"]: c["logprobs"]["token_logprobs"] for c in whole["choices"]}


def test_the_default_is_sixteen_tokens(server: ServerProcess) -> None:
    body = {"prompt": "hello", "ignore_eos": True}
    assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 16


def test_choice_index_is_prompt_times_n_plus_sample(server: ServerProcess) -> None:
    body = {**BODY, "prompt": ["hello", "the llama", "you"], "n": 2, "temperature": 20.0}
    together = server.post("/v1/completions", body).json()
    assert [c["index"] for c in together["choices"]] == list(range(6))
    for number, prompt in enumerate(body["prompt"]):
        alone = server.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"]
        assert [c["text"] for c in alone] == [c["text"] for c in together["choices"][2 * number : 2 * number + 2]]


def test_token_ids_and_their_text_are_the_same_prompt(server: ServerProcess) -> None:
    ids = [3 + byte for byte in b"zebra"]
    as_ids = server.post("/v1/completions", {**BODY, "prompt": ids}).json()
    as_lists = server.post("/v1/completions", {**BODY, "prompt": [ids]}).json()
    as_text = server.post("/v1/completions", {**BODY, "prompt": "zebra"}).json()
    assert as_ids["choices"] == as_lists["choices"] == as_text["choices"]


def test_echo_puts_the_prompt_before_the_answer(server: ServerProcess) -> None:
    plain = server.post("/v1/completions", BODY).json()["choices"][0]["text"]
    echoed = server.post("/v1/completions", {**BODY, "echo": True}).json()["choices"][0]["text"]
    assert echoed == BODY["prompt"] + plain


def test_echo_with_no_tokens_scores_the_prompt_and_generates_nothing(server: ServerProcess) -> None:
    body = {"prompt": "hello llama", "echo": True, "max_tokens": 0, "logprobs": 2}
    answer = server.post("/v1/completions", body).json()
    choice = answer["choices"][0]
    assert choice["text"] == "hello llama"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][1:])


def test_offsets_point_at_each_tokens_text(server: ServerProcess) -> None:
    body = {**BODY, "echo": True, "logprobs": 0, "allowed_token_ids": [68, 69, 70], "max_tokens": 6}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert "".join(tokens) == choice["text"]
    assert all(choice["text"][at:].startswith(token) for token, at in zip(tokens, offsets, strict=True))


def test_the_drawn_token_is_among_its_top_logprobs(server: ServerProcess) -> None:
    body = {**BODY, "logprobs": 3, "temperature": 2.0}
    logprobs = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert top[token] == value
        assert 3 <= len(top) <= 4
        assert sum(math.exp(x) for x in top.values()) < 1.0001


def test_prompt_logprobs_have_vllms_shape(server: ServerProcess) -> None:
    body = {**BODY, "prompt": "zebra", "prompt_logprobs": 2}
    first, *rest = server.post("/v1/completions", body).json()["choices"][0]["prompt_logprobs"]
    assert first is None
    assert len(rest) == 4
    for byte, entry in zip(b"ebra", rest, strict=True):
        assert entry[str(3 + byte)]["decoded_token"] == chr(byte)
        assert all(set(value) == {"logprob", "rank", "decoded_token"} for value in entry.values())


def test_echoed_scores_are_those_of_the_same_tokens_generated(server: ServerProcess) -> None:
    greedy = {"prompt": "zebra", "temperature": 0, "max_tokens": 5, "logprobs": 0, "allowed_token_ids": [68, 69, 70]}
    made = server.post("/v1/completions", greedy).json()["choices"][0]
    scored = {"prompt": "zebra" + made["text"], "echo": True, "max_tokens": 0, "logprobs": 0}
    echoed = server.post("/v1/completions", scored).json()["choices"][0]["logprobs"]
    assert echoed["tokens"][5:] == made["logprobs"]["tokens"]
    assert echoed["token_logprobs"][5:] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-4)


def test_bad_words_do_not_appear(server: ServerProcess) -> None:
    body = {**BODY, "allowed_token_ids": [68, 69], "max_tokens": 20, "ignore_eos": True, "temperature": 50.0}
    assert set(server.post("/v1/completions", body).json()["choices"][0]["text"]) == {"A", "B"}
    without = server.post("/v1/completions", {**body, "bad_words": ["B"]}).json()["choices"][0]["text"]
    assert set(without) == {"A"}
