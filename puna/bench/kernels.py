"""Every native kernel at the shapes of a model: how long it takes, and its share of the bound that applies to it.

A kernel is timed in a program of its own that holds all operators of its kind, one a layer, with the model's weights;
so weights come from where they come from in a real step, not from the nearest cache. Its input is random rows that
embeddings bring in, whose cost is measured apart and taken off; a kernel too small for that is left out. What a path
runs as one (a gate with the products around it) is timed as one. Whole steps of the model are timed beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from puna.bench.limits import MachineLimits
from puna.bench.steps import StepShape, make_step, step_seconds
from puna.bench.work import Work, kind_of, work_of
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, settled_path
from puna.kernels.program import Embed, Gate, Linear, Op, Program, weights_of
from puna.kernels.tensor import RawTensor
from puna.models.load import LoadedModel
from puna.workloads.spread import Spread, spread

FED_ROWS = 256  # different rows that an input is made of
STUB_VOCAB = 256  # of programs whose head is never run
REPEATS = 15
NOISE = 0.2  # a kernel that takes less than this share of what feeding it takes cannot be told from noise
BUDGET_S = 0.4  # for one kernel at one shape
SHAPES = {
    "decode 1": StepShape(1, 1, 192),
    "decode 8": StepShape(8, 1, 192),
    "decode 32": StepShape(32, 1, 192),
    "prefill 512": StepShape(1, 512, 0),
}


class KernelFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of kernel in one shape of a step: seconds of all its operators together. `bound` is what limits it
    ("memory", or the kind of operation) and `share` how much of that bound it reaches, 1 at the most in theory."""

    kernel: str
    shape: str
    operators: int
    seconds: Spread
    moved_bytes: float
    operations: float
    operand: str
    moved_bytes_per_s: float
    operations_per_s: float
    bound: str
    share: float


@dataclass(frozen=True)
class _Kind:
    """Operators that do the same thing in different layers."""

    name: str
    ops: list[Op]


def measure_kernels(
    model: LoadedModel, config: EngineConfig, limits: MachineLimits, tick: Callable[[], None] = lambda: None
) -> list[KernelFigure]:
    """On the native backend, with the threads and paths of `config`. `tick` is called after each of `kernel_names`."""
    figures: list[KernelFigure] = []
    for kind in _kinds(model.program, config):
        figures += _measure_kind(kind, model, config, limits)
        tick()
    figures += _measure_head(model, config, limits)
    tick()
    figures += _measure_steps(model, config, limits)
    tick()
    return figures


def kernel_names(program: Program, config: EngineConfig) -> list[str]:
    return [*(kind.name for kind in _kinds(program, config)), "output head", "whole step"]


def _kinds(program: Program, config: EngineConfig) -> list[_Kind]:
    found: dict[str, _Kind] = {}
    gated = _gated(program) if settled_path(config.isa) == "amx" and config.compute == "int8" else {}
    for i, op in enumerate(program.body):
        if not isinstance(op, Embed):
            name = gated.get(i) or kind_of(op)
            found.setdefault(name, _Kind(name, [])).ops.append(op)
    return list(found.values())


def _gated(program: Program) -> dict[int, str]:
    """Where products stand that meet in a gate, the gate, and the product that reads it: tiles run them as one."""
    places: dict[int, str] = {}
    for i, op in enumerate(program.body):
        around = program.body[max(0, i - 2) : i] + program.body[i + 1 : i + 2]
        if isinstance(op, Gate) and len(around) == 3 and all(isinstance(each, Linear) for each in around):
            for place in range(i - 2, i + 2):
                places[place] = f"{kind_of(around[-1]).rpartition('.')[0] or 'gate'}, gated"
    return places


def _measure_kind(
    kind: _Kind, model: LoadedModel, config: EngineConfig, limits: MachineLimits
) -> Iterator[KernelFigure]:
    sources = sorted({name for op in kind.ops for name in _sources(op)})
    feeds = {name: _random_table(name, model.program.buffers[name]) for name in sources}
    alone = _interpreter(model, config, feeds, [], ())
    whole = _interpreter(model, config, feeds, kind.ops, ())
    packed = whole.packed_bytes - alone.packed_bytes
    for name, shape in SHAPES.items():
        batch = make_step(_unsampled(shape), config.block_size, STUB_VOCAB)
        feeding = statistics.median(step_seconds(alone, batch, REPEATS, BUDGET_S / 4))
        seconds = [each - feeding for each in step_seconds(whole, batch, REPEATS, BUDGET_S)]
        if statistics.median(seconds) > NOISE * feeding:
            work = work_of(kind.ops, model, config, shape, packed)
            yield _figure(kind.name, name, len(kind.ops), seconds, work, limits)


