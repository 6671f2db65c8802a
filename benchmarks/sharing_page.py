"""What sharing.py found, as the tables that docs/generation.md shows, the published figures beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marked_page import fill

PUBLISHED_FORKS = {"ShareGPT-like": "16.2 to 30.5%", "Alpaca-like": "6.1 to 9.8%"}
PUBLISHED_BEAMS = {"ShareGPT-like": "44.3 to 66.3%", "Alpaca-like": "37.6 to 55.2%"}
PUBLISHED_BATCH = {
    "ShareGPT-like": {"paged": 30.42, "oracle": 13.62, "pow2": 9.81, "max": 7.00},
    "Alpaca-like": {"paged": 132.44, "oracle": 72.75, "pow2": 43.24, "max": 7.00},
}
PUBLISHED_WRITTEN = {"paged": "96.3%", "oracle": "38.2%", "pow2": "26.8%", "max": "20.4%"}
PUBLISHED_OVER = {"oracle": "1.7 to 2.7x", "pow2": "", "max": "2.7 to 8x"}
NAMES = {"paged": "paged", "oracle": "Oracle", "pow2": "Pow2", "max": "Max"}
SCALES = {"paper": "13B, A100", "small": "135M, two cores"}


def fill_page(kept: dict[str, Any], page: Path) -> None:
    """Every part that has been run, between its marks."""
    for part, table in TABLES.items():
        if part in kept:
            fill(page, f"<!-- sharing {part}: begin -->", f"<!-- sharing {part}: end -->", table(kept[part]))


def forks(found: dict[str, Any]) -> str:
    rows = [
        [
            SCALES[scale],
            row["set"],
            f"{row['samples']}",
            _share(row["saved"]),
            _share(row["closed"]),
            f"{100 * row['apart']:.2f}",
            _share(row["full"]),
            PUBLISHED_FORKS[row["set"]] if scale == "paper" else "",
        ]
        for scale, found_at in found.items()
        for row in found_at
    ]
    heads = [
        "scale",
        "lengths",
        "n",
        "saved",
        "closed form",
        "points apart, at most",
        "full pool",
        "published",
    ]
    return _table(heads, rows)


def beams(found: dict[str, Any]) -> str:
    rows = [
        [
            row["set"],
            f"{row['width']}",
            _share(row["saved"]),
            f"{_share(row['low'])} to {_share(row['high'])}",
            f"{row['requests']}",
            PUBLISHED_BEAMS[row["set"]],
        ]
        for row in found["rows"]
    ]
    return _table(["lengths", "width", "saved", "of three runs", "requests", "published, width 2 to 6"], rows)


def pool(found: dict[str, Any]) -> str:
    rows = []
    for scale, found_at in found.items():
        paged_per_s = {row["set"]: row["tokens_per_s"] for row in found_at if row["memory"] == "paged"}
        for row in found_at:
            is_paper, name, memory = scale == "paper", row["set"], row["memory"]
            rows.append(
                [
                    SCALES[scale],
                    name,
                    NAMES[memory],
                    _share(row["written"]),
                    PUBLISHED_WRITTEN[memory] if is_paper and name == "ShareGPT-like" else "",
                    _share(row["ahead"]),
                    _share(row["rounding"]),
                    _share(row["free"]),
                    _share(row["useful"]),
                    f"{row['batch']:.1f}",
                    f"{PUBLISHED_BATCH[name][memory]:.1f}" if is_paper else "",
                    f"{row['written_len']:.0f}",
                    f"{row['tokens_per_s']:,.0f}",
                    "" if memory == "paged" else f"{paged_per_s[name] / row['tokens_per_s']:.2f}x",
                    PUBLISHED_OVER.get(memory, "") if is_paper and name == "ShareGPT-like" else "",
                ]
            )
    heads = ["scale", "lengths", "memory", "written", "published", "reserved ahead", "lost to rounding", "free"]
    served = ["tokens/s out", "paged over it", "published"]
    return _table([*heads, "written / not free", "batch", "published", "tokens each", *served], rows)


def blocks(found: dict[str, Any]) -> str:
    rows = [
        [
            SCALES[scale],
            row["set"],
            f"{row['block_size']}",
            _share(row["waste"]),
            _share(row["rule"]),
            _share(row["useful"]),
            f"{row['batch']:.1f}",
            f"{row['preemptions']:.0f}",
        ]
        for scale, found_at in found.items()
        for row in found_at
    ]
    return _table(
        ["scale", "lengths", "block", "waste / written", "rule", "written / not free", "batch", "preemptions"], rows
    )


def preemptions(found: dict[str, Any]) -> str:
    rows = [
        [
            row["set"],
            f"{row['block_size']}",
            f"{row['recompute']:,.0f} ({row['recomputed']:.0f})",
            f"{row['swap']:,.0f} ({row['swapped']:.0f})",
            f"{row['swap'] / row['recompute']:.2f}x",
        ]
        for row in found["paper"]
    ]
    heads = ["lengths", "block", "recomputed: tokens/s (preemptions)", "swapped", "time of recomputing over swapping"]
    return _table(heads, rows)


def rates(found: dict[str, Any]) -> str:
    rows = []
    for scale, found_at in found.items():
        for name in dict.fromkeys(row["set"] for row in found_at):
            of = {row["memory"]: row for row in found_at if row["set"] == name}
            for memory, row in of.items():
                over = "" if memory == "paged" else f"{of['paged']['rate'] / row['rate']:.2f}x"
                published = PUBLISHED_OVER.get(memory, "") if scale == "paper" and name == "ShareGPT-like" else ""
                rows.append([SCALES[scale], name, NAMES[memory], _rate(row), over, published])
    return _table(["scale", "lengths", "memory", "requests/s kept up", "paged over it", "published"], rows)


def prefixes(found: dict[str, Any]) -> str:
    published = {80: "1.67x", 341: "3.58x"}
    rows = []
    for length in dict.fromkeys(row["shared_len"] for row in found["paper"]):
        of = [row for row in found["paper"] if row["shared_len"] == length]
        best = next(row for row in of if row["cached"])
        for row in of:
            name = NAMES[row["memory"]] + (", prefix cache" if row["cached"] else "")
            over = "" if row is best else f"{best['rate'] / row['rate']:.2f}x"
            rows.append([str(length), name, _rate(row), over, published[length] if row["memory"] == "oracle" else ""])
    return _table(["tokens in common", "memory", "requests/s kept up", "prefix cache over it", "published"], rows)


def chats(found: dict[str, Any]) -> str:
    of = {row["memory"]: row for row in found["paper"]}
    rows = [
        [NAMES[memory], _rate(row), "" if memory == "paged" else f"{of['paged']['rate'] / row['rate']:.2f}x"]
        for memory, row in of.items()
    ]
    return _table(["memory", "requests/s kept up", "paged over it (published: 2x)"], rows)


TABLES = {
    "forks": forks,
    "beams": beams,
    "pool": pool,
    "blocks": blocks,
    "preemptions": preemptions,
    "rates": rates,
    "prefixes": prefixes,
    "chats": chats,
}


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _rate(row: dict[str, Any]) -> str:
    return f"{row['rate']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
