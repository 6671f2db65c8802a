"""A load test as a picture: each request's first token over the time of the run, and what share waited how long.

Needs matplotlib (the extra `bench`). Knows reports, no server.
"""

from __future__ import annotations

from pathlib import Path

from puna.bench.load_figures import LoadReport
from puna.errors import InputError


def plot(report: LoadReport, target: Path) -> None:
    """Writes a PNG or SVG, by the name of `target`. InputError where matplotlib is missing or cannot write it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install 'puna[bench]', or leave --plot out") from None
    good = [exchange for exchange in report.exchanges if exchange.error is None and exchange.counts]
    bad = [exchange for exchange in report.exchanges if exchange.error is not None]
    figure, (over_time, shares) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    over_time.plot([one.begun_s for one in good], [one.first_s for one in good], ".", label="first token")
    if bad:
        over_time.plot([one.begun_s for one in bad], [0.0] * len(bad), "x", color="red", label="failed")
    over_time.set(xlabel="seconds after the start", ylabel="seconds to the first token", ylim=(0, None))
    over_time.legend()
    lines = {
        "first token": [one.first_s for one in good],
        "mean between tokens": [one.token_s for one in good if one.output_tokens > 1],
        "whole answer": [one.whole_s for one in good],
    }
    for name, values in lines.items():
        known = sorted(value for value in values if value > 0)
        if known:
            shares.step(known, [(i + 1) / len(known) for i in range(len(known))], where="post", label=name)
    shares.set(xlabel="seconds", ylabel="share of requests", xscale="log", ylim=(0, 1))
    shares.legend()
    figure.suptitle(f"{report.target.model}: {report.figures.output_tokens_per_s:,.0f} tokens/s")
    figure.tight_layout()
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the plot {target}: {error}") from None
    finally:
        pyplot.close(figure)
