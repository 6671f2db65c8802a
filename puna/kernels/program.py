"""The operator set, and the program that a model is lowered to.

A program is a straight line of operators over named buffers. A buffer holds one float32 row per token of the step's
flat batch. The `body` runs on all T tokens of a step; the `head` runs on the S rows whose logits are wanted (it begins
with those rows of buffer `hidden`) and leaves vocabulary-wide rows in buffer `logits`. Operators name weights; they
know nothing of files, requests or devices. Every backend is an interpreter of this.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
RopeStyle = Literal["interleaved", "halves"]


@dataclass(frozen=True)
class Embed:
    """out[t] = weight[token_ids[t]]."""

    out: str
    weight: str


@dataclass(frozen=True)
class EmbedPositions:
    """out[t] += weight[positions[t] + offset]: learned positions (GPT-2, OPT)."""

    out: str
    weight: str
    offset: int = 0


@dataclass(frozen=True)
class RmsNorm:
    """out = src / sqrt(mean(src^2) + eps) * weight, over the row or, if `group` > 0, over each run of `group` values
    (then weight has `group` values: query and key norms)."""

    src: str
    out: str
    weight: str
    eps: float
    group: int = 0


@dataclass(frozen=True)
class LayerNorm:
    """out = (src - mean) / sqrt(variance + eps) * weight + bias, over the row."""

    src: str
    out: str
    weight: str
    bias: str | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """out = src @ weight.T (+ bias), or out += ... where `accumulate`. weight: (out_features, in_features)."""

    src: str
    out: str
    weight: str
    bias: str | None = None
    accumulate: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of every head of `buffer`, in place.

    The first `2 * len(inv_freq)` values of a head rotate, the rest stay. Pair i turns by positions[t] * inv_freq[i];
    it is (2i, 2i+1) for "interleaved" and (i, i + len(inv_freq)) for "halves". cos and sin are multiplied by `scale`.
    """

    buffer: str
    heads: int
    head_dim: int
    inv_freq: tuple[float, ...]
    style: RopeStyle
    scale: float = 1.0


@dataclass(frozen=True)
class StoreKV:
    """Writes this step's keys and values into the KV pool of `layer`, at each token's slot."""

    layer: int
    key: str
    value: str


@dataclass(frozen=True)
class Attend:
    """Causal attention of `query` over the sequence's cached keys and values of `layer`.

    Token at position p sees keys at positions max(0, p - window + 1) .. p (all where window is 0).
    score = softcap(scale * q.k): where softcap > 0, softcap * tanh(x / softcap). Query head h reads key head
    h // (heads // kv_heads).
    """

    layer: int
    query: str
    out: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True)
class Activate:
    """out = activation(src)."""

    src: str
    out: str
    kind: Activation


@dataclass(frozen=True)
class Gate:
    """out = activation(gate) * up."""

    gate: str
    up: str
    out: str
    kind: Activation


@dataclass(frozen=True)
class Experts:
    """out = sum over a token's experts e of share_e * (activation(src @ gate_e.T) * (src @ up_e.T)) @ down_e.T.

    Buffer `router` holds a score for each of E experts. Its softmax over all E gives shares; a token's experts are the
    `used` with the highest ones (of equals the lower number), in that order, which is the order of the sum. Their
    shares are divided by their sum where `normalised`, then multiplied by `scale`. out += ... where `accumulate`.
    gate, up: (E, width, in_features); down: (E, out_features, width).
    """

    src: str
    router: str
    out: str
    gate: str
    up: str
    down: str
    used: int
    width: int
    kind: Activation
    normalised: bool
    scale: float = 1.0
    accumulate: bool = False


@dataclass(frozen=True)
class ScaleRows:
    """buffer[t] *= sigmoid(gate[t, 0]); `gate` is one value wide."""

    buffer: str
    gate: str


@dataclass(frozen=True)
class Add:
    """out += src."""

    src: str
    out: str


@dataclass(frozen=True)
class Scale:
    """buffer *= factor."""

    buffer: str
    factor: float


@dataclass(frozen=True)
class Softcap:
    """buffer = cap * tanh(buffer / cap)."""

    buffer: str
    cap: float


Op = (
    Embed
    | EmbedPositions
    | RmsNorm
    | LayerNorm
    | Linear
    | Rope
    | StoreKV
    | Attend
    | Activate
    | Gate
    | Experts
    | ScaleRows
    | Add
    | Scale
    | Softcap
)


@dataclass(frozen=True)
class KVShape:
    """Keys and values of one layer: heads and values a head."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Program:
    """A lowered model.

    `buffers` maps a buffer's name to its width in float32 values. "hidden" is what the body leaves for the head,
    "logits" what the head leaves for sampling; "logits" has width `vocab_size`. `kv` has one entry a layer.
    """

    buffers: dict[str, int]
    body: tuple[Op, ...]
    head: tuple[Op, ...]
    kv: tuple[KVShape, ...]
    vocab_size: int

    def weights(self) -> tuple[str, ...]:
        """Names of all weights the program reads, each once, in order of first use."""
        return tuple(dict.fromkeys(name for op in self.body + self.head for name in weights_of(op)))

    def digest(self) -> bytes:
        """Names what the program computes, to the last bit of a number: rotations, windows, the order of operators."""
        return hashlib.sha256(repr((self.buffers, self.body, self.head, self.kv)).encode()).digest()


def weights_of(op: Op) -> tuple[str, ...]:
    """Names of the weights that an operator reads."""
    if isinstance(op, Experts):
        return op.gate, op.up, op.down
    found = (getattr(op, field, None) for field in ("weight", "bias"))
    return tuple(name for name in found if name is not None)
