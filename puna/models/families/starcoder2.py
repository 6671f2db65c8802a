"""StarCoder 2: LayerNorm and biases everywhere, grouped heads, rotated, with a window; a plain feed-forward of GELU."""

from __future__ import annotations

from puna.models.facts import MAX_LENGTH, Facts
from puna.models.families.family import (
    Family,
    Reading,
    attention,
    feed_forward,
    layer_norm,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.weights import Source

CONFIG_NAMES: dict[str, Source] = {
    "feed_forward.up": "mlp.c_fc.weight",
    "feed_forward.up.bias": "mlp.c_fc.bias",
    "feed_forward.down": "mlp.c_proj.weight",
    "feed_forward.down.bias": "mlp.c_proj.bias",
}


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    sources = gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers, **CONFIG_NAMES)
    norm = layer_norm(facts, sources)
    rope = read_rope(facts, sizes.head_dim, sizes.length)
    activation = read_activation(facts, "gelu_tanh", "hidden_act")
    window = facts.integer("window", 0, least=0, most=MAX_LENGTH)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, window=window, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, gated=False, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    return Reading(model_spec("starcoder2", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("starcoder2", ("starcoder2",), ("starcoder2",), read)
