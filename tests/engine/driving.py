"""Requests made by hand, and engines run to the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from puna.engine.core import Engine
from puna.engine.params import EngineRequest, PositionLogprobs, SampleUpdate, SamplingParams

EOS = 2


@dataclass
class Sample:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None

    def take(self, update: SampleUpdate) -> None:
        assert self.finish_reason is None, "nothing comes after the end"
        self.tokens += update.token_ids
        self.logprobs += update.logprobs or []
        if update.prompt_logprobs is not None:
            self.prompt_logprobs = update.prompt_logprobs
        if update.cached_tokens is not None:
            assert self.cached_tokens is None
            self.cached_tokens = update.cached_tokens
        self.finish_reason, self.stop_token_id = update.finish_reason, update.stop_token_id
        self.error = update.error

    @property
    def values(self) -> list[float]:
        return [entry.token.logprob for entry in self.logprobs]


Samples = dict[tuple[str, int], Sample]


def request(request_id: str, prompt: list[int], **params: Any) -> EngineRequest:
    """`params` may hold fields of the request, too."""
    own = {name: params.pop(name) for name in EngineRequest.__struct_fields__ if name in params}
    own.setdefault("eos_token_ids", [EOS])
    wanted = {"seed": 0, "temperature": 1.5, "max_tokens": 12, "logprobs": 1} | params
    return EngineRequest(request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(**wanted), **own)


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, length).tolist()


def finish(engine: Engine, samples: Samples | None = None, steps: int | None = None) -> Samples:
    """Steps until nothing is left (or `steps` times), collecting into `samples`."""
    found = defaultdict(Sample) if samples is None else samples
    while engine.has_work and steps != 0:
        for update in engine.step():
            found.setdefault((update.request_id, update.index), Sample()).take(update)
        steps = None if steps is None else steps - 1
    return found


def run(engine: Engine, *requests: EngineRequest) -> Samples:
    for one in requests:
        engine.add(one)
    return finish(engine)


def assert_same(found: Sample, wanted: Sample, *, exact: bool) -> None:
    """The same tokens; the same log-probabilities, to the last bit where `exact`."""
    assert found.tokens == wanted.tokens
    assert found.finish_reason == wanted.finish_reason
    if exact:
        assert found.logprobs == wanted.logprobs
    else:
        np.testing.assert_allclose(found.values, wanted.values, atol=1e-4)
