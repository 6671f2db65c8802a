"""Phi 3, 3.5 and 4: Llama's shape with fused matrices, a window over all layers and LongRoPE.

One matrix holds queries, keys and values, one the feed-forward's gate above its upper matrix; in Phi-4-mini a part of
each head is rotated. The mixtures of experts (Phi-3.5-MoE) and the vision models are other families.
"""

from __future__ import annotations

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.family import (
    Family,
    Reading,
    Sizes,
    attention,
    feed_forward,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
)
from puna.models.families.fused import gguf_heads, queries_keys_values
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import NormSpec
from puna.models.weights import Rows, Source


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    sources = _sources(facts, sizes)
    norm = NormSpec("rms", facts.number("rms_eps", 1e-5))
    rope = read_rope(facts, sizes.head_dim, sizes.length)
    activation = read_activation(facts, "silu", "hidden_act")
    window = facts.integer("window", 0, least=0, most=MAX_LENGTH)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, window=window, sources=sources)
        layers.append(pre_norm_layer(attends, feed_forward(facts, sizes, layer, activation, sources=sources), norm))
    return Reading(model_spec("phi3", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("phi3", ("phi3",), ("phi3",), read)


def _sources(facts: Facts, sizes: Sizes) -> dict[str, Source]:
    width = sizes.feed_forward[0]
    if facts.is_gguf:
        return gguf_sources(sizes.layers, **gguf_heads(facts, sizes), **_gate_above_up("ffn_up.weight", width))
    heads = queries_keys_values("self_attn.qkv_proj", sizes.heads[0], sizes.kv_heads[0], sizes.head_dim)
    return config_sources(sizes.layers, **heads, **_gate_above_up("mlp.gate_up_proj.weight", width))


def _gate_above_up(fused: str, width: int) -> dict[str, Source]:
    return {"feed_forward.gate": Rows(fused, 0, width), "feed_forward.up": Rows(fused, width, 2 * width)}
