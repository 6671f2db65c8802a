"""Qwen 2, 2.5 and 3: Llama's shape with biases on queries, keys and values (2) or normalised heads (3); and both with
experts, of which 2 has a shared one behind a gate.

A window holds only where `use_sliding_window` says so: for the layers from `max_window_layers` on, for all with the
experts of 3. Some layers of a mixture may have a plain feed-forward.
"""

from __future__ import annotations

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.experts import PROJECTIONS, config_experts, experts, gguf_experts
from puna.models.families.family import (
    LAYER_KINDS,
    Family,
    Reading,
    Sizes,
    attention,
    feed_forward,
    has_tensor,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import ExpertsSpec, FeedForwardSpec, NormSpec
from puna.models.weights import Source

WITH_EXPERTS = ("qwen2_moe", "qwen3_moe")
WITH_HEAD_NORMS = ("qwen3", "qwen3_moe")


def read_qwen2(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen2")


def read_qwen3(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen3")


def read_qwen2_moe(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen2_moe")


def read_qwen3_moe(facts: Facts, length: int) -> Reading:
    return _read(facts, length, "qwen3_moe")


def _read(facts: Facts, length: int, family: str) -> Reading:
    sizes = read_sizes(facts, length, head_dim=128 if family in WITH_HEAD_NORMS and not facts.is_gguf else None)
    sources = _sources(facts, sizes, family)
    norm = NormSpec("rms", facts.number("rms_eps", None if facts.is_gguf else 1e-6))
    rope = read_rope(facts, sizes.head_dim, sizes.length)
    activation = read_activation(facts, "silu", "hidden_act")
    windows = window_by_layer(facts, sizes.layers, family)
    layers = []
    normalised = family == "qwen3_moe" and facts.is_gguf  # where the file does not say
    for layer in range(sizes.layers):
        attends = attention(
            facts,
            sizes,
            layer,
            rope,
            window=windows[layer],
            query_key_norm=norm if family in WITH_HEAD_NORMS else None,
            sources=sources,
        )
        feeds: FeedForwardSpec | ExpertsSpec
        if family in WITH_EXPERTS and has_tensor(facts, sources, f"layers.{layer}.experts.router"):
            feeds = experts(facts, sizes, layer, activation, normalised=normalised, sources=sources)
        else:
            feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    return Reading(model_spec(family, facts, sizes, layers, norm, sources), sources)


def window_by_layer(facts: Facts, layers: int, family: str) -> list[int]:
    if facts.is_gguf or not facts.flag("use_sliding_window", False):
        return [0] * layers
    window = facts.integer("window", most=MAX_LENGTH)
    kinds = facts.kinds("layer_types", layers, LAYER_KINDS)
    if kinds is not None:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    if family == "qwen3_moe":
        return [window] * layers
    full = facts.integer("max_window_layers", layers, least=0)
    return [0 if layer < full else window for layer in range(layers)]


QWEN2 = Family("qwen2", ("qwen2",), ("qwen2",), read_qwen2)
QWEN3 = Family("qwen3", ("qwen3",), ("qwen3",), read_qwen3)
QWEN2_MOE = Family("qwen2_moe", ("qwen2moe",), ("qwen2_moe",), read_qwen2_moe)
QWEN3_MOE = Family("qwen3_moe", ("qwen3moe",), ("qwen3_moe",), read_qwen3_moe)


def _sources(facts: Facts, sizes: Sizes, family: str) -> dict[str, Source]:
    if family not in WITH_EXPERTS:
        return gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers)
    if facts.is_gguf:
        return gguf_sources(sizes.layers, **gguf_experts(facts, sizes.layers))
    return config_sources(sizes.layers, **config_experts(facts, sizes.layers, PROJECTIONS))
