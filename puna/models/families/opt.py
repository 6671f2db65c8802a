"""OPT: learned positions whose table begins with two rows that no token reads, LayerNorm, ReLU.

Only folders: llama.cpp does not know the family. The 350m model differs in two ways that nothing else shares (norms
after the sums, embeddings narrower than the model); it is refused.
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
from puna.models.families.tables import CONFIG_LAYER, laid_out
from puna.models.weights import Source

POSITION_OFFSET = 2
CONFIG_MODEL = {
    "embedding": "embed_tokens.weight",
    "positions": "embed_positions.weight",
    "output_norm": "final_layer_norm.weight",
    "output_norm.bias": "final_layer_norm.bias",
}
OPT_LAYER: dict[str, Source] = {
    **CONFIG_LAYER,
    "attention.norm": "self_attn_layer_norm.weight",
    "attention.norm.bias": "self_attn_layer_norm.bias",
    "attention.output": "self_attn.out_proj.weight",
    "attention.output.bias": "self_attn.out_proj.bias",
    "feed_forward.norm": "final_layer_norm.weight",
    "feed_forward.norm.bias": "final_layer_norm.bias",
    "feed_forward.up": "fc1.weight",
    "feed_forward.up.bias": "fc1.bias",
    "feed_forward.down": "fc2.weight",
    "feed_forward.down.bias": "fc2.bias",
}


def read(facts: Facts, length: int) -> Reading:
    sizes = read_sizes(facts, length)
    _refuse_what_350m_does(facts, sizes.width)
    before = next(
        (start for start in ("model.decoder.", "decoder.") if f"{start}embed_tokens.weight" in facts.file.tensors),
        "model.decoder.",
    )
    model = {ours: before + theirs for ours, theirs in CONFIG_MODEL.items()} | {"output": "lm_head.weight"}
    sources = laid_out(sizes.layers, model, OPT_LAYER, before + "layers.{}.")
    norm = layer_norm(facts, sources)
    activation = read_activation(facts, "relu", "activation_function")
    layers = []
    for layer in range(sizes.layers):
        attends = attention(facts, sizes, layer, None, sources=sources)
        feeds = feed_forward(facts, sizes, layer, activation, gated=False, sources=sources)
        layers.append(pre_norm_layer(attends, feeds, norm))
    spec = model_spec(
        "opt",
        facts,
        sizes,
        layers,
        None if facts.flag("_remove_final_layer_norm", False) else norm,
        sources,
        learned_positions=sizes.context,
        position_offset=POSITION_OFFSET,
    )
    return Reading(spec, sources)


FAMILY = Family("opt", (), ("opt",), read)


def _refuse_what_350m_does(facts: Facts, width: int) -> None:
    if not facts.flag("do_layer_norm_before", True):
        facts.fail("config.json: 'do_layer_norm_before' is false (OPT 350m), which is not supported; other sizes are")
    embedded = facts.integer("word_embed_proj_dim", width)
    if embedded != width:
        facts.fail(
            f"config.json: 'word_embed_proj_dim' is {embedded} in a model of width {width}; projected embeddings "
            "(OPT 350m) are not supported"
        )
    if not facts.flag("layer_norm_elementwise_affine", True):
        facts.fail("config.json: 'layer_norm_elementwise_affine' is false, which is not supported")
