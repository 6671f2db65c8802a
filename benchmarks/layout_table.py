"""What `puna bench layouts --json FILE` wrote, as a table in Markdown: a row a type, for each number of rows how long a
product takes, its share of the bound, and that share beside Q4_1's.

    puna bench layouts --isa avx512 --json a.json; puna bench layouts --isa amx --json b.json
    python benchmarks/layout_table.py a.json b.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from puna.bench.figures import LayoutReport


def main() -> None:
    for file in sys.argv[1:]:
        report = msgspec.json.decode(Path(file).read_bytes(), type=LayoutReport)
        machine, limits, figures = report.machine, report.limits, report.layouts
        counts = list(dict.fromkeys(figure.rows for figure in figures))
        bounds = {rows: {figure.bound for figure in figures if figure.rows == rows} for rows in counts}
        titles = [f"{rows} row{'s' * (rows > 1)} ({', '.join(sorted(bounds[rows]))})" for rows in counts]
        print(f"`{limits.path}`, {limits.threads} threads; {machine.date}; others had {machine.others_share:.0%}.\n")
        print(f"| ms, share of the bound, beside Q4_1 | bits | packed | {' | '.join(titles)} |")
        print("|---" * (len(counts) + 3) + "|")
        for type in dict.fromkeys(figure.type for figure in figures):
            mine = [figure for figure in figures if figure.type == type]
            cells = [f"{1e3 * each.seconds.median:.2f}, {each.share:.0%}, {each.beside:.2f}" for each in mine]
            print(f"| {type} | {mine[0].bits:.2f} | {mine[0].packed_bits:.2f} | {' | '.join(cells)} |")
        print()


if __name__ == "__main__":
    main()
