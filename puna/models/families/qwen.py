"""Qwen 2, 2.5 and 3: Llama's shape with biases on queries, keys and values (2) or normalised heads (3).

A window holds for the layers from `max_window_layers` on, and only where `use_sliding_window` says so.
"""

from __future__ import annotations

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.family import (
    Family,
    Reading,
    attention,
    feed_forward,
    model_spec,
    read_activation,
    read_sizes,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import BranchSpec, LayerSpec, NormSpec


def read_qwen2(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen2")


def read_qwen3(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen3")


def _read(facts: Facts, length: int, family: str) -> Reading:
    sizes = read_sizes(facts, length, head_dim=128 if family == "qwen3" and not facts.is_gguf else None)
    sources = gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers)
    norm = NormSpec("rms", facts.number("rms_eps", None if facts.is_gguf else 1e-6))
    rope = read_rope(facts, sizes.head_dim, sizes.length)
    activation = read_activation(facts, "silu", "hidden_act")
    windows = window_by_layer(facts, sizes.layers)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(
            facts,
            sizes,
            layer,
            rope,
            window=windows[layer],
            query_key_norm=norm if family == "qwen3" else None,
            sources=sources,
        )
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(LayerSpec((BranchSpec("attention", attends, norm), BranchSpec("feed_forward", feeds, norm))))
    return Reading(model_spec(family, facts, sizes, layers, norm, sources), sources)


def window_by_layer(facts: Facts, layers: int) -> list[int]:
    if facts.is_gguf or not facts.flag("use_sliding_window", False):
        return [0] * layers
    window = facts.integer("window", most=MAX_LENGTH)
    kinds = facts.values.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    full = facts.integer("max_window_layers", layers, least=0)
    return [0 if layer < full else window for layer in range(layers)]


QWEN2 = Family("qwen2", ("qwen2",), ("qwen2",), read_qwen2)
QWEN3 = Family("qwen3", ("qwen3",), ("qwen3",), read_qwen3)
