"""What a soak found, as the page that docs/performance.md shows, and as a plot."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
PHASES = ("schedule", "prepare", "forward", "sample", "deliver", "transport")


def page(result: dict[str, Any]) -> str:
    machine, samples, outcomes = result["machine"], result["samples"], result["outcomes"]
    first, last = samples[0], samples[-1]
    seconds = max(1e-9, last["at_s"] - first["at_s"])

    def added(name: str) -> float:
        return float(last.get(name, 0) - first.get(name, 0))

    ends = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items(), key=lambda pair: -pair[1]))
    hits = added("prefix_cache_hits_total") / max(1.0, added("prefix_cache_queries_total"))
    out, prompts = (added(f"{name}_tokens_total") / seconds for name in ("generation", "prompt"))
    spent = {phase: added(f"{phase}_s") for phase in PHASES}
    shares = ", ".join(f"{phase} {value / max(1e-9, sum(spent.values())):.1%}" for phase, value in spent.items())
    lines = [
        f"{machine['date']}; {machine['processor']}, {machine['usable_threads']} cores; Puna {machine['puna']}; "
        f"{result['model']}; {result['clients']} clients, of whom {result['leaving']} leave and {result['garbage']} "
        f"send garbage, {result['minutes']:g} minutes. Other processes had {machine['others_share']:.0%} of the machine"
        f"{result['beside'] and ': ' + result['beside']}.",
        "",
        "| promise | found | |",
        "|---|---|---|",
        *(
            f"| {each['promise']} | {each['found']} | {'kept' if each['kept'] else '**BROKEN**'} |"
            for each in result["verdicts"]
        ),
        "",
        f"Requests: {ends}; {result['marked']:,} of the answers were to marked questions. {out:.0f} tokens a second "
        f"out, {prompts:.0f} in, of which {hits:.0%} were in the prefix cache; {added('num_preemptions_total'):,.0f} "
        f"sequences gave way to others; {added('steps_total'):,.0f} steps: {shares}. The HTTP process took "
        f"{added('http_cpu_seconds_total') / seconds:.0%} of a core.",
        "",
        _memory(samples),
    ]
    kinds = Counter(failure.rsplit(": ", 1)[-1] for failure in result["failures"])
    said = [f"Of {count} failures that were kept: `{kind}`." for kind, count in kinds.most_common(5)]
    return "\n".join([*lines, *([""] if said else []), *said]).rstrip()


def _memory(samples: list[dict[str, float]]) -> str:
    """First, after a third, last: what the processes held."""
    places = (0, len(samples) // 3, len(samples) - 1)
    rows = ["| | " + " | ".join(f"after {samples[i]['at_s'] / 60:.0f} min" for i in places) + " |", "|---|---|---|---|"]
    figures = {
        "HTTP process, private MB": "http_private_mb",
        "engine, private MB": "engine_private_mb",
        "HTTP process, resident MB": "http_resident_mb",
        "engine, resident MB": "engine_resident_mb",
        "HTTP process, open files": "http_files",
        "engine, open files": "engine_files",
        "blocks in use": "blocks_used",
    }
    rows += [
        f"| {text} | " + " | ".join(f"{samples[i][name]:,.0f}" for i in places) + " |" for text, name in figures.items()
    ]
    return "\n".join(rows)


def plot(result: dict[str, Any], target: Path) -> None:
    """Memory, the pool, the queue and the pace over the time of the soak."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "puna"  # the same figures give the same file
    from matplotlib import pyplot

    samples = result["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    figure, ((memory, pool), (queue, pace)) = pyplot.subplots(2, 2, figsize=(11, 6), sharex=True)
    for name, text in (("engine", "engine"), ("http", "HTTP process")):
        memory.plot(minutes, [sample[f"{name}_private_mb"] for sample in samples], label=text)
    memory.set(ylabel="private memory, MB", ylim=(0, None))
    pool.plot(minutes, [100 * sample["blocks_used"] / max(1, sample["blocks_total"]) for sample in samples], lw=0.8)
    pool.set(ylabel="blocks in use, %", ylim=(0, 105))
    for name, text in (("running", "running"), ("waiting", "waiting"), ("http_files", "open files")):
        queue.plot(minutes, [sample[name] for sample in samples], label=text, lw=0.8)
    queue.set(xlabel="minutes", ylabel="sequences, files", ylim=(0, None))
    rates = [
        (b["generation_tokens_total"] - a["generation_tokens_total"]) / max(1e-9, b["at_s"] - a["at_s"])
        for a, b in pairwise(samples)
        if "generation_tokens_total" in a
    ]
    pace.plot(minutes[len(minutes) - len(rates) :], rates, lw=0.8)
    pace.set(xlabel="minutes", ylabel="tokens a second", ylim=(0, None))
    memory.legend()
    queue.legend()
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None, dpi=150)
