"""What a family has to provide, and the parts that most families share.

A family is a mapping: facts to a `ModelSpec`, and the program's weight names to tensors of a file, for each container
that people keep such models in. `read_sizes`, `attention` and `feed_forward` read what nearly all decoders share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.kernels.program import Activation
from puna.models.facts import MAX_HEAD_DIM, MAX_HEADS, MAX_LENGTH, MAX_WIDTH, Facts
from puna.models.spec import (
    AttentionSpec,
    BranchSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from puna.models.weights import Source, first_name


@dataclass(frozen=True)
class Reading:
    """A model as its family understands it. `sources` says where each weight of the program lies; it may name weights
    that the program has not."""

    spec: ModelSpec
    sources: Mapping[str, Source]


@dataclass(frozen=True)
class Family:
    """`gguf` and `config` are the names that files give such a model: `general.architecture`, `model_type`.

    `read(facts, length)` raises ModelFileError; `length` is the longest text that will be run, 0 for the model's own
    context.
    """

    name: str
    gguf: tuple[str, ...]
    config: tuple[str, ...]
    read: Callable[[Facts, int], Reading]


@dataclass(frozen=True)
class Sizes:
    """What every family reads first. `length` is settled: how long a text may get."""

    layers: int
    width: int
    context: int
    length: int
    heads: list[int]
    kv_heads: list[int]
    head_dim: int
    feed_forward: list[int]


def read_sizes(
    facts: Facts,
    length: int,
    *,
    head_dim: int | None = None,
    feed_forward_per_width: int | None = None,
    context: int | None = None,
) -> Sizes:
    """Where the file states none: `head_dim` is taken instead of width / heads, `feed_forward_per_width` times the
    width, and `context`."""
    layers = facts.layers()
    width = facts.integer("width")
    heads = facts.per_layer("heads", layers, most=MAX_HEADS)
    kv_heads = facts.per_layer("kv_heads", layers, heads[0], most=MAX_HEADS)
    for layer, (queries, keys) in enumerate(zip(heads, kv_heads, strict=True)):
        if queries % keys:
            key = facts.key("kv_heads")
            facts.fail(f"{key} is {keys} (layer {layer}): {queries} query heads cannot share them evenly")
    if head_dim is None and not facts.has("head_dim") and width % heads[0]:
        facts.fail(f"{facts.key('width')} is {width}, which {facts.key('heads')}, {heads[0]}, does not divide")
    dim = width // heads[0] if head_dim is None else head_dim
    if not facts.has("head_dim") and not 1 <= dim <= MAX_HEAD_DIM:
        facts.fail(f"{facts.key('width')} is {width} and {facts.key('heads')} {heads[0]}: no head has {dim} values")
    dim = facts.integer("head_dim", dim, most=MAX_HEAD_DIM)
    if facts.integer("value_dim", dim, most=MAX_HEAD_DIM) != dim:
        facts.fail(f"{facts.key('value_dim')}: values and keys (of {dim}) of different length are not supported")
    context = facts.integer("context", context, least=2, most=MAX_LENGTH)
    feed_forward = feed_forward_per_width and min(MAX_WIDTH, feed_forward_per_width * width)
    return Sizes(
        layers=layers,
        width=width,
        context=context,
        length=length or context,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        feed_forward=facts.per_layer("feed_forward", layers, feed_forward),
    )


def attention(
    facts: Facts,
    sizes: Sizes,
    layer: int,
    rope: RopeSpec | None,
    *,
    window: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    query_key_norm: NormSpec | None = None,
    norm_whole_rows: bool = False,
    sources: Mapping[str, Source],
) -> AttentionSpec:
    """Biases are there where their tensors are; `sources` says where that would be."""

    def has_bias(part: str) -> bool:
        return has_tensor(facts, sources, f"layers.{layer}.attention.{part}.bias")

    return AttentionSpec(
        heads=sizes.heads[layer],
        kv_heads=sizes.kv_heads[layer],
        head_dim=sizes.head_dim,
        scale=scale or facts.number("attention_scale", 1.0 / math.sqrt(sizes.head_dim)),
        rope=rope,
        window=window,
        softcap=softcap,
        query_key_norm=query_key_norm,
        norm_whole_rows=norm_whole_rows,
        query_bias=has_bias("query"),
        key_bias=has_bias("key"),
        value_bias=has_bias("value"),
        output_bias=has_bias("output"),
    )


def feed_forward(
    facts: Facts, sizes: Sizes, layer: int, activation: Activation, *, gated: bool = True, sources: Mapping[str, Source]
) -> FeedForwardSpec:
    """Biases as in `attention`."""

    def has_bias(part: str) -> bool:
        return has_tensor(facts, sources, f"layers.{layer}.feed_forward.{part}.bias")

    return FeedForwardSpec(
        sizes.feed_forward[layer],
        activation,
        gated=gated,
        gate_bias=gated and has_bias("gate"),
        up_bias=has_bias("up"),
        down_bias=has_bias("down"),
    )


def layer_norm(facts: Facts, sources: Mapping[str, Source], weight: str = "layers.0.attention.norm") -> NormSpec:
    """LayerNorm, with a bias where the file has one beside `weight`."""
    return NormSpec("layer", facts.number("layer_eps", 1e-5), bias=has_tensor(facts, sources, f"{weight}.bias"))


def pre_norm_layer(
    attends: AttentionSpec,
    feeds: FeedForwardSpec | ExpertsSpec,
    norm: NormSpec,
    *,
    factor: float = 1.0,
    parallel: bool = False,
) -> LayerSpec:
    """The usual layer: attention, then a feed-forward or experts, each of a normalised residual stream."""
    name = "experts" if isinstance(feeds, ExpertsSpec) else "feed_forward"
    branches = (BranchSpec("attention", attends, norm, factor=factor), BranchSpec(name, feeds, norm, factor=factor))
    return LayerSpec(branches, parallel)


LAYER_KINDS = ("full_attention", "sliding_attention")


def windowed_layers(facts: Facts, layers: int, window: int, global_every: int) -> list[int]:
    """The window of each layer, 0 for those that see everything: as the file lists them, else every so manieth layer
    sees everything."""
    if facts.is_gguf:
        pattern = facts.values.get(f"{facts.prefix}.attention.sliding_window_pattern")
        global_every = pattern if type(pattern) is int and pattern > 0 else global_every
        kinds = facts.kinds("attention.sliding_window_pattern", layers, (False, True))
    else:
        kinds = facts.kinds("layer_types", layers, LAYER_KINDS)
    if kinds is not None:
        return [window if kind in (True, "sliding_attention") else 0 for kind in kinds]
    return [0 if (layer + 1) % global_every == 0 else window for layer in range(layers)]


def has_tensor(facts: Facts, sources: Mapping[str, Source], weight: str) -> bool:
    """Whether the file has the tensor that the weight would be made of."""
    return weight in sources and first_name(sources[weight]) in facts.file.tensors


# config.json's names of activations.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def read_activation(facts: Facts, default: Activation, *keys: str) -> Activation:
    """The activation under the first of `keys` that config.json has; GGUF files leave it to the family."""
    key = next((key for key in keys if facts.has(key)), None)
    if facts.is_gguf or key is None:
        return default
    name = facts.text(key)
    if name not in ACTIVATIONS:
        facts.fail(f"config.json: {key!r} is {name!r}; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def model_spec(
    family: str,
    facts: Facts,
    sizes: Sizes,
    layers: Sequence[LayerSpec],
    final_norm: NormSpec | None,
    sources: Mapping[str, Source],
    **more: Any,
) -> ModelSpec:
    """The whole decoder; the head is the embedding matrix where the file has none of its own. `more` are further fields
    of ModelSpec."""
    return ModelSpec(
        family=family,
        width=sizes.width,
        vocab_size=facts.vocab_size(first_name(sources["embedding"])),
        context_length=sizes.context,
        layers=tuple(layers),
        final_norm=final_norm,
        tied_head=not has_tensor(facts, sources, "output"),
        output_bias=has_tensor(facts, sources, "output.bias"),
        **more,
    )
