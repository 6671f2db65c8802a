"""What Puna wants to reach beside its peers, and whether it does: ratios, medians, and the table of them.

Knows figures by name, no engine. A figure is a list of values, one a round; a ratio is taken within rounds, so that a
slow minute of the machine meets both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Sequence[float]]  # of one engine: the figure's name -> values

TITLES = {
    "decode1": "decode, one stream, tokens/s",
    "decode8": "decode part of 8 sequences, tokens/s",
    "prefill512": "prefill of 512, tokens/s",
    "prefill2048": "prefill of 2,048, tokens/s",
    "batch32": "32 x (128 in + 128 out), output tokens/s",
    "sampled32": "the same at temperature 1, top-p 0.95, own seeds",
    "shared32": "32 on a shared prefix of 1,000, 32 out, seconds",
    "first_token": "command to first token, seconds",
    "memory": "resident beside weights and pool, MB",
    "serve1": "1 client, output tokens/s",
    "serve8": "8 clients, output tokens/s",
    "serve32": "32 clients, output tokens/s",
    "ttft99": "32 clients, 99th percentile of first tokens, seconds",
    "prefix32": "32 clients on a prefix of 1,000, 32 out, seconds",
    "http_us": "HTTP process, microseconds of CPU a streamed token",
    "engine_share": "engine's CPU a token, over offline",
    "ready": "command to first answer, seconds",
}
LOWER_IS_BETTER = {"shared32", "first_token", "memory", "ttft99", "prefix32", "http_us", "engine_share", "ready"}
OURS = "Puna"


@dataclass(frozen=True)
class Bar:
    """Puna's figure is at least `factor` times that of the best engine whose name begins with one of `against`, or its
    own figure `own`; or, where there is nothing to compare with, at most `factor` itself."""

    figure: str
    factor: float
    against: tuple[str, ...] = ()
    own: str | None = None


Q4_0, SAME_FILE, VLLM = ("llama.cpp Q4_0",), ("llama.cpp same file",), ("vLLM",)
SERVED = (*Q4_0, *VLLM)
SERVE_BARS = (
    Bar("serve1", 1.5, SERVED),
    Bar("serve8", 2.5, SERVED),
    Bar("serve32", 2.0, SERVED),
    Bar("ttft99", 2.0, SERVED),
    Bar("prefix32", 3.0, SERVED),
    Bar("http_us", 200.0),
    Bar("engine_share", 1.05),
    Bar("ready", 2.0),
)
BARS = (
    Bar("decode1", 1.5, Q4_0),
    Bar("decode1", 2.3, SAME_FILE),
    Bar("decode8", 2.5, Q4_0),
    Bar("prefill512", 1.45, VLLM),
    Bar("prefill512", 2.0, Q4_0),
    Bar("prefill2048", 1.45, VLLM),
    Bar("prefill2048", 2.0, Q4_0),
    Bar("batch32", 2.0, VLLM),
    Bar("batch32", 2.7, Q4_0),
    Bar("sampled32", 0.95, own="batch32"),
    Bar("shared32", 3.0, VLLM),
    Bar("first_token", 1.0),
    Bar("memory", 150.0),
)


def judge(engines: Mapping[str, Figures], bars: Sequence[Bar] = BARS) -> list[dict[str, Any]]:
    """One entry a bar that can be judged: against whom, the ratio's median, least and most, and whether it holds."""
    found = []
    for bar in bars:
        ours = engines.get(OURS, {}).get(bar.figure)
        if not ours:
            continue
        rival = _rival(bar, engines)
        if rival is None:
            continue
        name, theirs = rival
        lower = bar.figure in LOWER_IS_BETTER
        ratios = list(ours)
        if theirs is not None:
            pairs = zip(ours, theirs, strict=False)
            ratios = [their / our if lower else our / their for our, their in pairs]
        median = statistics.median(ratios)
        found.append(
            {
                "figure": bar.figure,
                "against": name,
                "wanted": bar.factor,
                "median": median,
                "low": min(ratios),
                "high": max(ratios),
                "holds": median >= bar.factor if theirs is not None else median <= bar.factor,
                "is_ratio": theirs is not None,
            }
        )
    return found


def table(engines: Mapping[str, Figures]) -> str:
    """Markdown: a row a figure, a column an engine; median, and the least and the most where there are several."""
    names = list(engines)
    lines = ["| " + " | ".join(["", *names]) + " |", "|---" * (len(names) + 1) + "|"]
    for figure, title in TITLES.items():
        cells = [_cell(engines[name].get(figure)) for name in names]
        if any(cells):
            lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def verdicts(judged: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a bar."""
    lines = ["| figure | beside | wanted | measured | least to most | holds |", "|---|---|---|---|---|---|"]
    for entry in judged:
        times = "x" if entry["is_ratio"] else ""
        at = "at least" if entry["is_ratio"] else "at most"
        low, high = _number(entry["low"]), _number(entry["high"])
        lines.append(
            f"| {TITLES[entry['figure']].rsplit(', ', 1)[0]} | {entry['against']} | {at} {entry['wanted']:g}{times} "
            f"| {_number(entry['median'])}{times} | {low} to {high} | {'yes' if entry['holds'] else '**no**'} |"
        )
    return "\n".join(lines)


def _rival(bar: Bar, engines: Mapping[str, Figures]) -> tuple[str, Sequence[float] | None] | None:
    if bar.own is not None:
        own = engines[OURS].get(bar.own)
        return (f"{OURS} greedy", own) if own else None
    if not bar.against:
        return "", None
    rivals = {
        name: figures[bar.figure]
        for name, figures in engines.items()
        if name.startswith(bar.against) and figures.get(bar.figure)
    }
    if not rivals:
        return None
    choose = min if bar.figure in LOWER_IS_BETTER else max
    best = choose(rivals, key=lambda name: statistics.median(rivals[name]))
    return best, rivals[best]


def _cell(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    spread = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
    return _number(statistics.median(values)) + spread


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
