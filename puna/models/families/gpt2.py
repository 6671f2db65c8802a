"""GPT-2: learned positions, LayerNorm, a plain feed-forward; in folders every matrix lies turned.

Names begin with "transformer." in files that transformers wrote with a head, and without it in the first ones.
"""

from __future__ import annotations

import math

from puna.models.facts import Facts
from puna.models.families.family import (
    Family,
    Reading,
    Sizes,
    attention,
    feed_forward,
    layer_norm,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
)
from puna.models.families.fused import gguf_heads, queries_keys_values
from puna.models.families.tables import gguf_sources, laid_out
from puna.models.weights import Source, Turned

CONFIG_MODEL = {
    "embedding": "wte.weight",
    "positions": "wpe.weight",
    "output_norm": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
}
CONFIG_LAYER: dict[str, Source] = {
    "attention.norm": "ln_1.weight",
    "attention.norm.bias": "ln_1.bias",
    "attention.output": Turned("attn.c_proj.weight"),
    "attention.output.bias": "attn.c_proj.bias",
    "feed_forward.norm": "ln_2.weight",
    "feed_forward.norm.bias": "ln_2.bias",
    "feed_forward.up": Turned("mlp.c_fc.weight"),
    "feed_forward.up.bias": "mlp.c_fc.bias",
    "feed_forward.down": Turned("mlp.c_proj.weight"),
    "feed_forward.down.bias": "mlp.c_proj.bias",
}


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length, feed_forward_per_width=4)
    sources = _sources(facts, sizes)
    norm = layer_norm(facts, sources)
    activation = read_activation(facts, "gelu_tanh", "activation_function")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, None, scale=_scale(facts, sizes, layer), sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, gated=False, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    spec = model_spec("gpt2", facts, sizes, layers, norm, sources, learned_positions=sizes.context)
    return Reading(spec, sources)


FAMILY = Family("gpt2", ("gpt2",), ("gpt2",), read)


def _scale(facts: Facts, sizes: Sizes, layer: int) -> float:
    scale = 1 / math.sqrt(sizes.head_dim) if facts.flag("scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if facts.flag("scale_attn_by_inverse_layer_idx", False) else scale


def _sources(facts: Facts, sizes: Sizes) -> dict[str, Source]:
    if facts.is_gguf:
        return gguf_sources(sizes.layers, **gguf_heads(facts, sizes))
    before = "" if "wte.weight" in facts.file.tensors else "transformer."
    model = {ours: before + theirs for ours, theirs in CONFIG_MODEL.items()} | {"output": "lm_head.weight"}
    heads = queries_keys_values("attn.c_attn", sizes.heads[0], sizes.kv_heads[0], sizes.head_dim, turned=True)
    return laid_out(sizes.layers, model, CONFIG_LAYER | heads, before + "h.{}.")
