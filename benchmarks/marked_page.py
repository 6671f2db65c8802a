"""Puts what a benchmark measured between the two marks of a page."""

from __future__ import annotations

import sys
from pathlib import Path


def fill(file: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between the lines `begin` and `end`; ends the program where the page lacks them."""
    before, _, rest = file.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"error: {file} has no lines {begin} and {end}; the table goes between them")
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
