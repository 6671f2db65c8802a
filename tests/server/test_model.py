"""The server with a real model: the same tokens streamed, whole, in a crowd and in-process."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import puna
from tests.server.process import ServerProcess

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
PROMPTS = ["The three primary colours are", "Once upon a time", "2 + 2 =", "def fibonacci(n):"]


@pytest.fixture(scope="module")
def smollm2() -> Iterator[ServerProcess]:
    running = ServerProcess.start("smollm2", "--max-model-len", "2048")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def official(smollm2: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened


def test_a_factual_question_is_answered(official: openai.OpenAI) -> None:
    answer = official.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0, max_tokens=20)
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_joined_is_the_whole_answer(official: openai.OpenAI, temperature: float) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Write one line in Japanese, with an emoji."}],
        "temperature": temperature,
        "max_tokens": 40,
        "seed": 11,
    }
    whole = official.chat.completions.create(**asked).choices[0]
    pieces, reasons = [], []
    for chunk in official.chat.completions.create(**asked, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
        reasons.append(chunk.choices[0].finish_reason)
    assert "".join(pieces) == whole.message.content
    assert reasons[-1] == whole.finish_reason


def test_the_server_gives_the_tokens_of_the_offline_api(smollm2: ServerProcess) -> None:
    params = puna.SamplingParams(temperature=0.8, seed=5, max_tokens=12, logprobs=0)
    with puna.LLM("smollm2", max_model_len=2048) as llm:
        expected = [output.outputs[0] for output in llm.generate(PROMPTS, params, use_tqdm=False)]
    body = {"prompt": PROMPTS, "temperature": 0.8, "seed": 5, "max_tokens": 12, "logprobs": 0}
    choices = smollm2.post("/v1/completions", body).json()["choices"]
    assert [choice["text"] for choice in choices] == [output.text for output in expected]
    for choice, output in zip(choices, expected, strict=True):
        assert output.logprobs is not None
        offline = [entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
        assert choice["logprobs"]["token_logprobs"] == offline


def test_a_crowd_changes_no_answer(smollm2: ServerProcess) -> None:
    bodies = [{"prompt": prompt, "temperature": 0.9, "seed": i, "max_tokens": 16} for i, prompt in enumerate(PROMPTS)]

    def ask(body: dict[str, Any]) -> str:
        return str(smollm2.post("/v1/completions", body).json()["choices"][0]["text"])

    alone = [ask(body) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(ask, bodies)) == alone
    smollm2.wait_until_idle()


def test_a_small_model_whose_template_knows_no_tools_calls_as_it_is_forced_to(official: openai.OpenAI) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    about = {"name": "get_weather", "description": "Weather of a city", "parameters": city}
    asked: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    tools: Any = [{"type": "function", "function": about}]
    answer = official.chat.completions.create(
        model="smollm2", messages=asked, tools=tools, tool_choice="required", temperature=0, max_tokens=60
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert answer.choices[0].finish_reason == "tool_calls"
