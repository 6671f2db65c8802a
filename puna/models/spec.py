"""A decoder described as data: what its layers are, how wide, in which order, with which norms.

A `ModelSpec` is read from a file's metadata by a family (`families/`) and turned into a program by `lowering.py`. A
layer is a sequence of branches, each of which reads the residual stream and adds to it; a new block layout is another
order of branches. Nothing here knows files, weights or backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.kernels.program import Activation, RopeStyle

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class NormSpec:
    """RMSNorm, or LayerNorm with or without a bias."""

    kind: NormKind
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the first `dimensions` values of a head.

    Pair i of d = dimensions / 2 turns by position * base^(-i / d) / linear_factor / frequency_factors[i].
    `frequency_factors` (Llama 3's long-context rule, stored in a file as one number a pair) is empty where there are
    none; cos and sin are multiplied by `magnitude`. `reach`: how long texts may get by the file's rule where that is
    more than the model's own context (dynamic, YaRN), else 0; it turns nothing.
    """

    style: RopeStyle
    dimensions: int
    base: float
    linear_factor: float = 1.0
    frequency_factors: tuple[float, ...] = ()
    magnitude: float = 1.0
    reach: int = 0

    def inverse_frequencies(self) -> tuple[float, ...]:
        pairs = self.dimensions // 2
        factors = self.frequency_factors or (1.0,) * pairs
        return tuple(self.base ** (-i / pairs) / self.linear_factor / factors[i] for i in range(pairs))


@dataclass(frozen=True)
class AttentionSpec:
    """`scale` multiplies q.k; `window` and `softcap` are 0 where there are none; `rope` is None where positions are
    not rotated; `query_key_norm` normalises every query and key head before the rotation or, where `norm_whole_rows`,
    all heads of a token as one row (OLMo 2)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    window: int = 0
    softcap: float = 0.0
    query_key_norm: NormSpec | None = None
    norm_whole_rows: bool = False
    query_bias: bool = False
    key_bias: bool = False
    value_bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class FeedForwardSpec:
    """down(activation(gate(x)) * up(x)) where `gated`, else down(activation(up(x)))."""

    width: int
    activation: Activation
    gated: bool = True
    gate_bias: bool = False
    up_bias: bool = False
    down_bias: bool = False


@dataclass(frozen=True)
class ExpertsSpec:
    """Feed-forwards of `width` of which each token passes through the `used` that a router scores highest.

    The router's scores become weights by a softmax over all experts; those of the chosen sum to one where `normalised`,
    and are multiplied by `scale`. A shared feed-forward of `shared_width` (0: none) is passed by every token, weighted
    by a sigmoid gate of its own where `shared_gate`.
    """

    experts: int
    used: int
    width: int
    activation: Activation
    normalised: bool
    scale: float = 1.0
    shared_width: int = 0
    shared_gate: bool = False


@dataclass(frozen=True)
class BranchSpec:
    """hidden += factor * norm_after(compute(norm_before(hidden))). `name` is unique in its layer and names weights."""

    name: str
    compute: AttentionSpec | FeedForwardSpec | ExpertsSpec
    norm_before: NormSpec | None = None
    norm_after: NormSpec | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class LayerSpec:
    """The branches of one layer, in order. Exactly one of them attends. Where `parallel`, every branch reads the
    residual stream as it was before the layer (GPT-NeoX, Falcon)."""

    branches: tuple[BranchSpec, ...]
    parallel: bool = False

    @property
    def attention(self) -> AttentionSpec:
        return next(branch.compute for branch in self.branches if isinstance(branch.compute, AttentionSpec))

    @property
    def experts(self) -> tuple[ExpertsSpec, ...]:
        return tuple(branch.compute for branch in self.branches if isinstance(branch.compute, ExpertsSpec))

    @property
    def feed_forwards(self) -> tuple[FeedForwardSpec, ...]:
        return tuple(branch.compute for branch in self.branches if isinstance(branch.compute, FeedForwardSpec))


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder. `tied_head`: the output projection is the embedding matrix. `logit_softcap` is 0 where there is
    none; logits are divided by `logit_divisor`. `learned_positions` is the number of positions that a learned table has
    rows for, 0 where there is none; position p reads row p + `position_offset` (OPT: 2)."""

    family: str
    width: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    tied_head: bool
    embedding_scale: float = 1.0
    embedding_norm: NormSpec | None = None
    learned_positions: int = 0
    position_offset: int = 0
    output_bias: bool = False
    logit_divisor: float = 1.0
    logit_softcap: float = 0.0

    @property
    def longest_text(self) -> int:
        """Tokens that a text may have when asked for: the model's context, or what its rotary rule stretches it to."""
        ropes = [layer.attention.rope for layer in self.layers]
        return max(self.context_length, *(rope.reach for rope in ropes if rope is not None), 0)
