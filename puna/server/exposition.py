"""The text format that Prometheus reads: families of samples with labels. Knows no metric by name.

One family is a HELP line, a TYPE line and its samples. Names of counters end in `_total`; a histogram has a sample a
bucket (cumulative, up to +Inf), its sum and its count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Buckets:
    """A histogram's state: `counts` a bucket, the last one for values above all `bounds`."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


@dataclass(frozen=True)
class Family:
    """`samples`: labels beyond the common ones, and a value; a histogram's are `Buckets`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[tuple[Mapping[str, str], float | Buckets]]


def exposition(families: Iterable[Family], common: Mapping[str, str]) -> str:
    """`common`: labels of every sample."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for further, value in family.samples:
            labels = {**common, **further}
            if isinstance(value, Buckets):
                lines += _bucket_lines(family.name, labels, value)
            else:
                lines.append(f"{family.name}{_labels(labels)} {number(value)}")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """As Prometheus writes it: 3, 0.25, +Inf."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _bucket_lines(name: str, labels: Mapping[str, str], buckets: Buckets) -> list[str]:
    counts = list(accumulate(buckets.counts))
    lines = [
        f"{name}_bucket{_labels({**labels, 'le': number(bound)})} {count}"
        for bound, count in zip((*buckets.bounds, math.inf), counts, strict=True)
    ]
    return [
        *lines,
        f"{name}_sum{_labels(labels)} {number(buckets.total)}",
        f"{name}_count{_labels(labels)} {counts[-1]}",
    ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value, quoted=True)}"' for name, value in labels.items()) + "}"


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text
