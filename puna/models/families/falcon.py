"""Falcon: attention and feed-forward beside each other, with one norm for both (7B, 11B) or one each (40B, 180B).

In 7B all query heads share one key head, in larger ones ("new_decoder_architecture") a group of them does; folders
keep queries, keys and values group by group. Falcon-RW comes with ALiBi positions, which are refused.
"""

from __future__ import annotations

from dataclasses import replace

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

CONTEXT = 2048  # where the file states none
CONFIG_MODEL = {
    "embedding": "transformer.word_embeddings.weight",
    "output_norm": "transformer.ln_f.weight",
    "output_norm.bias": "transformer.ln_f.bias",
    "output": "lm_head.weight",
}
CONFIG_LAYER = {
    "attention.output": "self_attention.dense.weight",
    "attention.output.bias": "self_attention.dense.bias",
    "feed_forward.up": "mlp.dense_h_to_4h.weight",
    "feed_forward.up.bias": "mlp.dense_h_to_4h.bias",
    "feed_forward.down": "mlp.dense_4h_to_h.weight",
    "feed_forward.down.bias": "mlp.dense_4h_to_h.bias",
}


def read(facts: Facts, length: int) -> Reading:
    if facts.flag("alibi", False):
        facts.fail("config.json: 'alibi' is true (Falcon-RW); positions by attention biases are not supported")
    sizes = read_sizes(facts, length, feed_forward_per_width=4, context=CONTEXT)
    grouped = facts.flag("new_decoder_architecture", False)
    if not facts.is_gguf and not grouped:
        kv_heads = 1 if facts.flag("multi_query", True) else sizes.heads[0]
        sizes = replace(sizes, kv_heads=[kv_heads] * sizes.layers)
    parallel = grouped or facts.flag("parallel_attn", True)
    sources = _gguf_sources(facts, sizes) if facts.is_gguf else _config_sources(facts, sizes, parallel)
    norm = layer_norm(facts, sources)
    rope = read_rope(facts, sizes.head_dim, sizes.length, context=CONTEXT)
    activation = read_activation(facts, "gelu", "activation")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, gated=False, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm, parallel=parallel))
    return Reading(model_spec("falcon", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("falcon", ("falcon",), ("falcon",), read)


def _gguf_sources(facts: Facts, sizes: Sizes) -> dict[str, Source]:
    """Of two norms, `attn_norm` is the feed-forward's."""
    own = "attn_norm_2" if "blk.0.attn_norm_2.weight" in facts.file.tensors else "attn_norm"
    return gguf_sources(sizes.layers, **_norms(own, "attn_norm"), **gguf_heads(facts, sizes))


def _config_sources(facts: Facts, sizes: Sizes, parallel: bool) -> dict[str, Source]:
    check_rows(facts, "transformer.h.0.self_attention.query_key_value.weight", sizes)
    heads = queries_keys_values(
        "self_attention.query_key_value", sizes.heads[0], sizes.kv_heads[0], sizes.head_dim, by_group=True
    )
    if not parallel:
        norms = _norms("input_layernorm", "post_attention_layernorm")
    elif "transformer.h.0.ln_attn.weight" in facts.file.tensors:
        norms = _norms("ln_attn", "ln_mlp")
    else:
        norms = _norms("input_layernorm", "input_layernorm")
    return laid_out(sizes.layers, CONFIG_MODEL, CONFIG_LAYER | norms | heads, "transformer.h.{}.")


def _norms(attention: str, feed_forward: str) -> dict[str, Source]:
    return {
        f"{branch}.norm{bias}": f"{name}{bias or '.weight'}"
        for branch, name in (("attention", attention), ("feed_forward", feed_forward))
        for bias in ("", ".bias")
    }
