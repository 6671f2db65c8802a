"""What sharing saves: blocks, memory and the rates that can be kept up, as docs/generation.md shows them.

    python benchmarks/sharing.py [forks pool blocks preemptions rates prefixes chats beams] --page --plot

Each part is run three times with other seeds; figures are medians. Results are kept in docs/sharing.json, where parts
that are not named stay as they were. All but `beams` are simulated: the real scheduler under a virtual clock, in
minutes; `beams` runs the engine on a model. `--page` fills the tables, `--plot` draws the pictures (matplotlib: the
extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sharing_page
import sharing_runs
from sharing_runs import Scale, paper_scale, small_scale

from puna.plan.profiles import A100_13B, step_times

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIMULATED: dict[str, Callable[[Scale, range], list[dict[str, Any]]]] = {
    "forks": sharing_runs.fork_savings,
    "pool": sharing_runs.pool_uses,
    "blocks": sharing_runs.block_sizes,
    "preemptions": sharing_runs.preemptions,
    "rates": sharing_runs.sustained_rates,
    "prefixes": sharing_runs.shared_prefixes,
    "chats": sharing_runs.chats,
}
PARTS = (*SIMULATED, "beams")
AT_PAPER_SCALE_ONLY = ("preemptions", "prefixes", "chats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", default="xeon-135m", help="of the small scale: a name or file, as puna simulate has")
    parser.add_argument("--json", type=Path, default=DOCS / "sharing.json")
    parser.add_argument("--page", action="store_true", help="fill the tables of docs/generation.md")
    parser.add_argument("--plot", action="store_true", help="draw the pictures in docs/")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    if options.repeats < 1:
        parser.error("--repeats is 1 at least")
    kept: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    scales = [paper_scale(A100_13B), small_scale(step_times(options.steps))]
    for part in options.parts or PARTS:
        begun = time.monotonic()
        kept[part] = run(part, scales, range(1, options.repeats + 1), options.model)
        print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
        options.json.write_text(json.dumps(kept, indent=1) + "\n")
    if options.page:
        sharing_page.fill_page(kept, DOCS / "generation.md")
    if options.plot:
        import sharing_plot

        sharing_plot.draw(kept, DOCS)


def run(part: str, scales: list[Scale], seeds: range, model: str) -> Any:
    if part == "beams":
        from sharing_beams import beam_savings

        return beam_savings(model, seeds)
    wanted = scales[:1] if part in AT_PAPER_SCALE_ONLY else scales
    return {scale.name: SIMULATED[part](scale, seeds) for scale in wanted}


if __name__ == "__main__":
    main()
