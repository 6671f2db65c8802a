"""The Llama family: Llama 1 to 3, Mistral, SmolLM, Vicuna, TinyLlama, Yi, dense DeepSeek and all of that shape.

Norms stand before each branch, the feed-forward is gated by SiLU. In GGUF files queries and keys are stored permuted so
that rotation pairs are neighbours ("interleaved"). SmolLM 3 does not rotate in every fourth layer. Mixtral has experts
for feed-forwards; its GGUF files call themselves llama, too.
"""

from __future__ import annotations

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.experts import config_experts, experts, gguf_experts
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
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import ExpertsSpec, FeedForwardSpec, NormSpec
from puna.models.weights import Source

SMOLLM3_INTERVAL = 4  # every so manieth layer is not rotated, where the file does not say
MIXTRAL_EXPERTS = {"gate": "w1", "up": "w3", "down": "w2"}


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    routed = facts.has("experts") and facts.integer("experts", least=0) > 0
    sources = _sources(facts, sizes, routed)
    norm = NormSpec("rms", facts.number("rms_eps"))
    rope = read_rope(facts, sizes.head_dim, sizes.length, gguf_style="interleaved")
    rotated = _rotated_layers(facts, sizes.layers)
    activation = read_activation(facts, "silu", "hidden_act")
    window = facts.integer("window", 0, least=0, most=MAX_LENGTH)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope if rotated[layer] else None, window=window, sources=sources)
        feeds: FeedForwardSpec | ExpertsSpec
        if routed:
            feeds = experts(facts, sizes, layer, activation, normalised=True, sources=sources)
        else:
            feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    return Reading(model_spec("llama", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("llama", ("llama", "smollm3"), ("llama", "mistral", "smollm3", "mixtral"), read)


def _sources(facts: Facts, sizes: Sizes, routed: bool) -> dict[str, Source]:
    if not routed:
        return gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers)
    if facts.is_gguf:
        return gguf_sources(sizes.layers, **gguf_experts(facts, sizes.layers))
    names = {ours: f"block_sparse_moe.experts.{{e}}.{theirs}.weight" for ours, theirs in MIXTRAL_EXPERTS.items()}
    return config_sources(
        sizes.layers, experts__router="block_sparse_moe.gate.weight", **config_experts(facts, sizes.layers, names)
    )


def _rotated_layers(facts: Facts, layers: int) -> list[bool]:
    if facts.file.architecture != "smollm3":
        return [True] * layers
    listed = None if facts.is_gguf else facts.kinds("no_rope_layers", layers, (0, 1))  # 1 for a layer that IS rotated
    if listed is not None:
        return [bool(entry) for entry in listed]
    interval = SMOLLM3_INTERVAL if facts.is_gguf else facts.integer("no_rope_layer_interval", SMOLLM3_INTERVAL)
    return [(layer + 1) % interval != 0 for layer in range(layers)]
