"""What operators have to do at the least: bytes to read and write, operations to carry out, on which operands.

Counted from the program, the shape of a step and the size of the packed weights, as if every byte went through once.
Knows nothing of how the kernels do it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from puna.bench.steps import StepShape
from puna.engine.config import EngineConfig
from puna.kernels.batch import attends_on_tiles, kv_bytes_per_token
from puna.kernels.cpu import settled_path
from puna.kernels.program import (
    Activate,
    Add,
    Attend,
    Experts,
    Gate,
    LayerNorm,
    Linear,
    Op,
    RmsNorm,
    Rope,
    Scale,
    ScaleRows,
    Softcap,
    StoreKV,
    weights_of,
)
from puna.kernels.tensor import RawTensor, multiplied
from puna.models.load import LoadedModel

FLOAT_BYTES = 4
OPERAND_BYTES = {"f32": 4, "bf16_tiles": 2, "int8": 1}
FLOAT_TYPES = ("F32", "F16", "BF16")
# Of operators that go through rows value by value: operations a value, counted from what they compute.
VALUE_OPERATIONS: dict[type, int] = {
    Add: 1,
    Scale: 1,
    ScaleRows: 1,
    StoreKV: 1,
    Rope: 3,
    RmsNorm: 4,
    LayerNorm: 7,
    Softcap: 12,
    Activate: 14,
    Gate: 15,
}


@dataclass(frozen=True)
class Work:
    """`moved_bytes`: read and written. `working_bytes`: those that are touched before one of them is touched again,
    which decides the cache that they come from: weights and cached keys come by once a step, the rows that operators
    hand to each other stay. `operand`: what most operations are on, as in puna/bench/limits.py."""

    moved_bytes: float
    operations: float
    operand: str
    working_bytes: float

    def __add__(self, other: Work) -> Work:
        larger = self if self.operations >= other.operations else other
        return Work(
            self.moved_bytes + other.moved_bytes,
            self.operations + other.operations,
            larger.operand,
            self.working_bytes + other.working_bytes,
        )


def kind_of(op: Op) -> str:
    """Operators of one kind do the same in different layers: "attention.query" of a weight, or the operator's name."""
    weight = getattr(op, "weight", None)
    parts = weight.split(".") if isinstance(weight, str) else []
    if len(parts) > 2 and parts[0] == "layers":
        return ".".join(parts[2:])
    where = getattr(op, "buffer", None)
    return f"{type(op).__name__.lower()} {where}" if isinstance(where, str) else type(op).__name__.lower()


def work_of(ops: list[Op], model: LoadedModel, config: EngineConfig, shape: StepShape, packed_bytes: float) -> Work:
    """Of `ops` in a step of that shape. `packed_bytes`: of their weights, of which experts that nobody is routed to are
    not read."""
    packed_bytes *= _read_share(ops, model, shape)
    works = [_work(op, model, config, shape) for op in ops]
    passing = [work.moved_bytes for op, work in zip(ops, works, strict=True) if isinstance(op, Attend)]
    staying = [work.moved_bytes for op, work in zip(ops, works, strict=True) if not isinstance(op, Attend)]
    total = sum(works, Work(packed_bytes, 0, "f32", 0.0))
    return replace(total, working_bytes=packed_bytes + sum(passing) + max(staying, default=0.0))


def _operand(matrix: RawTensor, config: EngineConfig) -> str:
    """What a matrix is multiplied in."""
    if config.compute == "float32":
        return "f32"
    type = multiplied(matrix, config.compute).type
    if settled_path(config.isa) == "amx":
        return "f32" if type == "F32" else "bf16_tiles"
    return "f32" if type in FLOAT_TYPES else "int8"


def _read_share(ops: list[Op], model: LoadedModel, shape: StepShape) -> float:
    """Bytes of weights that a step reads, of all there are, where routing is even; counted in the file."""
    total = read = 0.0
    for op in ops:
        unwanted = 0.0
        if isinstance(op, Experts):
            unwanted = (1 - op.used / model.program.buffers[op.router]) ** shape.tokens
        size = sum(model.weights[name].nbytes for name in weights_of(op))
        total, read = total + size, read + size * (1 - unwanted)
    return read / total if total else 1.0


def _work(op: Op, model: LoadedModel, config: EngineConfig, shape: StepShape) -> Work:
    widths, rows = model.program.buffers, shape.tokens
    if isinstance(op, Linear):
        read, written = widths[op.src], widths[op.out]
        operand = _operand(model.weights[op.weight], config)
        moved = rows * (read * OPERAND_BYTES[operand] + written * FLOAT_BYTES)
        return Work(moved, 2.0 * rows * read * written, operand, moved)
    if isinstance(op, Experts):
        read, written, scores = widths[op.src], widths[op.out], widths[op.router]
        operand = _operand(model.weights[op.up], config)
        moved = rows * (read * OPERAND_BYTES[operand] + (scores + written) * FLOAT_BYTES)
        return Work(moved, 2.0 * rows * op.used * op.width * (2 * read + written), operand, moved)
    if isinstance(op, Attend):
        kept = kv_bytes_per_token(model.program.kv[op.layer], config.kv_dtype)
        # Each sequence's keys and values once, however many of its tokens look at them.
        cached = shape.sequences * (shape.cached_len + shape.new_len) * kept
        tiles = config.compute != "float32" and settled_path(config.isa) == "amx"
        operand = "bf16_tiles" if tiles and attends_on_tiles(op.head_dim, config.kv_dtype) else "f32"
        return Work(cached, 4.0 * shape.seen_keys * op.heads * op.head_dim, operand, cached)
    if isinstance(op, StoreKV):
        width = widths[op.key] + widths[op.value]
        moved = rows * (width * FLOAT_BYTES + kv_bytes_per_token(model.program.kv[op.layer], config.kv_dtype))
        return Work(moved, rows * width * VALUE_OPERATIONS[StoreKV], "f32", moved)
    names = [getattr(op, field) for field in ("src", "out", "gate", "up", "buffer") if hasattr(op, field)]
    moved = sum(rows * widths[name] * FLOAT_BYTES for name in names)
    if hasattr(op, "buffer"):
        moved *= 2  # in place: read and written
    result = getattr(op, "out", None) or getattr(op, "buffer", None)
    values = rows * widths[result] if isinstance(result, str) else 0
    return Work(moved, values * VALUE_OPERATIONS.get(type(op), 0), "f32", moved)
