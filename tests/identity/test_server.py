"""The same crowd through `puna serve`: all at once over HTTP, and each request as it is answered in this process."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from puna.engine.params import EngineRequest
from puna.kernels.cpu import paths
from puna.models.load import load_model
from tests.engine.driving import Sample, Samples
from tests.identity.conftest import Bench, Numerics
from tests.identity.crowd import together
from tests.server.process import ServerProcess


@pytest.fixture(scope="module", params=paths())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(tiny: Bench, isa: str) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny.crowd.path), "--threads", "2", "--kv-gib", "0.01", "--isa", isa)
    yield running
    running.kill()


def body(request: EngineRequest, **changes: Any) -> dict[str, Any]:
    wanted = {name: getattr(request.params, name) for name in request.params.__struct_fields__}
    return {"prompt": request.prompt_token_ids} | {k: v for k, v in wanted.items() if v not in (None, [], {})} | changes


def ask(server: ServerProcess, bodies: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The choices of each body, all asked at once."""
    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=64), verify=False) as client,
        concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool,
    ):
        answers = list(pool.map(lambda one: client.post(f"{server.url}/v1/completions", json=one), bodies))
    assert [answer.status_code for answer in answers] == [200] * len(bodies), [a.text for a in answers if a.is_error]
    return [answer.json()["choices"] for answer in answers]


def unlike(bench: Bench, choices: list[dict[str, Any]], samples: list[Sample]) -> list[int]:
    """Places where a choice is not the sample: spelling of every token, its log-probability, reason of the end."""
    tokenizer = load_model(bench.crowd.path).tokenizer

    def spelled(token: int) -> str:
        raw = tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def expected(sample: Sample) -> tuple[Any, ...]:
        return [spelled(token) for token in sample.tokens], sample.values, sample.finish_reason

    def found(choice: dict[str, Any]) -> tuple[Any, ...]:
        return choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]

    return [i for i, (c, s) in enumerate(zip(choices, samples, strict=True)) if found(c) != expected(s)]


def in_order(bench: Bench, wanted: Samples) -> list[Sample]:
    return [wanted[request.request_id, 0] for request in bench.crowd.requests]


def test_the_server_answers_a_crowd_as_the_engine_answers_each_request_alone(
    server: ServerProcess, tiny: Bench, isa: str
) -> None:
    """Twice: the second time most of every prompt is in the cache."""
    wanted = in_order(tiny, tiny.wanted(Numerics(isa), together))
    for _ in range(2):
        choices = [choice for (choice,) in ask(server, [body(request) for request in tiny.crowd.requests])]
        assert unlike(tiny, choices, wanted) == []
    server.wait_until_idle()


def test_samples_of_one_request_to_the_server_are_requests_with_the_seeds_that_follow(
    server: ServerProcess, tiny: Bench
) -> None:
    asked = tiny.crowd.requests[1::4]
    together_asked = ask(server, [body(request, n=3) for request in asked])
    for i in range(3):
        singles = ask(server, [body(request, seed=(request.params.seed or 0) + i) for request in asked])
        for choices, (single,) in zip(together_asked, singles, strict=True):
            assert choices[i]["index"] == i
            assert {**choices[i], "index": 0} == single


def test_answers_of_a_core_whose_sums_depend_on_the_batch_are_told_from_the_servers(
    server: ServerProcess, tiny: Bench, isa: str
) -> None:
    broken = in_order(tiny, tiny.answers(Numerics(isa, broken=True), together))
    choices = [choice for (choice,) in ask(server, [body(request) for request in tiny.crowd.requests])]
    assert len(unlike(tiny, choices, broken)) > 10
