"""Every field of a body is heard: sampling parameters reach the engine from every endpoint, and the page names all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from puna.engine.params import SamplingParams
from puna.engine.structure import StructuredOutputs
from puna.server import structure
from puna.server.messages import request as messages
from puna.server.requests import ChatRequest, CompletionRequest, StreamOptions
from puna.server.responses import request as responses
from puna.server.sampling import chat_params, completion_params
from puna.server.tokens import DetokenizeRequest, TokenizeRequest
from tests.server.process import ServerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()

# Of every parameter a value that is not its default.
SAME: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "presence_penalty": -0.4,
    "logit_bias": {5: 2.0},
    "allowed_token_ids": [5, 6],
    "bad_words": ["salt"],
    "min_tokens": 3,
    "stop_token_ids": [9],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "seed": 11,
    "skip_special_tokens": False,
    "truncate_prompt_tokens": 40,
    "structured_outputs": {"regex": "a+"},
}
OF_CHOICES: dict[str, Any] = {"n": 3, "best_of": 5, "stop": ["end"], "prompt_logprobs": 1, "max_tokens": 21}
ONE_ANSWER = {"n", "best_of", "prompt_logprobs"}  # what responses and messages have no place for

BEAMS: dict[str, Any] = {"beam_width": 4, "length_penalty": 0.5, "early_stopping": True}  # which take little else

CHAT = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 4, **SAME, **OF_CHOICES}
COMPLETION = {"prompt": "x", "logprobs": 4, **SAME, **OF_CHOICES}
RESPONSE = {"input": "x", "max_output_tokens": 21, "top_logprobs": 4, "stop": ["end"], **SAME}
MESSAGE = {"messages": [], "max_tokens": 21, "stop_sequences": ["end"], **SAME}


@pytest.mark.parametrize(
    ("body", "kind", "params_of", "missing"),
    [
        (CHAT, ChatRequest, chat_params, set()),
        (COMPLETION, CompletionRequest, completion_params, set()),
        (RESPONSE, responses.ResponsesRequest, responses.params_of, ONE_ANSWER),
        (MESSAGE, messages.MessagesRequest, messages.params_of, ONE_ANSWER | {"logprobs"}),
    ],
)
def test_every_sampling_parameter_reaches_the_engine_from_every_endpoint(
    body: dict[str, Any], kind: Any, params_of: Callable[[Any], SamplingParams], missing: set[str]
) -> None:
    params = params_of(msgspec.json.decode(msgspec.json.encode(body), type=kind))
    form = StructuredOutputs(regex="a+")
    wanted = {**SAME, **OF_CHOICES, "logprobs": 4, "structured_outputs": form}
    assert set(wanted) | set(BEAMS) == set(SamplingParams.__struct_fields__)
    assert {name: getattr(params, name) for name in wanted if name not in missing} == {
        name: value for name, value in wanted.items() if name not in missing
    }


@pytest.mark.parametrize(
    ("body", "kind", "params_of"),
    [(CHAT, ChatRequest, chat_params), (COMPLETION, CompletionRequest, completion_params)],
)
def test_what_beams_take_reaches_the_engine(
    body: dict[str, Any], kind: Any, params_of: Callable[[Any], SamplingParams]
) -> None:
    prompt = {name: body[name] for name in ("messages", "prompt") if name in body}
    asked = {"use_beam_search": True, "n": 2, "best_of": 4, "length_penalty": 0.5, "early_stopping": True}
    params = params_of(msgspec.json.decode(msgspec.json.encode({**prompt, **asked}), type=kind))
    assert {name: getattr(params, name) for name in BEAMS} == BEAMS
    assert params.n == 2


def fields() -> Iterator[str]:
    for kind in (
        ChatRequest,
        CompletionRequest,
        StreamOptions,
        structure.ResponseFormat,
        structure.JsonSchemaFormat,
        structure.TextFormat,
        structure.FormFields,
        messages.OutputConfig,
        TokenizeRequest,
        DetokenizeRequest,
        responses.ResponsesRequest,
        responses.TextOptions,
        responses.Reasoning,
        responses.Obfuscation,
        messages.MessagesRequest,
        messages.Metadata,
    ):
        yield from kind.__struct_fields__


def test_the_page_names_every_field_of_every_body() -> None:
    prose = re.sub(r"(?ms)^```.*?^```", "", PAGE)
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", prose))))
    assert sorted(set(fields()) - named) == []


@pytest.mark.parametrize("change", [{"stream_options": {"include_usage": True}}, {"text": {"shape": 1}}])
def test_options_inside_options_that_nobody_reads_are_named(server: ServerProcess, change: dict[str, Any]) -> None:
    """A response's usage comes in its last event, asked for or not."""
    response = server.post("/v1/responses", {"input": "x", "max_output_tokens": 2, "stream": True, **change})
    ((outer, inner),) = change.items()
    assert response.headers["puna-ignored"] == f"{outer}.{next(iter(inner))}"