def _measure_head(model: LoadedModel, config: EngineConfig, limits: MachineLimits) -> Iterator[KernelFigure]:
    """The head's operators and the draw of a token, greedy; whatever it takes to get from hidden rows to tokens."""
    feeds = {"hidden": _random_table("hidden", model.program.buffers["hidden"])}
    alone = _interpreter(model, config, feeds, [], ())
    whole = _interpreter(model, config, feeds, [], model.program.head)
    packed = whole.packed_bytes - alone.packed_bytes
    for name, shape in SHAPES.items():
        if shape.new_len == 1:
            feeding = statistics.median(
                step_seconds(alone, make_step(_unsampled(shape), config.block_size, STUB_VOCAB), REPEATS, BUDGET_S / 4)
            )
            batch = make_step(shape, config.block_size, STUB_VOCAB)
            seconds = [each - feeding for each in step_seconds(whole, batch, REPEATS, BUDGET_S)]
            work = work_of(list(model.program.head), model, config, shape, packed)
            yield _figure("output head", name, len(model.program.head), seconds, work, limits)


def _measure_steps(model: LoadedModel, config: EngineConfig, limits: MachineLimits) -> Iterator[KernelFigure]:
    program = model.program
    whole = NativeInterpreter(
        program,
        model.weights,
        _pool(config),
        threads=config.threads,
        pin=config.pin,
        isa=config.isa,
        compute=config.compute,
    )
    for name, shape in SHAPES.items():
        batch = make_step(shape, config.block_size, program.vocab_size)
        body = work_of(list(program.body), model, config, shape, whole.packed_bytes)
        head = work_of(list(program.head), model, config, StepShape(shape.sequences, 1, 0), 0)
        seconds = step_seconds(whole, batch, REPEATS, 4 * BUDGET_S)
        operators = len(program.body) + len(program.head)
        yield _figure("whole step", name, operators, seconds, body + head, limits)


def _figure(
    kernel: str, shape: str, operators: int, seconds: list[float], work: Work, limits: MachineLimits
) -> KernelFigure:
    least, bound = limits.least_seconds(work.moved_bytes, work.operations, work.operand, work.working_bytes)
    median = statistics.median(seconds)
    return KernelFigure(
        kernel=kernel,
        shape=shape,
        operators=operators,
        seconds=spread(seconds),
        moved_bytes=work.moved_bytes,
        operations=work.operations,
        operand=work.operand,
        moved_bytes_per_s=work.moved_bytes / median,
        operations_per_s=work.operations / median,
        bound=bound,
        share=least / median,
    )


def _interpreter(
    model: LoadedModel, config: EngineConfig, feeds: dict[str, RawTensor], ops: list[Op], head: tuple[Op, ...]
) -> NativeInterpreter:
    """A program that fills buffers from random tables and then runs `ops`. Without `head` nothing can be sampled."""
    program = model.program
    buffers, vocab = dict(program.buffers), program.vocab_size
    weights = {**model.weights, **{f"table {name}": table for name, table in feeds.items()}}
    if not head:
        buffers, vocab = {**buffers, "logits": STUB_VOCAB}, STUB_VOCAB
        head = (Linear("hidden", "logits", "stub"),)
        rows = np.zeros((STUB_VOCAB, buffers["hidden"]), np.float32)
        weights["stub"] = RawTensor("stub", "F32", rows.shape, rows.view(np.uint8).reshape(-1))
    body = (*(Embed(name, f"table {name}") for name in feeds), *ops)
    return NativeInterpreter(
        Program(buffers, body, head, program.kv, vocab),
        weights,
        _pool(config),
        threads=config.threads,
        pin=config.pin,
        isa=config.isa,
        compute=config.compute,
    )


def _pool(config: EngineConfig) -> KVConfig:
    blocks = 1 + max(shape.blocks(config.block_size) for shape in SHAPES.values())
    return KVConfig(num_blocks=blocks, block_size=config.block_size, dtype=config.kv_dtype)


def _unsampled(shape: StepShape) -> StepShape:
    return StepShape(shape.sequences, shape.new_len, shape.cached_len, sampled=False)


def _sources(op: Op) -> list[str]:
    """The buffers that an operator reads."""
    fields = ("src", "buffer", "router", "gate", "up", "query", "key", "value")
    names = [name for field in fields if isinstance(name := getattr(op, field, None), str)]
    return [name for name in names if name not in weights_of(op)]


def _random_table(name: str, width: int) -> RawTensor:
    """Rows as activations are: mostly near a normal distribution, one value in a hundred ten times as large."""
    dice = np.random.default_rng(len(name))
    rows = dice.standard_normal((FED_ROWS, width), np.float32)
    rows *= np.where(dice.random(rows.shape) < 0.01, np.float32(10), np.float32(1))
    return RawTensor(name, "F32", rows.shape, rows.view(np.uint8).reshape(-1))
