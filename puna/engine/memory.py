"""Shares out memory before anything is allocated: weights, working space, the pool of keys and values.

Knows the lowered program and the options; sizes are exact for the pool and estimates, rounded up, for what a backend
makes of the weights. An engine that would not fit is refused here, with the account and the option that makes it fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from puna.engine.config import EngineConfig
from puna.engine.limits import MemoryLimit
from puna.errors import InputError, MemoryBudgetError
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.program import Experts, Program
from puna.kernels.tensor import RawTensor, multiplied, packed_bits

ASSUMED_BUDGET_TOKENS = 2048  # for the working space, where the budget is measured later
SCORED_ROWS = 256  # rows of logits that are in memory at once
EXPERTS_BYTES = 64 << 20  # rows that wait for experts at a time take no more (csrc/experts.cpp)


@dataclass(frozen=True)
class MemoryRow:
    """One line of the account: what it is, its bytes, and how that number came about."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True)
class MemoryPlan:
    """What the engine will hold. `kv` goes to the backend, `max_model_len` to the scheduler."""

    kv: KVConfig
    max_model_len: int
    rows: tuple[MemoryRow, ...]


def plan_memory(
    config: EngineConfig,
    program: Program,
    weights: Mapping[str, RawTensor],
    context_len: int,
    limits: list[MemoryLimit],
    *,
    longest_len: int | None = None,
) -> MemoryPlan:
    """Sizes the pool. InputError where `max_model_len` exceeds the model's, MemoryBudgetError where it cannot fit.

    `context_len` is what the model was made for, `longest_len` what it can be stretched to on demand.

    Without `kv_bytes` the pool holds `max_seqs` full contexts, but at most `memory_share` of what is free after weights
    and working space. Without `max_model_len` a pool smaller than one full context shortens the context to what fits.
    """
    longest = max(context_len, longest_len or 0)
    if config.max_model_len is not None and config.max_model_len > longest:
        stretched = f" and can be stretched to {longest}" if longest > context_len else ""
        raise InputError(
            f"max_model_len is {config.max_model_len}, but the model was made for {context_len} tokens{stretched}; "
            f"use {longest} or less",
            param="max_model_len",
        )
    max_model_len = config.max_model_len or context_len
    block_bytes = kv_bytes_per_block(program, KVConfig(1, config.block_size, config.kv_dtype))
    weight_bytes = _weight_bytes(config, program, weights)
    work_bytes = _work_bytes(config, program, max_model_len)
    limit = limits[0] if limits else None
    free = max(0, limit.free_bytes - weight_bytes - work_bytes - config.swap_bytes) if limit else None
    full = config.max_seqs * -(-max_model_len // config.block_size) + 1
    if config.kv_bytes is not None:
        blocks, why = config.kv_bytes // block_bytes, "kv_bytes"
    elif free is None or full * block_bytes <= config.memory_share * free:
        blocks, why = full, f"max_seqs={config.max_seqs} full contexts"
    else:
        blocks, why = int(config.memory_share * free) // block_bytes, f"memory_share={config.memory_share:g} of free"
    tier_blocks = config.swap_bytes // block_bytes
    rows: tuple[MemoryRow, ...] = (
        MemoryRow("weights", weight_bytes, "estimate, as the backend keeps them"),
        MemoryRow("working space", work_bytes, "estimate, activations and logits of a step"),
        MemoryRow("keys and values", blocks * block_bytes, f"{blocks} blocks of {config.block_size} tokens: {why}"),
        MemoryRow("swap space", tier_blocks * block_bytes, f"{tier_blocks} blocks: swap_bytes"),
    )
    if free is not None and limit is not None and blocks * block_bytes > free:
        raise MemoryBudgetError(_too_much(config, rows, limit, free, block_bytes, max_model_len))
    held = (blocks - 1) * config.block_size
    if held < (max_model_len if config.max_model_len else min(max_model_len, 2 * config.block_size)):
        raise MemoryBudgetError(_too_small(config, rows, limit, max_model_len, held, block_bytes))
    max_model_len = min(max_model_len, held)
    if limit is not None:
        left = limit.free_bytes - sum(row.bytes for row in rows)
        rows += (MemoryRow("left free", left, f"of {format_bytes(limit.free_bytes)} free: {limit.name}"),)
    return MemoryPlan(KVConfig(blocks, config.block_size, config.kv_dtype, tier_blocks), max_model_len, rows)


def memory_table(plan: MemoryPlan) -> list[tuple[str, str, str]]:
    """Rows to print at start: name, size, note."""
    return [(row.name, format_bytes(row.bytes), row.note) for row in plan.rows]


def format_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _weight_bytes(config: EngineConfig, program: Program, weights: Mapping[str, RawTensor]) -> int:
    tensors = [weights[name] for name in program.weights()]
    if config.backend == "reference":
        return sum(4 * t.elements for t in tensors)
    from puna.kernels.cpu import settled_path

    portable = settled_path(config.isa) == "portable"
    kinds = [multiplied(tensor, config.compute).type for tensor in tensors]
    bits = [_bits(kind, config.compute, portable) for kind in kinds]
    return int(sum(tensor.elements * each / 8 for tensor, each in zip(tensors, bits, strict=True)))


def _bits(type: str, compute: str, portable: bool) -> float:
    """Of a packed weight: float32 where nothing else is multiplied."""
    if (portable and type == "F16") or (compute == "float32" and type not in ("F16", "BF16")):
        return 32
    return packed_bits(type)


def _work_bytes(config: EngineConfig, program: Program, max_model_len: int) -> int:
    tokens = config.budget_tokens or ASSUMED_BUDGET_TOKENS
    widths = sum(width for name, width in program.buffers.items() if name != "logits")
    logits = max(config.max_seqs, SCORED_ROWS) * program.vocab_size
    return 4 * (tokens * widths + logits + config.max_seqs * max_model_len) + _experts_bytes(program, tokens)


def _experts_bytes(program: Program, tokens: int) -> int:
    """Of the largest mixture: rows gathered by expert, up to 15 more an expert where they are rounded in tiles."""
    most = 0
    for op in program.body:
        if isinstance(op, Experts):
            width, experts = max(program.buffers[op.src], op.width), program.buffers[op.router]
            rounded = 128 * -(-width // 32)  # two bf16 a value on tiles; integers take less
            row = 4 * (program.buffers[op.src] + 2 * op.width + program.buffers[op.out]) + rounded
            rows = tokens * op.used
            most = max(most, min(EXPERTS_BYTES, rows * row) + 15 * min(experts, rows) * rounded)
    return most


def _account(rows: tuple[MemoryRow, ...]) -> str:
    return ", ".join(f"{row.name} {format_bytes(row.bytes)}" for row in rows if row.bytes)


def _too_much(
    config: EngineConfig,
    rows: tuple[MemoryRow, ...],
    limit: MemoryLimit,
    free: int,
    block_bytes: int,
    max_model_len: int,
) -> str:
    fits = free // block_bytes * block_bytes
    if config.kv_bytes is not None and fits:
        remedy = f"kv_bytes={fits} or less fits"
    elif config.swap_bytes:
        remedy = f"lower swap_bytes (now {format_bytes(config.swap_bytes)})"
    else:
        remedy = f"free some memory, raise the limit, lower max_model_len (now {max_model_len}) or take a smaller model"
    return (
        f"the model needs {_account(rows)}, but only {format_bytes(limit.free_bytes)} are free in the {limit.name} "
        f"({format_bytes(limit.total_bytes)} in all); {remedy}"
    )


def _too_small(
    config: EngineConfig,
    rows: tuple[MemoryRow, ...],
    limit: MemoryLimit | None,
    max_model_len: int,
    held: int,
    block_bytes: int,
) -> str:
    wanted = max_model_len if config.max_model_len else 2 * config.block_size
    need = (-(-wanted // config.block_size) + 1) * block_bytes
    free = f" of {format_bytes(limit.free_bytes)} free in the {limit.name}" if limit else ""
    shorter = f", or max_model_len={held}" if config.max_model_len and held >= 2 else ""
    return (
        f"the pool of keys and values holds {max(0, held)} tokens but one request may need {wanted} ({_account(rows)}"
        f"{free}); kv_bytes={need} would fit one such request{shorter}"
    )
