"""OLMo 1 to 3, and OLMoE. OLMo 1 is Llama's shape with a LayerNorm that has no weights; in GGUF its queries and keys
are stored permuted. In the others queries and keys are normalised over the whole row of all heads.

OLMo 2 and 3 have norms after each branch and none before. In OLMo 3 three of four layers see a window and are never
stretched. OLMoE is a mixture of experts with norms before each branch.
"""

from __future__ import annotations

from dataclasses import replace

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.experts import PROJECTIONS, config_experts, experts, gguf_experts
from puna.models.families.family import (
    Family,
    Reading,
    attention,
    feed_forward,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
    windowed_layers,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import BranchSpec, LayerSpec, NormSpec, RopeSpec
from puna.models.weights import Ones

OLMO3_BASE = 500_000.0
GLOBAL_EVERY = 4  # every so manieth layer of OLMo 3 sees everything, where the file does not say


def read_olmo1(facts: Facts, length: int) -> Reading:
    _refuse_clipping(facts)
    sizes = read_sizes(facts, length)
    ones = Ones(sizes.width)
    table = gguf_sources if facts.is_gguf else config_sources
    sources = table(sizes.layers, attention__norm=ones, feed_forward__norm=ones) | {"output_norm": ones}
    norm = NormSpec("layer", 1e-5)
    rope = read_rope(facts, sizes.head_dim, sizes.length, gguf_style="interleaved")
    activation = read_activation(facts, "silu", "hidden_act")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    return Reading(model_spec("olmo", facts, sizes, layers, norm, sources), sources)


def read_olmo2(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    sources = (
        gguf_sources(sizes.layers)
        if facts.is_gguf
        else config_sources(
            sizes.layers,
            attention__norm_after="post_attention_layernorm.weight",
            feed_forward__norm_after="post_feedforward_layernorm.weight",
        )
    )
    norm = NormSpec("rms", facts.number("rms_eps", 1e-5))
    window = facts.integer("window", 0, least=0, most=MAX_LENGTH)
    windows = windowed_layers(facts, sizes.layers, window, GLOBAL_EVERY)
    base = OLMO3_BASE if any(windows) else 10_000.0
    rope = read_rope(facts, sizes.head_dim, sizes.length, base=base, layer_type="full_attention")
    activation = read_activation(facts, "silu", "hidden_act")
    layers = []
    for layer, window in enumerate(windows):
        attends = attention(
            facts,
            sizes,
            layer,
            _unstretched(rope) if window else rope,
            window=window,
            query_key_norm=norm,
            norm_whole_rows=True,
            sources=sources,
        )
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(
            LayerSpec(
                (
                    BranchSpec("attention", attends, norm_after=norm),
                    BranchSpec("feed_forward", feeds, norm_after=norm),
                )
            )
        )
    return Reading(model_spec("olmo2", facts, sizes, layers, norm, sources), sources)


def read_olmoe(facts: Facts, length: int) -> Reading:
    _refuse_clipping(facts)
    sizes = read_sizes(facts, length)
    if facts.is_gguf:
        sources = gguf_sources(sizes.layers, **gguf_experts(facts, sizes.layers))
    else:
        sources = config_sources(sizes.layers, **config_experts(facts, sizes.layers, PROJECTIONS))
    norm = NormSpec("rms", facts.number("rms_eps", 1e-5))
    rope = read_rope(facts, sizes.head_dim, sizes.length)
    activation = read_activation(facts, "silu", "hidden_act")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, query_key_norm=norm, norm_whole_rows=True, sources=sources)
        routed = experts(facts, sizes, layer, activation, normalised=False, sources=sources)
        layers.append(pre_norm_layer(attends, routed, norm))
    return Reading(model_spec("olmoe", facts, sizes, layers, norm, sources), sources)


OLMO1 = Family("olmo", ("olmo",), ("olmo",), read_olmo1)
OLMO2 = Family("olmo2", ("olmo2",), ("olmo2", "olmo3"), read_olmo2)
OLMOE = Family("olmoe", ("olmoe",), ("olmoe",), read_olmoe)


def _refuse_clipping(facts: Facts) -> None:
    key = "attention.clamp_kqv" if facts.is_gguf else "clip_qkv"
    if facts.has(key) and facts.number(key, above=-1.0) > 0:
        facts.fail(f"{key!r}: clipped queries, keys and values are not supported")


def _unstretched(rope: RopeSpec) -> RopeSpec:
    return replace(rope, linear_factor=1.0, frequency_factors=(), magnitude=1.0)
