"""Chat completions over HTTP, by the official client and by hand."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "hello llama"}]
SAMPLED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 7, "temperature": 20.0}


def joined(events: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts


def test_an_answer_has_openais_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, temperature=0)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_joined_is_the_whole_answer(server: ServerProcess) -> None:
    whole = server.post("/v1/chat/completions", {**SAMPLED, "n": 3}).json()
    streamed = joined(server.events("/v1/chat/completions", {**SAMPLED, "n": 3}))
    assert streamed == {c["index"]: c["message"]["content"] for c in whole["choices"]}
    assert len(set(streamed.values())) == 3


def test_a_stream_is_role_then_text_then_one_finish_a_choice_then_usage(server: ServerProcess) -> None:
    body = {**SAMPLED, "n": 2, "stream_options": {"include_usage": True}}
    events = server.events("/v1/chat/completions", body)
    assert events[-1] == "[DONE]"
    *chunks, usage = events[:-1]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "tiny", "chat.completion.chunk")
    }
    assert all(c["usage"] is None for c in chunks)
    for index in (0, 1):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] is not None for c in mine] == [False] * (len(mine) - 1) + [True]
        assert all("role" not in c["delta"] for c in mine[1:])


def test_without_include_usage_no_chunk_speaks_of_usage(server: ServerProcess) -> None:
    events = server.events("/v1/chat/completions", SAMPLED)
    assert all("usage" not in event for event in events[:-1])


def test_continuous_usage_counts_up_to_the_total(server: ServerProcess) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events("/v1/chat/completions", {**SAMPLED, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_a_seed_repeats_the_answer_and_children_follow_it(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**SAMPLED, n=3)
    for child, choice in enumerate(first.choices):
        alone = client.chat.completions.create(**{**SAMPLED, "seed": 7 + child})
        assert alone.choices[0].message.content == choice.message.content


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**{**SAMPLED, "max_tokens": 40}).choices[0].message.content
    assert whole is not None
    stop = whole[len(whole) // 2 :][:3]
    cut = client.chat.completions.create(**{**SAMPLED, "max_tokens": 40}, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole[: whole.index(stop)]


def test_a_stop_string_in_a_stream_never_leaks(server: ServerProcess) -> None:
    whole = server.post("/v1/chat/completions", {**SAMPLED, "max_tokens": 40}).json()
    text = whole["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:4]
    events = server.events("/v1/chat/completions", {**SAMPLED, "max_tokens": 40, "stop": stop})
    assert joined(events)[0] == text[: text.index(stop)]


def test_logprobs_cover_every_token_and_add_up_to_less_than_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**SAMPLED, logprobs=True, top_logprobs=5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for entry in logprobs.content:
        assert entry.bytes is not None
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 5
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) < 1.0001


def test_streamed_logprobs_are_those_of_the_whole_answer(server: ServerProcess) -> None:
    body = {**SAMPLED, "logprobs": True, "top_logprobs": 2}
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        entry
        for event in server.events("/v1/chat/completions", body)[:-1]
        for choice in event["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == whole


def test_a_logit_bias_decides_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, temperature=0, logit_bias={"70": 100}, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len({entry.token for entry in logprobs.content}) == 1


@pytest.mark.parametrize(
    "extra",
    [
        {"top_k": 1, "temperature": 1.5},
        {"min_p": 1.0, "temperature": 1.5},
        {"top_p": 1e-6, "temperature": 1.5},
    ],
)
def test_a_sampler_that_leaves_one_token_is_greedy(server: ServerProcess, extra: dict[str, Any]) -> None:
    base = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8}
    greedy = server.post("/v1/chat/completions", {**base, "temperature": 0}).json()
    narrow = server.post("/v1/chat/completions", {**base, **extra}).json()
    assert narrow["choices"][0]["message"] == greedy["choices"][0]["message"]


def test_min_tokens_and_ignore_eos_reach_the_engine(server: ServerProcess) -> None:
    body = {**SAMPLED, "max_tokens": 30, "min_tokens": 30, "logit_bias": {"2": 100}}
    assert server.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 30
    body = {**SAMPLED, "max_tokens": 30, "ignore_eos": True, "logit_bias": {"2": 100}}
    assert server.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 30


def test_allowed_tokens_are_the_only_ones(server: ServerProcess) -> None:
    body = {**SAMPLED, "allowed_token_ids": [68], "ignore_eos": True}
    text = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert len(text) == 12
    assert len(set(text)) == 1


def test_a_prompt_asked_twice_comes_from_the_cache_unless_salted(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "a conversation that fills some blocks " * 3}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}

    def cached(**more: str) -> int:
        usage = server.post("/v1/chat/completions", {**body, **more}).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached() == 0
    assert cached() > 0
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0


def test_text_parts_and_the_developer_role_are_understood(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello llama"}]},
    ]
    plain: list[Any] = [{"role": "system", "content": "be brief"}, *MESSAGES]
    one = client.chat.completions.create(model="tiny", messages=parts, max_tokens=6, temperature=0)
    two = client.chat.completions.create(model="tiny", messages=plain, max_tokens=6, temperature=0)
    assert one.choices == two.choices


def test_values_that_ask_for_nothing_are_accepted(server: ServerProcess) -> None:
    nothing = {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "someone",
        "metadata": {},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "stream": None,
        "seed": None,
        "stop": None,
    }
    body = {"messages": MESSAGES, "max_tokens": 2, **nothing}
    assert server.post("/v1/chat/completions", body).status_code == 200
