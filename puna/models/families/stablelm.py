"""StableLM 2 and 3B: Llama's shape with LayerNorm, a quarter of each head rotated, and biases on some sizes.

Where branches stand beside each other (12B) they share one norm. The same models normalise each head with weights of
its own, which no operator does; they are refused.
"""

from __future__ import annotations

from puna.models.facts import Facts
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

ROTATED = 0.25  # of each head, where the file does not say


def read(facts: Facts, length: int) -> Reading:
    if facts.flag("qk_layernorm", False) or "blk.0.attn_q_norm.weight" in facts.file.tensors:
        facts.fail("the model normalises queries and keys with weights of each head's own, which is not supported")
    sizes = read_sizes(facts, length)
    parallel = facts.flag("use_parallel_residual", False)
    shared = "attn_norm" if facts.is_gguf else "input_layernorm"
    norms: dict[str, Source] = {
        "feed_forward.norm": f"{shared}.weight",
        "feed_forward.norm.bias": f"{shared}.bias",
    }
    sources = (gguf_sources if facts.is_gguf else config_sources)(sizes.layers, **(norms if parallel else {}))
    norm = layer_norm(facts, sources)
    rope = read_rope(facts, sizes.head_dim, sizes.length, share=ROTATED)
    activation = read_activation(facts, "silu", "hidden_act")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm, parallel=parallel))
    return Reading(model_spec("stablelm", facts, sizes, layers, norm, sources), sources)


FAMILY = Family("stablelm", ("stablelm",), ("stablelm",), read)
