"""What an engine is started with: one struct that the command line, `puna.LLM` and the engine process share.

Values are checked when the struct is made, without looking at the model or the machine. Fields that are None are
settled at start, from the model and from what the machine can hold (`puna.engine.memory`, `puna.engine.backend`).
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import msgspec

from puna.errors import InputError

Backend = Literal["cpu", "reference"]
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NATIVE_BLOCK = 16
MAX_SEQS_LIMIT = 4096


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Options of one engine.

    model: a path, or a name that `puna.models.names.resolve` knows. backend "cpu" is the native one, "reference" NumPy.
    compute, isa, threads: the native backend's numeric path, instruction path and thread count (0: one a core). isa
        "auto" is the best path for max_seqs (`puna.engine.backend.path_for`).
    pin: gives each of those threads a core of its own, where they are all that this process may use.
    kv_dtype, kv_bytes, swap_bytes, memory_share: type and size of the pool of keys and values, of the swap space beside
    it, and the share of free memory that a pool without a size may take. kv_dtype "auto" is the type that attention is
    quickest with, or f16 where the weights are (`puna.engine.backend.settle_cache`).
    budget_tokens: tokens a step may compute (None: measured, so that a step stays under a quarter of a second, also
    behind a long history, where chunks of a prompt get fewer; up to three times as many while nobody waits for a next).
    watermark: share of the pool that stays free when a waiting request is admitted beside running ones.
    long_prefill_tokens: most prompt tokens of one request in a step (0: the budget).
    max_waiting_seqs, max_waiting_tokens: admission limits (0 tokens: none). record: write every step to this file.
    """

    model: str = "smollm2"
    backend: Backend = "cpu"
    compute: Literal["int8", "float32"] = "int8"
    isa: str = "auto"
    threads: int = 0
    pin: bool = True
    kv_dtype: Literal["auto", "f16", "bf16", "f32", "int8"] = "auto"
    kv_bytes: int | None = None
    swap_bytes: int = 0
    memory_share: float = 0.4
    block_size: int = 16
    budget_tokens: int | None = None
    max_seqs: int = 64
    max_model_len: int | None = None
    policy: Literal["fcfs", "priority"] = "fcfs"
    prefix_cache: bool = True
    watermark: float = 0.0
    long_prefill_tokens: int = 0
    max_waiting_seqs: int = 1024
    max_waiting_tokens: int = 0
    record: str | None = None

    def __post_init__(self) -> None:
        _check(self)


def config_from(options: dict[str, Any]) -> EngineConfig:
    """An EngineConfig from keyword options. InputError names an unknown option, and the nearest known one."""
    for name in options:
        if name not in EngineConfig.__struct_fields__:
            near = difflib.get_close_matches(name, EngineConfig.__struct_fields__, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(EngineConfig.__struct_fields__)}"
            raise InputError(f"{name} is not an engine option; {hint}", param=name)
    return EngineConfig(**options)


def _check(c: EngineConfig) -> None:
    _text("model", c.model)
    _choice("backend", c.backend, ("cpu", "reference"))
    _choice("compute", c.compute, ("int8", "float32"))
    _choice("kv_dtype", c.kv_dtype, ("auto", "f16", "bf16", "f32", "int8"))
    _choice("policy", c.policy, ("fcfs", "priority"))
    _choice("block_size", c.block_size, BLOCK_SIZES)
    if c.backend == "cpu" and c.block_size % NATIVE_BLOCK:
        raise InputError(
            f"block_size is {c.block_size}, but the native backend takes multiples of {NATIVE_BLOCK}; "
            f"use {NATIVE_BLOCK}, or backend='reference'",
            param="block_size",
        )
    _choice("pin", c.pin, (True, False))
    _choice("prefix_cache", c.prefix_cache, (True, False))
    _text("isa", c.isa)
    if c.record is not None:
        _text("record", c.record)
    _whole("threads", c.threads, 0, 1024)
    _whole("swap_bytes", c.swap_bytes, 0)
    _whole("max_seqs", c.max_seqs, 1, MAX_SEQS_LIMIT)
    _whole("long_prefill_tokens", c.long_prefill_tokens, 0)
    _whole("max_waiting_seqs", c.max_waiting_seqs, 1)
    _whole("max_waiting_tokens", c.max_waiting_tokens, 0)
    if c.kv_bytes is not None:
        _whole("kv_bytes", c.kv_bytes, 1)
    if c.budget_tokens is not None:
        _whole("budget_tokens", c.budget_tokens, 1, 1 << 20)
    if c.max_model_len is not None:
        _whole("max_model_len", c.max_model_len, 2)
    _share("memory_share", c.memory_share, 0.01, 0.95)
    _share("watermark", c.watermark, 0.0, 0.5)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} is {value!r}; it takes a text that is not empty", param=name)


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}", param=name)


def _whole(name: str, value: object, low: int, high: int = 2**62) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wanted = f"{low} or more" if high == 2**62 else f"from {low} to {high}"
        raise InputError(f"{name} is {value!r}; it takes a whole number, {wanted}", param=name)


def _share(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it takes a share from {low:g} to {high:g}", param=name)
