"""Traces of requests from files: when each came, and how long it was. One reader for each format, told by its columns.

CSV or JSON lines, gzipped or not; lines that begin with # are skipped. Times become seconds since the first request.
Formats without lengths leave them open (None). Knows no server and draws no prompts.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from puna.errors import InputError

Row = dict[str, Any]


@dataclass(frozen=True)
class Arrival:
    """`blocks`: ids of the prompt's leading blocks of `block_len` tokens; prompts share those that are equal. `client`:
    who asks, as the file has it; empty where it does not say."""

    at_s: float
    prompt_len: int | None = None
    output_len: int | None = None
    blocks: tuple[int, ...] = ()
    block_len: int = 0
    client: str = ""


def read_trace(path: Path, limit: int | None = None, seed: int = 1) -> list[Arrival]:
    """The first `limit` arrivals in order of time. `seed`: for formats that give rates instead of requests. InputError
    where the file cannot be read, or is none of these."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as opened:
            lines = (line for line in opened if line.strip() and not line.startswith("#"))
            rows, names = _rows(lines, path)
            arrivals = sorted(_reader(names, path, limit, seed)(rows), key=lambda arrival: arrival.at_s)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read the trace {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"the trace {path} has a row that its first line does not promise: {error}") from None
    if not arrivals:
        raise InputError(f"the trace {path} has no requests")
    first = arrivals[0].at_s
    return [replace(arrival, at_s=arrival.at_s - first) for arrival in arrivals[:limit]]


def _rows(lines: Iterator[str], path: Path) -> tuple[Iterable[Row], frozenset[str]]:
    head = next(lines, None)
    if head is None:
        raise InputError(f"the trace {path} is empty")
    if head.startswith("{"):
        first: Row = json.loads(head)
        return (first, *(json.loads(line) for line in lines)), frozenset(first)
    names = next(csv.reader(io.StringIO(head)))
    return list(csv.DictReader(lines, names)), frozenset(names)


def _reader(
    names: frozenset[str], path: Path, limit: int | None, seed: int
) -> Callable[[Iterable[Row]], Iterator[Arrival]]:
    if {"timestamp", "input_length", "output_length"} <= names:
        return _mooncake
    if {"prompt_tokens", "output_tokens"} <= names and names & {"arrival_s", "req_time_s"}:
        return _lengths
    if {"Timestamp", "Request tokens", "Response tokens"} <= names:
        return _burst
    if {"window_start_s", "rate_rps", "cv"} <= names:
        return lambda rows: islice(_windows(rows, random.Random(seed)), limit)
    if "arrival_s" in names:
        return lambda rows: (Arrival(float(row["arrival_s"])) for row in rows)
    shown = ", ".join(sorted(names))[:200]
    raise InputError(
        f"the trace {path} has the columns {shown}; known: arrival_s (with prompt_tokens and output_tokens), "
        "timestamp with input_length and output_length, window_start_s with rate_rps and cv, BurstGPT's"
    )


def _lengths(rows: Iterable[Row]) -> Iterator[Arrival]:
    for row in rows:
        at_s = float(row["arrival_s"] if "arrival_s" in row else row["req_time_s"])
        yield Arrival(at_s, int(row["prompt_tokens"]), int(row["output_tokens"]), client=row.get("client", ""))


def _mooncake(rows: Iterable[Row]) -> Iterator[Arrival]:
    """Milliseconds; blocks of 512 tokens by id."""
    for row in rows:
        blocks = tuple(row.get("hash_ids", ()))
        yield Arrival(row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"]), blocks, 512)


def _burst(rows: Iterable[Row]) -> Iterator[Arrival]:
    """BurstGPT; answers of no tokens had failed."""
    for row in rows:
        if int(row["Response tokens"]) > 0:
            yield Arrival(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _windows(rows: Iterable[Row], dice: random.Random) -> Iterator[Arrival]:
    """ServeGen: a client's rate and the coefficient of variation of its gaps, by windows of 600 s. In order, and drawn
    only as far as they are taken: a day of such rates is millions of requests."""
    windows = [
        (float(row["window_start_s"]), float(row["rate_rps"]), float(row["cv"]), str(row.get("client", "")))
        for row in rows
    ]
    drawn = (_window(start, rate, cv, client, dice) for start, rate, cv, client in windows if rate > 0)
    return heapq.merge(*drawn, key=lambda arrival: arrival.at_s)


def _window(start: float, rate: float, cv: float, client: str, dice: random.Random) -> Iterator[Arrival]:
    """Gaps are drawn from a gamma distribution of that mean and variation."""
    shape = 1.0 / max(1e-3, cv) ** 2
    at = start + dice.random() / rate
    while at < start + 600:
        yield Arrival(at, client=client)
        at += dice.gammavariate(shape, 1.0 / (rate * shape))
