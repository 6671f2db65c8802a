"""What sharing.py found, as pictures: blocks saved, what memory is used for, latency over the rate of requests.

Needs matplotlib (the extra `bench`). The same figures give the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharing_page import NAMES, SCALES

COLOURS = {"paged": "#00798c", "oracle": "#30638e", "pow2": "#edae49", "max": "#d1495b"}
BANDS = {
    ("forks", "ShareGPT-like"): (16.2, 30.5),
    ("forks", "Alpaca-like"): (6.1, 9.8),
    ("beams", "ShareGPT-like"): (44.3, 66.3),
    ("beams", "Alpaca-like"): (37.6, 55.2),
}


def draw(kept: dict[str, Any], folder: Path) -> None:
    """Every picture whose parts have been run. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "puna"
    for name, parts, make in (
        ("sharing-saved.svg", ("forks",), _saved),
        ("sharing-memory.svg", ("pool", "blocks"), _memory),
        ("sharing-rates.svg", ("rates",), _rates),
    ):
        if all(part in kept for part in parts):
            figure = make(pyplot, kept)
            figure.tight_layout()
            figure.savefig(folder / name, metadata={"Date": None})
            pyplot.close(figure)


def _saved(pyplot: Any, kept: dict[str, Any]) -> Any:
    """Bars for what was counted, lines for the closed form, bands for what was published for 2 to 6."""
    figure, all_axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    kinds = [("forks", "samples", kept["forks"]["paper"])]
    if "beams" in kept:
        kinds.append(("beams", "width", kept["beams"]["rows"]))
    for axes, lengths in zip(all_axes, ("ShareGPT-like", "Alpaca-like"), strict=True):
        for group, (kind, count, rows) in enumerate(kinds):
            mine = [row for row in rows if row["set"] == lengths]
            places = [4 * group + place for place in range(len(mine))]
            colour = COLOURS["paged"] if kind == "forks" else COLOURS["pow2"]
            axes.bar(places, [100 * row["saved"] for row in mine], color=colour, label=f"{kind}, counted")
            axes.fill_between([places[0] - 0.5, places[-1] + 0.5], *BANDS[kind, lengths], color="black", alpha=0.12)
            for place, row in zip(places, mine, strict=True):
                axes.annotate(f"{count[0] if kind == 'beams' else 'n'}={row[count]}", (place, 1), ha="center", size=8)
                if "closed" in row:
                    label = "closed form" if place == 0 else None
                    axes.hlines(100 * row["closed"], place - 0.45, place + 0.45, color="black", lw=1.5, label=label)
        axes.set(title=f"{lengths} (grey: published)", xticks=[], ylabel="blocks saved, %")
        axes.legend(loc="upper left", fontsize=8)
    return figure


def _memory(pyplot: Any, kept: dict[str, Any]) -> Any:
    """What the slots of the paper's pool hold, and the waste of blocks beside its rule."""
    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    rows = kept["pool"]["paper"]
    parts = {"written": "#00798c", "ahead": "#edae49", "rounding": "#d1495b", "free": "#dddddd"}
    labels = {"written": "written", "ahead": "reserved ahead", "rounding": "lost to rounding", "free": "free"}
    below = [0.0] * len(rows)
    for part, colour in parts.items():
        shares = [100 * row[part] for row in rows]
        bars.bar(range(len(rows)), shares, bottom=below, color=colour, label=labels[part])
        below = [low + share for low, share in zip(below, shares, strict=True)]
    bars.set_xticks(range(len(rows)), [f"{NAMES[row['memory']]}\n{row['set'].split('-')[0]}" for row in rows], size=7)
    bars.set(ylabel="share of the pool, %", title="a full pool of 15.7k slots")
    bars.legend(fontsize=8, loc="lower right")
    for name, colour in (("ShareGPT-like", COLOURS["paged"]), ("Alpaca-like", COLOURS["max"])):
        mine = [row for row in kept["blocks"]["paper"] if row["set"] == name and row["block_size"] > 1]
        sizes = [row["block_size"] for row in mine]
        lines.plot(sizes, [100 * row["waste"] for row in mine], "o", color=colour, label=f"{name}, counted")
        lines.plot(sizes, [100 * row["rule"] for row in mine], "-", color=colour, lw=1, label="(B-1)/2 / resident")
    lines.set(xscale="log", yscale="log", xlabel="tokens a block", ylabel="waste over what is written, %")
    lines.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
    lines.legend(fontsize=8)
    return figure


def _rates(pyplot: Any, kept: dict[str, Any]) -> Any:
    """Normalised latency at the rates that were tried with the first seed."""
    figure, all_axes = pyplot.subplots(2, 2, figsize=(11, 7.5))
    for row_of_axes, scale in zip(all_axes, ("paper", "small"), strict=True):
        for axes, lengths in zip(row_of_axes, ("ShareGPT-like", "Alpaca-like"), strict=True):
            for row in kept["rates"][scale]:
                if row["set"] == lengths:
                    axes.plot(*zip(*row["curve"], strict=True), ".-", color=COLOURS[row["memory"]], label=row["memory"])
            knees = [row["rate"] for row in kept["rates"][scale] if row["set"] == lengths]
            limit = 0.2 if scale == "paper" else 0.1
            axes.axhline(limit, color="black", lw=0.8, ls=":")
            axes.set(title=f"{SCALES[scale]}: {lengths}", xlabel="requests/s", ylabel="seconds a token", yscale="log")
            axes.set(xlim=(0, 1.3 * max(knees)), ylim=(None, 20 * limit))
            axes.legend(fontsize=8)
    return figure
