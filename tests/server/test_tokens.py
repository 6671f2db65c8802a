"""`/tokenize`, `/detokenize`, and token ids in answers: what a client is told of tokens is what the model reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.process import ServerProcess

MESSAGES: list[Any] = [{"role": "user", "content": "hello llama"}]
SAMPLED: dict[str, Any] = {"max_tokens": 12, "seed": 7, "temperature": 20.0, "return_token_ids": True}


def test_a_text_has_its_tokens_and_the_tokens_their_text(server: ServerProcess) -> None:
    answer = server.post("/tokenize", {"prompt": "zebra", "return_token_strs": True}).json()
    assert answer["tokens"] == [3 + byte for byte in b"zebra"]
    assert answer["token_strs"] == list("zebra")
    assert (answer["count"], answer["max_model_len"]) == (5, 256)
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "zebra"}


def test_a_conversation_is_tokenized_as_chat_would(server: ServerProcess) -> None:
    tokens = server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    body = {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}
    assert server.post("/v1/chat/completions", body).json()["prompt_token_ids"] == tokens
    closed = server.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}).json()["tokens"]
    assert tokens[: len(closed)] == closed
    assert len(closed) < len(tokens)


def test_the_tokenizer_tells_its_special_tokens(server: ServerProcess) -> None:
    info = server.get("/tokenizer_info").json()
    assert server.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False}).json()["count"] == 1
    assert (info["vocab_size"], info["model_max_length"]) == (300, 256)
    assert "im_start" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(
    server: ServerProcess, path: str, body: dict[str, Any], param: str
) -> None:
    response = server.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_chat_returns_the_tokens_of_each_choice_streamed_or_whole(server: ServerProcess) -> None:
    body = {**SAMPLED, "messages": MESSAGES, "n": 2}
    whole = server.post("/v1/chat/completions", body).json()
    ids = {c["index"]: c["token_ids"] for c in whole["choices"]}
    assert sum(map(len, ids.values())) == whole["usage"]["completion_tokens"]
    text = server.post("/detokenize", {"tokens": ids[0]}).json()["prompt"]
    assert text.startswith(whole["choices"][0]["message"]["content"])
    streamed: dict[int, list[int]] = {0: [], 1: []}
    events = server.events("/v1/chat/completions", body)[:-1]
    for event in events:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice.get("token_ids", [])
    assert streamed == ids
    assert [e["prompt_token_ids"] for e in events if "prompt_token_ids" in e] == [whole["prompt_token_ids"]]


def test_completions_return_the_tokens_of_prompt_and_choice(server: ServerProcess) -> None:
    body = {**SAMPLED, "prompt": ["hello", "zebra"], "stop": "e"}
    whole = server.post("/v1/completions", body).json()
    assert whole["choices"][1]["prompt_token_ids"] == [3 + byte for byte in b"zebra"]
    streamed: dict[int, list[int]] = {0: [], 1: []}
    for event in server.events("/v1/completions", body)[:-1]:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice.get("token_ids", [])
    assert streamed == {c["index"]: c["token_ids"] for c in whole["choices"]}
    assert sum(map(len, streamed.values())) == whole["usage"]["completion_tokens"]


def test_unasked_nothing_is_said_of_tokens(server: ServerProcess) -> None:
    text = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2}).text
    assert "token_ids" not in text
    assert "prompt_logprobs" not in text


def test_chat_scores_its_prompt_as_a_completion_of_the_same_tokens_does(server: ServerProcess) -> None:
    body = {**SAMPLED, "messages": MESSAGES, "prompt_logprobs": 2}
    chat = server.post("/v1/chat/completions", body).json()
    text = {"prompt": chat["prompt_token_ids"], "max_tokens": 1, "prompt_logprobs": 2}
    assert chat["prompt_logprobs"] == server.post("/v1/completions", text).json()["choices"][0]["prompt_logprobs"]
    first = server.events("/v1/chat/completions", body)[0]
    assert first["prompt_logprobs"] == chat["prompt_logprobs"]
