"""Binds a program to the native core: flattens operators, hands over weights, and turns a step into one call.

Operator numbers and the order of their fields are those of `OpKind` in csrc/executor.hpp. The arrays of a step are
passed as they are; nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from puna.errors import InputError, ModelFileError
from puna.kernels import program as ops
from puna.kernels.batch import KVConfig, Rounding, StepBatch, StepOutput
from puna.kernels.cpu.threads import available_threads, may_pin
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import NATIVE_TYPES, PLAIN_TYPES, RawTensor, multiplied

try:
    from puna.kernels.cpu import _native
except ImportError as error:  # pragma: no cover - only without a built core
    raise ImportError(
        "Puna's native core is missing: install Puna with pip where a C++20 compiler (g++ 11 or clang 14) is present, "
        "or use backend='reference'"
    ) from error

OpTuple = tuple[int, list[int], list[float]]

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
STYLES = {"interleaved": 0, "halves": 1}


def paths() -> list[str]:
    """Instruction paths that this machine can run, best first; "portable" is always the last."""
    return list(_native.paths())


def settled_path(isa: str) -> str:
    """The path that `isa` stands for here; InputError where this machine cannot run it."""
    known = paths()
    if isa != "auto" and isa not in known:
        raise InputError(
            f"instruction path {isa!r} cannot run here; this machine runs: auto, {', '.join(known)}", param="isa"
        )
    return known[0] if isa == "auto" else isa


class StageTime(NamedTuple):
    """A stage of a step (csrc/executor.hpp): times over all its calls, bytes of packed weights that they read, and
    operations of their matmuls (a multiply-add counts as two)."""

    name: str
    calls: int
    nanoseconds: int
    bytes: int
    operations: int


class NativeInterpreter:
    """See `puna.kernels.batch.Interpreter`.

    `compute`: "int8" multiplies quantised matrices with activations rounded to int8 in groups of 32, or, on the path
    "amx", every matrix that is not float32 in the file with both sides rounded to bf16, but F16 with two bf16 on each
    side; "float32" multiplies every weight as the file means it, in float32. `isa`: one of `paths()`, or "auto".
    `threads`: 0 takes all that this process may use. `cores`: no more of them get work than this; 0 is as many as
    this process may use. `pin`: gives each worker a core of its own, where that is wise.
    `progress`: uint64 array of one element, in shared memory say, that counts executed operators.
    `touched_ahead`: bytes of the pool behind the last block in use that a thread touches while the machine is idle, so
    that no step waits for the system's pages; 0 touches none.
    """

    batch_invariant = True

    def __init__(
        self,
        program: ops.Program,
        weights: Mapping[str, RawTensor],
        kv: KVConfig,
        *,
        threads: int = 0,
        cores: int = 0,
        pin: bool = True,
        isa: str = "auto",
        compute: str = "int8",
        progress: npt.NDArray[np.uint64] | None = None,
        touched_ahead: int = 0,
    ) -> None:
        if compute not in ("int8", "float32"):
            raise InputError(f"compute is {compute!r}; it is 'int8' or 'float32'", param="compute")
        self.program = program
        self.kv = kv
        self.sample_s = 0.0
        self._compute = compute
        threads = threads or available_threads()
        try:
            self._core = _native.Core(isa, threads, cores or available_threads(), pin and may_pin(threads))
        except ValueError as error:
            raise InputError(str(error), param="isa") from None
        self._kept: list[Any] = []  # memory that the core reads: mapped weights, the shared counter
        self._last: tuple[StepBatch, StepOutput] | None = None
        self._logits_none = np.zeros((0, program.vocab_size), np.float32)
        digest = hashlib.sha256(program.digest())
        numbers = self._add_weights(weights, compute == "int8", digest)
        buffers = {name: i for i, name in enumerate(program.buffers)}
        try:
            self._core.bind(
                list(program.buffers.values()),
                [flatten(op, buffers, numbers) for op in program.body],
                [flatten(op, buffers, numbers) for op in program.head],
                [(shape.kv_heads, shape.head_dim) for shape in program.kv],
                buffers["hidden"],
                buffers["logits"],
                kv.num_blocks,
                kv.tier_blocks,
                kv.block_size,
                kv.dtype,
                compute != "float32",
                touched_ahead,
            )
        except ValueError as error:
            raise InputError(f"the native core cannot run this model so: {error}") from None
        if progress is not None:
            self._kept.append(progress)
            self._core.set_progress(progress)
        self._fingerprint = f"{digest.hexdigest()[:16]}-{self._core.path()}-{compute}-{kv.dtype}"

    def _add_weights(self, weights: Mapping[str, RawTensor], integer: bool, digest: Any) -> dict[str, int]:
        matrices = {op.weight for op in self.program.body + self.program.head if isinstance(op, ops.Linear)}
        embeddings = {op.weight for op in self.program.body if isinstance(op, ops.Embed | ops.EmbedPositions)}
        mixtures = [op for op in self.program.body + self.program.head if isinstance(op, ops.Experts)]
        stacks = {name: self.program.buffers[op.router] for op in mixtures for name in ops.weights_of(op)}
        numbers: dict[str, int] = {}
        for name in self.program.weights():
            tensor = weights[name]
            if name in stacks or name in matrices:
                tensor = multiplied(tensor, self._compute)
            digest.update(f"{name}:{tensor.type}:{tensor.shape}".encode())
            if name in stacks:
                numbers[name] = self._add_stack(tensor, stacks[name], integer, digest)
            else:
                kept = name not in matrices or name in embeddings  # others are packed, and not looked at again
                numbers[name] = self._add_weight(tensor, name in matrices, kept, integer, digest)
        return numbers

    def _add_stack(self, tensor: RawTensor, experts: int, integer: bool, digest: Any) -> int:
        """As many weights as there are experts, one after the other: the number of the first."""
        if len(tensor.shape) != 3 or tensor.shape[0] != experts:
            raise InputError(f"weight {tensor.name!r} has shape {tensor.shape}; expected matrices of {experts} experts")
        numbers = [self._add_weight(part, True, False, integer, digest) for part in tensor.matrices()]
        return numbers[0]

    def _add_weight(self, tensor: RawTensor, matrix: bool, kept: bool, integer: bool, digest: Any) -> int:
        rows, width = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
        data = np.ascontiguousarray(tensor.data)
        kind = tensor.type
        digest.update(np.ascontiguousarray(data[:: max(1, data.size // 4096)]))
        if kind not in NATIVE_TYPES:
            data = dequantize(tensor).view(np.uint8).reshape(-1)
            kind = "F32" if tensor.type in PLAIN_TYPES else "GRID"
        if kept:
            self._kept.append(data)
        try:
            return int(self._core.add_weight(kind, data, rows, width, matrix, integer))
        except ValueError as error:
            raise ModelFileError(f"tensor {tensor.name!r} of type {tensor.type}: {error}") from None

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def isa(self) -> str:
        return str(self._core.path())

    @property
    def rounding(self) -> Rounding:
        """What becomes of factors of linears before they are multiplied."""
        if self._compute == "float32":
            return "none"
        return "bf16" if self.isa == "amx" else "int8"

    @property
    def threads(self) -> int:
        return int(self._core.threads())

    @property
    def engaged_threads(self) -> int:
        """Threads that get work at present: fewer than `threads` where other processes need the cores."""
        return int(self._core.engaged_threads())

    @property
    def experts_scratch_bytes(self) -> int:
        """Memory that mixtures of experts keep for the rows of their next step, in bytes."""
        return int(self._core.experts_scratch_bytes())

    @property
    def packed_bytes(self) -> int:
        """Memory that packed weights take, in bytes."""
        return int(self._core.packed_bytes())

    def progress(self) -> int:
        return int(self._core.progress())

    def profile(self, on: bool) -> None:
        """Begins (from nothing) or ends to keep times of the stages of steps."""
        self._core.profile(on)

    def profile_times(self) -> list[StageTime]:
        """What was kept since profiling began, in the order in which stages were first met."""
        return [StageTime(*row) for row in self._core.profile_times()]

    def break_batch_invariance(self, broken: bool) -> None:
        """Testing aid: lets the order of sums depend on the batch, the mistake that identity tests must catch."""
        self._core.break_batch_invariance(broken)

    def step(self, batch: StepBatch) -> StepOutput:
        if self._last is not None and self._last[0] is batch:
            return self._again(self._last[1])
        self._last = None
        out = self._first(batch)
        self._last = batch, out
        return out

    def _again(self, out: StepOutput) -> StepOutput:
        """The batch of the last call, patched in place: the core still has all its addresses."""
        if out.top_ids.size or out.logprob.any():  # a row without a token leaves them as they were
            out.logprob.fill(0)
            out.rank.fill(0)
            out.top_ids.fill(-1)
            out.top_logprobs.fill(-np.inf)
        try:
            nanoseconds = self._core.step_again()
        except ValueError as error:
            self._last = None
            raise InputError(f"the step was refused: {error}") from None
        self.sample_s = 1e-9 * nanoseconds
        return out

    def _first(self, batch: StepBatch) -> StepOutput:
        s = batch.samples
        logits = np.empty((len(s.index), self.program.vocab_size), np.float32) if batch.want_logits else None
        out = StepOutput.blank(s, logits)
        try:
            nanoseconds = self._core.step(
                batch.token_ids,
                batch.positions,
                batch.query_start,
                batch.tables,
                batch.moves,
                s.index,
                s.target,
                s.num_logprobs,
                s.temperature,
                s.top_k,
                s.top_p,
                s.min_p,
                s.repetition,
                s.frequency,
                s.presence,
                s.seed,
                s.position,
                s.history,
                s.history_row,
                s.prompt_len,
                s.total_len,
                s.allowed_start,
                s.allowed_ids,
                s.banned_start,
                s.banned_ids,
                s.bias_start,
                s.bias_ids,
                s.bias_values,
                s.mask,
                s.ready,
                out.tokens,
                out.logprob,
                out.rank,
                out.top_ids,
                out.top_logprobs,
                self._logits_none if logits is None else logits,
            )
        except ValueError as error:
            raise InputError(f"the step was refused: {error}") from None
        self.sample_s = 1e-9 * nanoseconds
        return out


def flatten(op: ops.Op, buffers: Mapping[str, int], weights: Mapping[str, int]) -> OpTuple:
    """(kind, whole fields, real fields) of one operator, as csrc/executor.hpp expects them."""
    b, w = buffers, weights
    match op:
        case ops.Embed():
            return 0, [b[op.out], w[op.weight]], []
        case ops.EmbedPositions():
            return 1, [b[op.out], w[op.weight], op.offset], []
        case ops.RmsNorm():
            return 2, [b[op.out], b[op.src], w[op.weight], op.group], [op.eps]
        case ops.LayerNorm():
            return 3, [b[op.out], b[op.src], w[op.weight], _optional(op.bias, w)], [op.eps]
        case ops.Linear():
            return 4, [b[op.src], b[op.out], w[op.weight], _optional(op.bias, w), int(op.accumulate)], []
        case ops.Rope():
            return 5, [b[op.buffer], op.heads, op.head_dim, STYLES[op.style]], [op.scale, *op.inv_freq]
        case ops.StoreKV():
            return 6, [op.layer, b[op.key], b[op.value]], []
        case ops.Attend():
            shape = [op.layer, op.heads, op.kv_heads, op.head_dim, op.window]
            return 7, [b[op.out], b[op.query], *shape], [op.scale, op.softcap]
        case ops.Activate():
            return 8, [b[op.out], b[op.src], ACTIVATIONS[op.kind]], []
        case ops.Gate():
            return 9, [b[op.out], b[op.gate], b[op.up], ACTIVATIONS[op.kind]], []
        case ops.Add():
            return 10, [b[op.out], b[op.src]], []
        case ops.Scale():
            return 11, [b[op.buffer]], [op.factor]
        case ops.Softcap():
            return 12, [b[op.buffer]], [op.cap]
        case ops.Experts():
            stacks = [w[op.gate], w[op.up], w[op.down]]
            how = [op.used, ACTIVATIONS[op.kind], int(op.normalised), int(op.accumulate)]
            return 13, [b[op.out], b[op.src], b[op.router], *stacks, *how], [op.scale]
        case ops.ScaleRows():
            return 14, [b[op.buffer], b[op.gate]], []


def _optional(name: str | None, weights: Mapping[str, int]) -> int:
    return -1 if name is None else weights[name]
