"""Steps made by hand, and programs of a single operator, for tests of backends.

`rows` and `step` fill in what a test does not care about. `around` wraps operators so that they can be fed and read:
tables of random rows come in through embeddings, and what the body leaves comes out as logits, untouched, through an
identity matrix. Knows no backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import SampleRows, StepBatch
from puna.kernels.program import Embed, KVShape, Linear, Op, Program
from puna.kernels.tensor import RawTensor
from puna.models.gguf_write import encode

F32 = npt.NDArray[np.float32]
NO_MOVES = np.zeros((0, 3), np.int32)
DEFAULTS: dict[str, tuple[type[np.generic], float]] = {
    "target": (np.int32, -1),
    "num_logprobs": (np.int32, -1),
    "temperature": (np.float32, 0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1),
    "min_p": (np.float32, 0),
    "repetition": (np.float32, 1),
    "frequency": (np.float32, 0),
    "presence": (np.float32, 0),
    "seed": (np.uint64, 0),
    "position": (np.int32, 0),
    "history_row": (np.int32, 0),
    "prompt_len": (np.int32, 0),
    "total_len": (np.int32, 0),
}


def rows(index: Iterable[int], **given: Any) -> SampleRows:
    """Greedy rows, but for what is given. `allowed`, `banned`: a list of ids a row; `bias`: a mapping a row; `mask`:
    words of bits."""
    index = np.array(list(index), np.int32)
    count = len(index)
    fields = {name: np.full(count, given.pop(name, value), kind) for name, (kind, value) in DEFAULTS.items()}
    history = np.array(given.pop("history", np.zeros((1, 1))), np.int32)
    allowed, banned = given.pop("allowed", [[]] * count), given.pop("banned", [[]] * count)
    bias: Sequence[Mapping[int, float]] = given.pop("bias", [{}] * count)
    mask = np.array(given.pop("mask", np.zeros((0, 0))), np.uint32)
    assert not given, given
    return SampleRows(
        index=index,
        history=history,
        allowed_start=_starts(allowed),
        allowed_ids=_joined(allowed),
        banned_start=_starts(banned),
        banned_ids=_joined(banned),
        bias_start=_starts(bias),
        bias_ids=_joined(bias),
        bias_values=np.array([value for row in bias for value in row.values()], np.float32),
        mask=mask,
        **fields,
    )


def _starts(lists: Sequence[Any]) -> npt.NDArray[np.int32]:
    return np.cumsum([0, *map(len, lists)]).astype(np.int32)


def _joined(lists: Iterable[Iterable[int]]) -> npt.NDArray[np.int32]:
    return np.array([item for row in lists for item in row], np.int32)


def step(
    sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]],
    samples: SampleRows | None = None,
    moves: Sequence[tuple[int, int, int]] = (),
    want_logits: bool = True,
) -> StepBatch:
    """`sequences`: (token ids, position of the first, block table) each. Without `samples` every row is read."""
    lengths = [len(ids) for ids, _, _ in sequences]
    width = max((len(table) for _, _, table in sequences), default=1)
    tables = np.zeros((len(sequences), width), np.int32)
    for r, (_, _, table) in enumerate(sequences):
        tables[r, : len(table)] = table
    return StepBatch(
        token_ids=_joined(ids for ids, _, _ in sequences),
        positions=_joined(range(first, first + len(ids)) for ids, first, _ in sequences),
        query_start=np.cumsum([0, *lengths]).astype(np.int32),
        tables=tables,
        moves=np.array(moves, np.int32).reshape(-1, 3) if moves else NO_MOVES,
        samples=rows(range(sum(lengths))) if samples is None else samples,
        want_logits=want_logits,
    )


def raw(name: str, values: npt.NDArray[Any], type: str = "F32") -> RawTensor:
    written = encode(name, np.asarray(values, np.float32), type)
    return RawTensor(name, type, written.shape, np.frombuffer(written.data, np.uint8))


@dataclass(frozen=True)
class Case:
    """A program, its weights, and how many tokens its tables know."""

    program: Program
    weights: dict[str, RawTensor]
    tokens: int


def around(
    body: Sequence[Op],
    tables: Mapping[str, F32],
    weights: Mapping[str, RawTensor],
    *,
    widths: Mapping[str, int] | None = None,
    out: str = "hidden",
    kv: tuple[KVShape, ...] = (),
) -> Case:
    """Buffer b holds row t of tables[b] where token t stands; then `body` runs; buffer `out` becomes the logits.

    `widths`: buffers that no table fills. `out` is renamed to "hidden", which the head reads.
    """
    buffers = {name: table.shape[1] for name, table in tables.items()} | dict(widths or {})
    width = buffers.pop(out)
    tokens = max(len(table) for table in tables.values())
    vocab = max(width, tokens)
    feeds: list[Op] = [Embed(_renamed(name, out), f"table {name}") for name in tables]
    program = Program(
        buffers={**buffers, "hidden": width, "logits": vocab},
        body=(*feeds, *(_rename(op, out) for op in body)),
        head=(Linear("hidden", "logits", "identity"),),
        kv=kv,
        vocab_size=vocab,
    )
    fed = {f"table {name}": raw(f"table {name}", table) for name, table in tables.items()}
    identity = raw("identity", np.eye(vocab, width, dtype=np.float32))
    return Case(program, {**weights, **fed, "identity": identity}, tokens)


def _renamed(name: str, out: str) -> str:
    return "hidden" if name == out else name


def _rename(op: Op, out: str) -> Op:
    fields = ("src", "out", "buffer", "router", "gate", "up", "query", "key", "value")
    changed: dict[str, Any] = {field: "hidden" for field in fields if getattr(op, field, None) == out}
    return replace(op, **changed) if changed else op


def difference(found: F32, wanted: F32) -> float:
    """The largest deviation, relative to the largest wanted value."""
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted).max() / max(1e-30, np.abs(wanted).max()))
