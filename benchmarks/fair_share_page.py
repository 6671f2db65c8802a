"""What fair_share.py found, as the table that docs/performance.md shows, and whether the rest got their share.

The rule: a crowd in which some leave and some send garbage is compared, round by round, with as many clients that all
behave. A client that leaves and one that sends garbage may take what a client that behaves takes, and no more. The
clients run on the server's machine: what their process takes beyond that of clients that behave is no doing of the
server, and is left out.
"""

from __future__ import annotations

import statistics
from typing import Any

from puna.workloads.spread import percentile

BEGIN, END = "<!-- fair share: begin -->", "<!-- fair share: end -->"
LEAST = 0.97  # of what each of 32 that behave gets: what measuring twice differs by
MOST = 1.10  # of their times


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each promise, what was found, and whether it was kept."""
    runs, names = result["runs"], list(result["runs"])
    failures = [failure for name in names for run in runs[name] for failure in run["failures"]]
    requests = sum(run["requests"] for name in names for run in runs[name])
    found = [
        _verdict("no request of the rest fails, no garbage is a 5xx", f"{len(failures)} of {requests:,}", not failures)
    ]
    for name in names[1:]:
        if not any(run["left"] or run["garbage"] for run in runs[name]):
            continue
        pace, left = ratio(runs, name, "tokens_s_each"), left_by_clients(runs, name)
        promise = f"{name}: tokens of each, over those of each of 32"
        found.append(_verdict(promise, f"{pace:.3f}, where the clients left {left:.3f}", pace >= LEAST * left))
        for figure, text in (("first", "first token"), ("gap", "time between tokens")):
            middle = ratio(runs, name, f"{figure}_p50_s")
            found.append(_verdict(f"{name}: {text}, the median over theirs", f"{middle:.2f}", middle <= MOST))
    return found


def ratio(runs: dict[str, list[dict[str, Any]]], name: str, figure: str) -> float:
    """Median over the rounds of a figure over that of the first crowd in the same round."""
    first = next(iter(runs))
    return statistics.median(
        run[figure] / max(1e-9, base[figure]) for run, base in zip(runs[name], runs[first], strict=True)
    )


def left_by_clients(runs: dict[str, list[dict[str, Any]]], name: str) -> float:
    """The share of the engine's processor time that clients leave it which need more of their own than the first."""
    first = runs[next(iter(runs))]
    return statistics.median(
        min(1.0, 1 - (run["generator_cores"] - base["generator_cores"]) / base["engine_cores"])
        for run, base in zip(runs[name], first, strict=True)
    )


def page(result: dict[str, Any]) -> str:
    machine, runs = result["machine"], result["runs"]
    heads = [
        "",
        "tokens/s of each",
        "over the first",
        "first token p50, p99",
        "between tokens p50, p99",
        "left, garbage",
    ]
    heads += ["the others' share of tokens out, of all computed", "cores: engine, HTTP, clients"]
    rows = [_row(runs, name) for name in runs]
    return "\n".join(
        [
            f"{machine['date']}; {machine['processor']}, {machine['usable_threads']} cores; Puna {machine['puna']}; "
            f"{result['model']}; rounds: {len(next(iter(runs.values())))} of {result['seconds']:g} s each. "
            f"Others had {machine['others_share']:.1%} of the machine. Medians of rounds; first tokens' p99 is of all.",
            "",
            "| " + " | ".join(heads) + " |",
            "|---" * len(heads) + "|",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            "| promise | found | |",
            "|---|---|---|",
            *(
                f"| {each['promise']} | {each['found']} | {'kept' if each['kept'] else '**BROKEN**'} |"
                for each in judge(result)
            ),
        ]
    )


def _row(runs: dict[str, list[dict[str, Any]]], name: str) -> list[str]:
    mine = runs[name]

    def middle(figure: str) -> float:
        return statistics.median(run[figure] for run in mine)

    firsts = [first for run in mine for first in run["firsts_s"]]
    paces = [run["tokens_s_each"] for run in mine]
    return [
        name,
        f"{middle('tokens_s_each'):.1f} ({min(paces):.1f} to {max(paces):.1f})",
        f"{ratio(runs, name, 'tokens_s_each'):.3f}",
        f"{middle('first_p50_s'):.2f} s, {percentile(firsts, 0.99):.2f} s",
        f"{1e3 * middle('gap_p50_s'):.0f} ms, {1e3 * middle('gap_p99_s'):.0f} ms",
        f"{sum(run['left'] for run in mine):,}, {sum(run['garbage'] for run in mine):,}",
        f"{middle('others_output_share'):.0%}, {middle('others_computed_share'):.0%}",
        f"{middle('engine_cores'):.2f}, {middle('http_cores'):.2f}, {middle('generator_cores'):.2f}",
    ]


def _verdict(promise: str, found: str, kept: bool) -> dict[str, Any]:
    return {"promise": promise, "found": found, "kept": kept}
