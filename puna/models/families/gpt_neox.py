"""GPT-NeoX and Pythia: attention and feed-forward beside each other, and a quarter of each head rotated.

Queries, keys and values are one tensor, head by head in folders, by kind in GGUF files.
"""

from __future__ import annotations

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
from puna.models.families.fused import check_rows, gguf_heads, queries_keys_values
from puna.models.families.tables import gguf_sources, laid_out
from puna.models.rope import read_rope
from puna.models.weights import Source

CONFIG_MODEL = {
    "embedding": "gpt_neox.embed_in.weight",
    "output_norm": "gpt_neox.final_layer_norm.weight",
    "output_norm.bias": "gpt_neox.final_layer_norm.bias",
    "output": "embed_out.weight",
}
CONFIG_LAYER = {
    "attention.norm": "input_layernorm.weight",
    "attention.norm.bias": "input_layernorm.bias",
    "attention.output": "attention.dense.weight",
    "attention.output.bias": "attention.dense.bias",
    "feed_forward.norm": "post_attention_layernorm.weight",
    "feed_forward.norm.bias": "post_attention_layernorm.bias",
    "feed_forward.up": "mlp.dense_h_to_4h.weight",
    "feed_forward.up.bias": "mlp.dense_h_to_4h.bias",
    "feed_forward.down": "mlp.dense_4h_to_h.weight",
    "feed_forward.down.bias": "mlp.dense_4h_to_h.bias",
}
ROTATED = 0.25  # of each head, where the file does not say


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    sources = _sources(facts, sizes)
    norm = layer_norm(facts, sources)
    rope = read_rope(
        facts,
        sizes.head_dim,
        sizes.length,
        base=facts.number("rotary_emb_base", 10_000.0),
        share=facts.number("rotary_pct", ROTATED, most=1.0),
    )
    activation = read_activation(facts, "gelu", "hidden_act")
    parallel = facts.flag("use_parallel_residual", True)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, gated=False, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm, parallel=parallel))
    return Reading(model_spec("gpt_neox", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("gpt_neox", ("gptneox",), ("gpt_neox",), read)


def _sources(facts: Facts, sizes: Sizes) -> dict[str, Source]:
    if facts.is_gguf:
        return gguf_sources(sizes.layers, **gguf_heads(facts, sizes))
    check_rows(facts, "gpt_neox.layers.0.attention.query_key_value.weight", sizes)
    heads = queries_keys_values(
        "attention.query_key_value", sizes.heads[0], sizes.kv_heads[0], sizes.head_dim, by_group=True
    )
    return laid_out(sizes.layers, CONFIG_MODEL, CONFIG_LAYER | heads, "gpt_neox.layers.{}.")
