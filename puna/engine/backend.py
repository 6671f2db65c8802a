"""Builds the backend that an EngineConfig asks for, and measures what a step of it may cost.

The only place in the engine that names backends. Knows models and memory plans; does not know requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from puna.engine.config import EngineConfig
from puna.engine.limits import memory_limits
from puna.engine.memory import MemoryPlan, format_bytes, plan_memory
from puna.engine.sampling import Draws, SamplingTable
from puna.errors import EngineError, InputError, MemoryBudgetError
from puna.kernels.batch import U64, Interpreter, KVConfig, StepBatch, kv_bytes_per_block
from puna.kernels.program import Linear
from puna.kernels.tensor import multiplied
from puna.models.load import LoadedModel, load_model
from puna.models.names import resolve
from puna.sched.draft import WHOLE_ROWS

STEP_SECONDS = 0.2  # what a step of the default budget may take: under a quarter of a second, with some room
PREFILL_BUDGETS = 3  # that a step may take where nobody waits for a next token
THREADS_A_CORE = 4  # more than one are of no use; many more take minutes for a step
MIN_BUDGET_TOKENS = 64
MAX_BUDGET_TOKENS = 2048
MEASURED_HISTORY, LEAST_HISTORY = 4096, 1024  # keys before a step whose price is measured
CHUNK_TOKENS = 16  # of such a step, and of the first that is timed
TOUCHED_SHARE, MOST_TOUCHED_BYTES = 8, 1 << 30  # of the pool, ahead of its use: an eighth, at most so many bytes


@dataclass(frozen=True)
class Backend:
    """A model bound to an interpreter. `config` has its open fields settled. `history_tokens`: keys before a token that
    cost as much as the rest of computing it, 0 where the budget was given and means tokens, whatever stands before.
    `prefill_tokens`: the budget of a step in which nobody waits for a next token."""

    config: EngineConfig
    model: LoadedModel
    interpreter: Interpreter
    memory: MemoryPlan
    history_tokens: int = 0
    prefill_tokens: int = 0


def open_backend(
    config: EngineConfig, progress: U64 | None = None, on_file: Callable[[LoadedModel], None] | None = None
) -> Backend:
    """Resolves and loads the model, plans memory, packs the weights, settles the budget. `on_file` is called when the
    file has been read: what else is made of it can be made while the native core packs.

    How long texts may get is known once memory is planned; rotary rules that depend on it are settled then.

    Raises ModelNotFoundError, ModelFileError, InputError or MemoryBudgetError. `progress` is a writable array of one
    number, in which the native backend counts operators.
    """
    model = load_model(resolve(config.model))
    if on_file is not None:
        on_file(model)
    config = settle_cache(config, model)
    spec = model.spec
    memory = plan_memory(
        config, model.program, model.weights, spec.context_length, memory_limits(), longest_len=spec.longest_text
    )
    model = model.for_texts_of(memory.max_model_len)
    interpreter = build_interpreter(config, model, memory.kv, progress)
    model.file.release_pages()
    if config.budget_tokens:
        budget, history_tokens, prefill_tokens = config.budget_tokens, 0, config.budget_tokens
    else:
        budget, chunk_seconds = measure_budget(interpreter, memory.max_model_len)
        history_tokens = measure_history(interpreter, memory.max_model_len, budget, chunk_seconds)
        is_slow = budget == MIN_BUDGET_TOKENS  # which takes longer than STEP_SECONDS already
        prefill_tokens = budget if is_slow else min(PREFILL_BUDGETS * budget, MAX_BUDGET_TOKENS)
    settled = msgspec.structs.replace(config, max_model_len=memory.max_model_len, budget_tokens=budget)
    return Backend(settled, model, interpreter, memory, history_tokens, prefill_tokens)


def open_interpreter(config: EngineConfig, kv: KVConfig, model: Path) -> Interpreter:
    """The interpreter of a settled config on a model file, for replaying: with the threads of this machine, on whose
    number no bit depends."""
    loaded = load_model(model, length=config.max_model_len or 0)
    _check_pool(config, kv, loaded)
    return build_interpreter(msgspec.structs.replace(config, threads=0), loaded, kv, None)


def _check_pool(config: EngineConfig, kv: KVConfig, model: LoadedModel) -> None:
    """Of a pool read from a file: InputError where it contradicts its config, MemoryBudgetError where it cannot fit."""
    if (kv.block_size, kv.dtype) != (config.block_size, config.kv_dtype) or kv.num_blocks < 2 or kv.tier_blocks < 0:
        raise InputError(f"the recorded pool ({kv.num_blocks} blocks of {kv.block_size}, {kv.dtype}) cannot be")
    needed = (kv.num_blocks + kv.tier_blocks) * kv_bytes_per_block(model.program, kv)
    limits = memory_limits()
    if limits and needed > limits[0].free_bytes:
        free = format_bytes(limits[0].free_bytes)
        raise MemoryBudgetError(
            f"the recorded pool takes {format_bytes(needed)}, but only {free} are free in the {limits[0].name}; "
            "replay it on a larger machine"
        )


def build_interpreter(config: EngineConfig, model: LoadedModel, kv: KVConfig, progress: U64 | None) -> Interpreter:
    if config.backend == "reference":
        from puna.kernels.reference.interpreter import ReferenceInterpreter

        return ReferenceInterpreter(model.program, model.weights, kv)
    try:
        from puna.kernels.cpu import NativeInterpreter, paths
    except ImportError as error:
        raise EngineError(
            f"the native core cannot be imported ({error}); install Puna with its wheel, build it with "
            "`pip install .`, or use backend='reference' (NumPy, slow)"
        ) from error
    check_threads(config.threads)
    return NativeInterpreter(
        model.program,
        model.weights,
        kv,
        threads=config.threads,
        pin=config.pin,
        isa=path_for(config, paths()),
        compute=config.compute,
        progress=progress,
        touched_ahead=min(kv.num_blocks * kv_bytes_per_block(model.program, kv) // TOUCHED_SHARE, MOST_TOUCHED_BYTES),
    )


def path_for(config: EngineConfig, paths: Sequence[str]) -> str:
    """The instruction path that a config means. "auto" is the best of `paths`, but for an engine that serves one
    sequence at a time it is not "amx": tiles decode weights in more operations, which one stream waits for."""
    if config.isa == "auto" and config.max_seqs == 1 and paths[0] == "amx":
        return paths[1]
    return config.isa


def settle_cache(config: EngineConfig, model: LoadedModel | None = None) -> EngineConfig:
    """With the type that `kv_dtype` "auto" means: bf16 where attention multiplies it on tiles, otherwise f16, which
    takes as much memory and keeps three bits more; f16, too, where most of `model`'s matrices have those bits."""
    if config.kv_dtype != "auto":
        return config
    tiles = False
    matrices = [model.weights[op.weight] for op in model.program.body if isinstance(op, Linear)] if model else []
    compute = config.compute if config.backend == "cpu" else "float32"
    if 2 * sum(multiplied(matrix, compute).type == "F16" for matrix in matrices) > len(matrices):
        return msgspec.structs.replace(config, kv_dtype="f16")
    if config.backend == "cpu" and config.compute != "float32":
        try:
            from puna.kernels.cpu import paths, settled_path
        except ImportError:  # said when the interpreter is built
            return msgspec.structs.replace(config, kv_dtype="f16")
        tiles = settled_path(path_for(config, paths())) == "amx"
    return msgspec.structs.replace(config, kv_dtype="bf16" if tiles else "f16")


