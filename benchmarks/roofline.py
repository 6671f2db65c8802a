"""The roofline plot: every kernel of `puna bench kernels --json` under the roofs of the machine that ran it.

A kernel's place is its operations a byte, and the operations a second that it reaches; the roofs are the bandwidths of
near and far memory and the peaks of the multiplications. Needs matplotlib (the extra `bench`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"decode 1": "#d1495b", "decode 8": "#edae49", "decode 32": "#00798c", "prefill 512": "#30638e"}
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "h", "*")
NEAR_BYTES, FAR_BYTES = 2 << 20, 512 << 20  # working sets whose bandwidths are drawn


def draw(report: Mapping[str, Any], target: Path) -> None:
    """`report`: what `puna bench kernels --json` wrote. The ending of `target` decides the format. ImportError without
    matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "puna"  # the same figures give the same file
    figure, axes = pyplot.subplots(figsize=(11, 7))
    kernels = [each for each in report["kernels"] if each["operations"] > 0]
    intensities = [each["operations"] / each["moved_bytes"] for each in kernels]
    left, right = min(intensities) / 2, max(intensities) * 2
    _roofs(axes, report["limits"], left, right, min(each["operations_per_s"] for each in kernels) / 2e9)
    names = list(dict.fromkeys(each["kernel"] for each in kernels))
    for each, intensity in zip(kernels, intensities, strict=True):
        axes.plot(
            intensity,
            each["operations_per_s"] / 1e9,
            marker=MARKERS[names.index(each["kernel"]) % len(MARKERS)],
            color=COLOURS.get(each["shape"], "grey"),
            markersize=11 if each["kernel"] == "whole step" else 7,
            fillstyle="none" if names.index(each["kernel"]) >= len(MARKERS) else "full",
            linestyle="none",
        )
    axes.set(xscale="log", yscale="log", xlim=(left, right), xlabel="operations a byte", ylabel="GOP/s")
    axes.grid(True, which="both", alpha=0.2)
    axes.set_title(
        f"{report['machine']['processor']}, {report['limits']['threads']} threads, {report['machine']['date']}"
    )
    _legends(axes, names)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None, dpi=150)
    pyplot.close(figure)


def _roofs(axes: Any, limits: Mapping[str, Any], left: float, right: float, floor: float) -> None:
    for size, style in ((NEAR_BYTES, ":"), (FAR_BYTES, "-")):
        point = min(limits["read"], key=lambda each, size=size: abs(each["working_bytes"] - size))
        rate = point["bytes_per_s"] / 1e9
        axes.plot([left, right], [left * rate, right * rate], color="black", linestyle=style, linewidth=1)
        label = f"{rate:,.0f} GB/s ({point['working_bytes'] >> 20} MiB)"
        axes.annotate(label, (left * 1.1, left * 1.1 * rate), fontsize=8, rotation=35, va="bottom")
    for kind, rate in limits["operations_per_s"].items():
        axes.axhline(rate / 1e9, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"{kind}: {rate / 1e9:,.0f} GOP/s", (right / 1.1, rate / 1e9), fontsize=8, ha="right", va="bottom"
        )
    axes.set_ylim(floor, 2 * max(limits["operations_per_s"].values()) / 1e9)


def _legends(axes: Any, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    def mark(number: int) -> Line2D:
        style = "none" if number >= len(MARKERS) else "full"
        return Line2D([], [], marker=MARKERS[number % len(MARKERS)], color="grey", linestyle="none", fillstyle=style)

    shapes = [Line2D([], [], marker="o", color=colour, linestyle="none") for colour in COLOURS.values()]
    first = axes.legend(shapes, list(COLOURS), loc="upper left", fontsize=8, title="step")
    axes.add_artist(first)
    axes.legend([mark(n) for n in range(len(names))], names, loc="lower right", fontsize=7, ncols=2)