BODIES: dict[str, tuple[type, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    "/v1/completions": (CompletionRequest, {"prompt": "x", "max_tokens": 1}),
    "/v1/responses": (responses.ResponsesRequest, {"input": "x", "max_output_tokens": 1}),
    "/v1/responses/input_tokens": (responses.ResponsesRequest, {"input": "x"}),
    "/v1/messages": (messages.MessagesRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    "/v1/messages/count_tokens": (messages.Asked, {"messages": [{"role": "user", "content": "x"}]}),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
}
# The page says of these that they change nothing.
WITHOUT_EFFECT = {"cache_control", "prompt_cache_options"}


@pytest.mark.parametrize("path", BODIES)
def test_a_feature_that_is_not_here_is_refused_wherever_its_field_is_known(server: ServerProcess, path: str) -> None:
    kind, body = BODIES[path]
    off = [
        field.name for field in msgspec.structs.fields(kind) if field.type is Any and field.name not in WITHOUT_EFFECT
    ]
    assert len(off) >= (2 if path == "/tokenize" else 5)
    for name in off:
        answer = server.post(path, {**body, name: {"asks": "for something"}})
        assert (answer.status_code, answer.json()["error"].get("param", name)) == (400, name), (name, answer.text)


# What contradicts itself, and the field that the refusal names.
CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {"prompt": "x", "add_special": True, "add_special_tokens": False}, "add_special"),
    (
        "/v1/completions",
        {"prompt": "x", "stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": False}},
        "stream_options.continuous_usage_stats",
    ),
    ("/v1/completions", {"prompt": "x", "max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
    (
        "/v1/responses",
        {"input": "x", "truncation": "disabled", "truncate_prompt_tokens": -1},
        "truncate_prompt_tokens",
    ),
    ("/v1/responses", {"input": "x", "truncation": "auto", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(
    server: ServerProcess, path: str, body: dict[str, Any], param: str
) -> None:
    answer = server.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_two_names_for_one_thing_that_agree_are_fine(server: ServerProcess) -> None:
    body = {"prompt": "x", "add_special": False, "add_special_tokens": False}
    assert server.post("/tokenize", body).status_code == 200
    cut = {"input": "x", "max_output_tokens": 1, "truncation": "auto", "truncate_prompt_tokens": -1}
    assert server.post("/v1/responses", cut).status_code == 200


def test_an_input_that_would_be_cut_is_counted_as_it_would_be_read(server: ServerProcess) -> None:
    """The last question stays, of the turns before it what there is room for."""
    turns: list[Any] = [{"role": "user", "content": "x" * 150}, {"role": "assistant", "content": "y"}] * 3
    body = {"input": [*turns, {"role": "user", "content": "what?"}]}
    cut = {**body, "truncation": "auto", "max_output_tokens": 20}
    whole = server.post("/v1/responses/input_tokens", body)
    counted = server.post("/v1/responses/input_tokens", cut)
    assert "puna-ignored" not in counted.headers
    assert whole.json()["input_tokens"] > 256 > counted.json()["input_tokens"]
    answer = server.post("/v1/responses", cut)
    assert answer.json()["usage"]["input_tokens"] == counted.json()["input_tokens"]


def test_the_page_has_every_path_and_every_metric(server: ServerProcess) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    shown = [re.sub(r"\{\w+\}", "NAME" if "models" in path else "ID", path) for path in paths]
    assert [path for path in shown if f"{path}`" not in PAGE] == []
    metrics = re.findall(r"^# TYPE puna:(\w+)", server.get("/metrics").text, re.MULTILINE)
    assert len(metrics) > 20
    assert [name for name in metrics if f"`{name}" not in PAGE] == []