def check_threads(threads: int) -> None:
    """InputError where so many threads would only wait for each other."""
    from puna.kernels.cpu import available_threads

    if threads > (most := THREADS_A_CORE * available_threads()):
        raise InputError(
            f"threads is {threads}, but this process may use {available_threads()} cores, and threads without a "
            f"core only wait for each other; use 0 (one a core) or up to {most}",
            param="threads",
        )


def measure_budget(interpreter: Interpreter, max_model_len: int) -> tuple[int, float]:
    """Tokens that this machine prefills in STEP_SECONDS, within fixed bounds, in steps of 16; several WHOLE_ROWS in
    steps of those. And the seconds of a step of CHUNK_TOKENS.

    Runs steps in blocks that belong to no one yet: call it before the first request.
    """
    room = min(max_model_len, (interpreter.kv.num_blocks - 1) * interpreter.kv.block_size)
    tokens = min(CHUNK_TOKENS, room)
    _timed_step(interpreter, tokens)  # first touch of the weights
    seconds = chunk_seconds = _timed_step(interpreter, tokens)
    if tokens < room and seconds < STEP_SECONDS / 6:
        expected = seconds * min(64, room) / tokens
        tokens = min(64, room)  # a matrix product costs a token no less from here on
        seconds = _timed_step(interpreter, tokens)
        if seconds > 0.9 * expected:  # no cheaper a token: a neighbour may have slowed it
            seconds = min(seconds, _timed_step(interpreter, tokens))
    budget = int(tokens * STEP_SECONDS / max(seconds, 1e-6)) // 16 * 16
    if budget >= 2 * WHOLE_ROWS:
        budget = (budget + WHOLE_ROWS // 2) // WHOLE_ROWS * WHOLE_ROWS
    return max(MIN_BUDGET_TOKENS, min(MAX_BUDGET_TOKENS, budget)), chunk_seconds


def measure_history(interpreter: Interpreter, max_model_len: int, budget: int, chunk_seconds: float) -> int:
    """Keys before a token that take as long as one token of a step of `budget` tokens in STEP_SECONDS does without any;
    0 where texts are too short for it to matter. Runs steps as `measure_budget` does, which told `chunk_seconds`."""
    room = min(max_model_len, (interpreter.kv.num_blocks - 1) * interpreter.kv.block_size)
    keys = min(MEASURED_HISTORY, room - CHUNK_TOKENS)
    if keys < LEAST_HISTORY:
        return 0
    behind = min(_timed_step(interpreter, CHUNK_TOKENS, keys) for _ in range(2))  # a neighbour may have slowed one
    seconds_a_key = max(1e-12, behind - chunk_seconds) / (CHUNK_TOKENS * keys)
    return max(1, int(STEP_SECONDS / budget / seconds_a_key))


def _timed_step(interpreter: Interpreter, tokens: int, start: int = 0) -> float:
    """`start`: keys before the step, of which only the time matters."""
    nothing = np.empty(0, dtype=np.int32)
    blocks = -(-(start + tokens) // interpreter.kv.block_size)
    batch = StepBatch(
        token_ids=np.arange(tokens, dtype=np.int32) % np.int32(interpreter.program.vocab_size),
        positions=np.arange(start, start + tokens, dtype=np.int32),
        query_start=np.array([0, tokens], dtype=np.int32),
        tables=np.arange(1, blocks + 1, dtype=np.int32).reshape(1, blocks),
        moves=np.empty((0, 3), dtype=np.int32),
        samples=SamplingTable(1).rows(
            Draws(nothing, nothing, nothing, None, {}, {}, {}, {}), None, np.zeros((1, 1), dtype=np.int32)
        ),
    )
    started = time.perf_counter()
    interpreter.step(batch)
    return time.perf_counter() - started
