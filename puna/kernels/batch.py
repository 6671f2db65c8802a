"""What one step hands to a backend, and what comes back: flat arrays, no requests.

A step is a ragged batch of R sequences with T new tokens in all; S rows of it are sampled or scored. Arrays are
C-contiguous and of exactly the dtypes written here. Block 0 of the KV pool is the null block: never allocated, a
target for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from puna.kernels.program import KVShape, Program

Rounding = Literal["none", "int8", "bf16"]  # of factors of linears, before they are multiplied

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

# Kinds of block moves, executed in the order given, before the forward pass.
MOVE_COPY = 0  # pool[src] -> pool[dst] (copy-on-write)
MOVE_OUT = 1  # pool[src] -> tier[dst] (swap out)
MOVE_IN = 2  # tier[src] -> pool[dst] (swap in)

NO_TOKEN = -1  # what is drawn from logits that are not numbers: the sequence cannot go on
NOTHING_LEFT = -2  # what is drawn where no token is allowed
GREEDY_BELOW = 1e-5  # a temperature under this means argmax


@dataclass(frozen=True)
class SampleRows:
    """S rows to sample or score, as parallel arrays of length S.

    index           int32  row of the flat batch whose logits are used; may repeat (forks of one prompt)
    target          int32  -1: draw a token; otherwise the token to score (prompt logprobs), nothing is drawn
    num_logprobs    int32  -1: none; k >= 0: logprob and rank of the token, and the k best
    temperature     float32  below 1e-5: greedy
    top_k           int32  0: off
    top_p, min_p    float32  1.0 and 0.0: off
    repetition, frequency, presence   float32  1.0, 0.0, 0.0: off
    seed            uint64, position int32: key of the noise; position is where the drawn token will stand
    history         int32 [rows, width]  token ids of sequences; `history_row` picks a row, of which the first
                    `prompt_len` tokens are the prompt and the first `total_len` are known. Read by penalties only.
    allowed, banned, bias: ragged lists, row s owns [start[s], start[s+1]). An empty `allowed` list allows all.
    mask            uint32 [S, ceil(vocab / 32)]  token i is allowed where bit i % 32 of word i // 32 is set; of no rows
                    where no row has a mask. A token has to be allowed by list and mask.
    ready           uint32 [1]  0 while another thread writes `mask`: drawing waits until that thread has set it
    """

    index: I32
    target: I32
    num_logprobs: I32
    temperature: F32
    top_k: I32
    top_p: F32
    min_p: F32
    repetition: F32
    frequency: F32
    presence: F32
    seed: U64
    position: I32
    history: I32
    history_row: I32
    prompt_len: I32
    total_len: I32
    allowed_start: I32
    allowed_ids: I32
    banned_start: I32
    banned_ids: I32
    bias_start: I32
    bias_ids: I32
    bias_values: F32
    mask: U32 = field(default_factory=lambda: np.zeros((0, 0), np.uint32))
    ready: U32 = field(default_factory=lambda: np.ones(1, np.uint32))


@dataclass(frozen=True)
class StepBatch:
    """One step.

    token_ids   int32 [T]    positions int32 [T], consecutive within a sequence
    query_start int32 [R+1]  sequence r owns flat rows query_start[r] .. query_start[r+1] - 1
    tables      int32 [R, M] physical block of each logical block; unused entries are any block
    moves       int32 [N, 3] (kind, src, dst), see MOVE_*

    The same object may be run again, right after it has run, with other numbers in its arrays (but `num_logprobs`).
    """

    token_ids: I32
    positions: I32
    query_start: I32
    tables: I32
    moves: I32
    samples: SampleRows
    want_logits: bool = False


@dataclass(frozen=True)
class StepOutput:
    """tokens int32 [S] (the target where one was given; NO_TOKEN where the logits are not finite, NOTHING_LEFT where no
    token is allowed); logprob float32 [S] and rank int32 [S] (1 is best), top_ids int32 [S, K] and top_logprobs float32
    [S, K] with K = max(num_logprobs, 0), from the raw logits, padded with -1 and -inf; logits float32 [S, vocab] raw,
    only where asked for. Where the same batch runs again, the arrays may be those of the run before, overwritten: take
    what you need before that."""

    tokens: I32
    logprob: F32
    rank: I32
    top_ids: I32
    top_logprobs: F32
    logits: F32 | None

    @classmethod
    def blank(cls, samples: SampleRows, logits: F32 | None = None) -> StepOutput:
        """Arrays of these rows' shapes, padded, to be written into; tokens hold nothing yet."""
        count, best = len(samples.index), max(0, int(samples.num_logprobs.max(initial=0)))
        return cls(
            tokens=np.empty(count, np.int32),
            logprob=np.zeros(count, np.float32),
            rank=np.zeros(count, np.int32),
            top_ids=np.full((count, best), -1, np.int32),
            top_logprobs=np.full((count, best), -np.inf, np.float32),
            logits=logits,
        )


@dataclass(frozen=True)
class KVConfig:
    """The pool: `num_blocks` blocks (null block included) of `block_size` tokens in every layer; `dtype` is
    "f32", "bf16", "f16" or "int8"; `tier_blocks` more blocks of the same layout outside the pool, for swapping."""

    num_blocks: int
    block_size: int = 16
    dtype: str = "f16"
    tier_blocks: int = 0


class Interpreter(Protocol):
    """A backend bound to one model: it runs steps and remembers keys and values, nothing else. `sample_s`: what of the
    last step went into drawing and scoring, in seconds."""

    program: Program
    kv: KVConfig
    batch_invariant: bool
    sample_s: float

    @property
    def fingerprint(self) -> str:
        """Names everything that decides the bits of an answer: weights, numeric path, cache type."""
        ...

    def step(self, batch: StepBatch) -> StepOutput: ...

    def progress(self) -> int:
        """A counter that moves with every operator executed."""
        ...


def kv_bytes_per_block(program: Program, kv: KVConfig) -> int:
    """Bytes that one block takes in all layers."""
    return sum(kv_bytes_per_token(shape, kv.dtype) for shape in program.kv) * kv.block_size


def kv_bytes_per_token(shape: KVShape, dtype: str) -> int:
    """Bytes that a token takes in a layer of that shape: keys, values and, in int8, their scales."""
    element, scale = {"f32": (4, 0), "bf16": (2, 0), "f16": (2, 0), "int8": (1, 4)}[dtype]
    return 2 * shape.kv_heads * (shape.head_dim * element + scale)


def attends_on_tiles(head_dim: int, kv_dtype: str) -> bool:
    """Whether a path with tiles of bf16 computes attention on them, with factors in bf16 (csrc/cache_layout.hpp)."""
    return kv_dtype == "bf16" and head_dim % 32 == 0
