"""The Llama family: Llama 1 to 3, Mistral, SmolLM, Vicuna, TinyLlama, Yi, dense DeepSeek and all of that shape.

Norms stand before each branch, the feed-forward is gated by SiLU. In GGUF files queries and keys are stored permuted so
that rotation pairs are neighbours ("interleaved"). SmolLM 3 does not rotate in every fourth layer.
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

SMOLLM3_INTERVAL = 4  # every so manieth layer is not rotated, where the file does not say


def read(facts: Facts, length: int) -> Reading:
    if facts.has("experts") and facts.integer("experts", least=0):
        facts.fail("the model calls itself llama but is a mixture of experts, which is another family")
    sizes = read_sizes(facts, length)
    sources = gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers)
    norm = NormSpec("rms", facts.number("rms_eps"))
    rope = read_rope(facts, sizes.head_dim, sizes.length, gguf_style="interleaved")
    rotated = _rotated_layers(facts, sizes.layers)
    activation = read_activation(facts, "silu", "hidden_act")
    window = facts.integer("window", 0, least=0, most=MAX_LENGTH)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope if rotated[layer] else None, window=window, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(LayerSpec((BranchSpec("attention", attends, norm), BranchSpec("feed_forward", feeds, norm))))
    return Reading(model_spec("llama", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("llama", ("llama", "smollm3"), ("llama", "mistral", "smollm3"), read)


def _rotated_layers(facts: Facts, layers: int) -> list[bool]:
    if facts.file.architecture != "smollm3":
        return [True] * layers
    listed = facts.values.get("no_rope_layers")  # one for every layer that IS rotated
    if isinstance(listed, list) and len(listed) == layers:
        return [bool(entry) for entry in listed]
    interval = SMOLLM3_INTERVAL if facts.is_gguf else facts.integer("no_rope_layer_interval", SMOLLM3_INTERVAL)
    return [(layer + 1) % interval != 0 for layer in range(layers)]
