"""Granite: Llama's shape with four multipliers, of embeddings, attention scores, branches and logits.

In GGUF files queries and keys are stored permuted, as Llama's are. The mixtures of experts and the hybrids with
state-space layers are other families.
"""

from __future__ import annotations

from puna.models.facts import Facts
from puna.models.families.family import (
    Family,
    Reading,
    attention,
    feed_forward,
    model_spec,
    pre_norm_layer,
    read_activation,
    read_sizes,
)
from puna.models.families.tables import config_sources, gguf_sources
from puna.models.rope import read_rope
from puna.models.spec import NormSpec


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    sources = gguf_sources(sizes.layers) if facts.is_gguf else config_sources(sizes.layers)
    norm = NormSpec("rms", facts.number("rms_eps", 1e-6))
    rope = read_rope(facts, sizes.head_dim, sizes.length, gguf_style="interleaved")
    activation = read_activation(facts, "silu", "hidden_act")
    factor = facts.number("residual_scale", 1.0)
    scale = None if facts.is_gguf else facts.number("attention_scale", 1.0)
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, rope, scale=scale, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm, factor=factor))
    spec = model_spec(
        "granite",
        facts,
        sizes,
        layers,
        norm,
        sources,
        embedding_scale=facts.number("embedding_scale", 1.0),
        logit_divisor=facts.number("logit_divisor", 1.0),
    )
    return Reading(spec, sources)


FAMILY = Family("granite", ("granite",), ("granite",), read)
