"""From the answers of one run to figures of those that behave, and of what the server did for all others meanwhile.

Only what came within the window counts: tokens by the moment at which their text came, first tokens of requests that
were sent in it. What the others used is what the server's own counters have beyond those that behave.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from peer_servers import processor_s

from puna.bench.load import Session
from puna.bench.streaming import Answer
from puna.workloads.spread import percentile


@dataclass(frozen=True)
class Crowd:
    """Of those that send garbage: `pause_s`: mean time between attempts; `wait_s`: for an answer, 0: long."""

    name: str
    behaving: int
    leaving: int
    garbage: int
    pause_s: float = 0.0
    wait_s: float = 0.0


@dataclass
class Window:
    """Two looks at the server. Times are those of `time.perf_counter`."""

    begun: float
    first: dict[str, float]
    engine_s: float
    generator_s: float
    outcomes: Counter[str]
    ended: float = 0.0
    last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, look: dict[str, float], outcomes: Counter[str]) -> Window:
        return cls(time.perf_counter(), look, processor_s(int(look["engine_pid"])), time.process_time(), +outcomes)

    def close(self, look: dict[str, float], outcomes: Counter[str]) -> None:
        self.ended, self.last = time.perf_counter(), look
        self.engine_s = processor_s(int(look["engine_pid"])) - self.engine_s
        self.generator_s = time.process_time() - self.generator_s
        self.outcomes = outcomes - self.outcomes

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    def added(self, name: str) -> float:
        return self.last[name] - self.first[name]

    def holds(self, moment: float) -> bool:
        return self.begun <= moment < self.ended


def figures(
    crowd: Crowd, window: Window, answers: list[tuple[int, float, Session, Answer]], failures: list[str]
) -> dict[str, Any]:
    tokens = dict.fromkeys(range(crowd.behaving), 0.0)
    firsts, gaps, prompts = list[float](), list[float](), 0
    for number, begun, _, answer in answers:
        if number < 0 or not answer.arrivals_s:
            continue
        inside = sum(window.holds(moment) for moment in answer.arrivals_s)
        tokens[number] += inside * answer.output_tokens / len(answer.arrivals_s)  # a piece may be two tokens
        gaps += [b - a for a, b in itertools.pairwise(answer.arrivals_s) if window.holds(b)]
        if window.holds(begun):
            firsts.append(answer.arrivals_s[0] - begun)
        if window.holds(answer.arrivals_s[0]):
            prompts += answer.prompt_tokens - answer.cached_tokens
    seconds, total = window.seconds, sum(tokens.values())
    generated, computed = window.added("generation_tokens_total"), window.added("computed_tokens_total")
    return {
        "clients": crowd.behaving,
        "seconds": seconds,
        "requests": len(firsts),
        "failures": failures,
        "left": window.outcomes["left"],
        "garbage": window.outcomes["garbage"],
        "tokens_s_each": total / crowd.behaving / seconds,
        "tokens_s_least": min(tokens.values()) / seconds,
        "others_output_share": max(0.0, 1 - total / generated),
        "others_computed_share": max(0.0, 1 - (total + prompts) / computed),
        "engine_cores": window.engine_s / seconds,
        "http_cores": window.added("http_cpu_seconds_total") / seconds,
        "generator_cores": window.generator_s / seconds,
        "firsts_s": firsts,
        "gaps_s": [percentile(gaps, share / 100) for share in range(1, 101)],
        "first_p50_s": percentile(firsts, 0.5),
        "first_p99_s": percentile(firsts, 0.99),
        "gap_p50_s": percentile(gaps, 0.5),
        "gap_p99_s": percentile(gaps, 0.99),
    }
