"""The crowds of requests, engines for them on a chosen instruction path, and what each sample gets alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.models.names import resolve
from tests.engine.driving import Samples
from tests.identity.crowd import Crowd, EngineMaker, alone, crowd_of, forked, with_samples
from tests.tiny import write_tiny_llama


@dataclass(frozen=True)
class Numerics:
    """What may decide the bits of an answer. `broken`: sums in an order that depends on the batch."""

    isa: str
    compute: str = "int8"
    broken: bool = False


@dataclass
class Bench:
    """Engines for one crowd, and the answers of requests that ran alone, computed once for each kind of numerics."""

    crowd: Crowd
    known: dict[tuple[Numerics, bool], Samples] = field(default_factory=dict)

    def answers(self, numerics: Numerics, way: Callable[[EngineMaker, Crowd], Samples]) -> Samples:
        with _Engines(self.crowd, numerics) as make:
            return way(make, self.crowd)

    def wanted(self, numerics: Numerics, way: Callable[[EngineMaker, Crowd], Samples]) -> Samples:
        """What the samples of `way` get alone."""
        key = (numerics, way is forked)
        if key not in self.known:
            crowd = with_samples(self.crowd) if way is forked else self.crowd
            with _Engines(self.crowd, numerics) as make:
                self.known[key] = alone(make, crowd.requests)
        return self.known[key]


class _Engines:
    """Makes engines and closes them; none may hold anything in the end."""

    def __init__(self, crowd: Crowd, numerics: Numerics) -> None:
        self._crowd = crowd
        self._numerics = numerics
        self._made: list[Engine] = []

    def __enter__(self) -> EngineMaker:
        return self._make

    def _make(self, **options: Any) -> Engine:
        defaults: dict[str, Any] = {
            "model": str(self._crowd.path),
            "isa": self._numerics.isa,
            "compute": self._numerics.compute,
            "threads": 2,
            "budget_tokens": 256,
            "kv_bytes": 600 * self._crowd.block_bytes,
        }
        engine = Engine(EngineConfig(**(defaults | options)))
        if self._numerics.broken:
            engine.backend.interpreter.break_batch_invariance(True)  # type: ignore[attr-defined]
        self._made.append(engine)
        return engine

    def __exit__(self, *_: object) -> None:
        for engine in self._made:
            stats = engine.scheduler.stats()
            engine.close()
            assert (stats.blocks_used, stats.tier_used, stats.waiting, stats.running) == (0, 0, 0, 0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A random model of three layers whose matrices are of four types."""
    types = {"token_embd": "Q8_0", "ffn_down": "Q4_0", "attn_v": "F16", "": "Q4_1"}
    path = tmp_path_factory.mktemp("identity") / "tiny.gguf"
    # Sums of three and five groups: two groups add up to the same in either order.
    write_tiny_llama(path, layers=3, width=96, ffn=160, types=types, tied=False)
    return Bench(crowd_of(path, (1, 3, 7, 15, 16, 17, 31, 33, 48, 64, 90), (1, 4, 8, 12, 2, 17), 40))


@pytest.fixture(scope="session")
def smollm2() -> Bench:
    """A real model, fewer tokens: most prompts end just before the end of a block."""
    return Bench(crowd_of(resolve("smollm2"), (15, 14, 2, 16, 12, 23, 5), (3, 4, 1, 2), 17))


@pytest.fixture(scope="session")
def smollm2_few(smollm2: Bench) -> Bench:
    return Bench(smollm2.crowd.first(24))
