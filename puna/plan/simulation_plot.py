"""Simulations as a picture: each request's wait over the time it came, and what share waited how long.

Needs matplotlib (the extra `bench`). Knows outcomes by policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.errors import InputError
from puna.plan.simulated import Outcome


def plot(outcomes: Mapping[str, Sequence[Outcome]], title: str, target: Path) -> None:
    """Writes a PNG or SVG, by the name of `target`. InputError where matplotlib is missing or cannot write it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install 'puna[bench]', or leave --plot out") from None
    matplotlib.rcParams["svg.hashsalt"] = "puna"  # the same simulation gives the same file
    figure, (over_time, shares) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for policy, found in outcomes.items():
        served = [outcome for outcome in found if outcome.done_s is not None]
        waits = [outcome.wait_s for outcome in served]
        over_time.plot([outcome.request.at_s for outcome in served], waits, ".", markersize=3, label=policy)
        shares.step(sorted(waits), [(i + 1) / len(waits) for i in range(len(waits))], where="post", label=policy)
    over_time.set(xlabel="seconds of the trace", ylabel="seconds to the first token", ylim=(0, None))
    shares.set(xlabel="seconds to the first token", ylabel="share of requests", xscale="log", ylim=(0, 1))
    over_time.legend()
    shares.legend()
    figure.suptitle(title)
    figure.tight_layout()
    try:
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the plot {target}: {error}") from None
    finally:
        pyplot.close(figure)
