"""Names of tensors that most families share, in each container.

The left side is the program's name within a layer, or of the model; the right side the file's. A family takes a table
and changes what is different there. Entries for weights that a model has not are never asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from puna.models.weights import Ones, Source, Stacked

GGUF_MODEL = {
    "embedding": "token_embd.weight",
    "embedding_norm": "token_embd_norm.weight",
    "embedding_norm.bias": "token_embd_norm.bias",
    "positions": "position_embd.weight",
    "output_norm": "output_norm.weight",
    "output_norm.bias": "output_norm.bias",
    "output": "output.weight",
    "output.bias": "output.bias",
}
GGUF_LAYER = {
    "attention.norm": "attn_norm.weight",
    "attention.norm.bias": "attn_norm.bias",
    "attention.query": "attn_q.weight",
    "attention.query.bias": "attn_q.bias",
    "attention.query_norm": "attn_q_norm.weight",
    "attention.key": "attn_k.weight",
    "attention.key.bias": "attn_k.bias",
    "attention.key_norm": "attn_k_norm.weight",
    "attention.value": "attn_v.weight",
    "attention.value.bias": "attn_v.bias",
    "attention.output": "attn_output.weight",
    "attention.output.bias": "attn_output.bias",
    "attention.norm_after": "post_attention_norm.weight",
    "feed_forward.norm": "ffn_norm.weight",
    "feed_forward.norm.bias": "ffn_norm.bias",
    "feed_forward.gate": "ffn_gate.weight",
    "feed_forward.gate.bias": "ffn_gate.bias",
    "feed_forward.up": "ffn_up.weight",
    "feed_forward.up.bias": "ffn_up.bias",
    "feed_forward.down": "ffn_down.weight",
    "feed_forward.down.bias": "ffn_down.bias",
    "feed_forward.norm_after": "post_ffw_norm.weight",
    "experts.norm": "ffn_norm.weight",
    "experts.router": "ffn_gate_inp.weight",
    "experts.gate": "ffn_gate_exps.weight",
    "experts.up": "ffn_up_exps.weight",
    "experts.down": "ffn_down_exps.weight",
    "experts.shared.gate": "ffn_gate_shexp.weight",
    "experts.shared.up": "ffn_up_shexp.weight",
    "experts.shared.down": "ffn_down_shexp.weight",
    "experts.shared.router": "ffn_gate_inp_shexp.weight",
}

CONFIG_MODEL = {
    "embedding": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "output_norm.bias": "model.norm.bias",
    "output": "lm_head.weight",
    "output.bias": "lm_head.bias",
}
CONFIG_LAYER = {
    "attention.norm": "input_layernorm.weight",
    "attention.norm.bias": "input_layernorm.bias",
    "attention.query": "self_attn.q_proj.weight",
    "attention.query.bias": "self_attn.q_proj.bias",
    "attention.query_norm": "self_attn.q_norm.weight",
    "attention.key": "self_attn.k_proj.weight",
    "attention.key.bias": "self_attn.k_proj.bias",
    "attention.key_norm": "self_attn.k_norm.weight",
    "attention.value": "self_attn.v_proj.weight",
    "attention.value.bias": "self_attn.v_proj.bias",
    "attention.output": "self_attn.o_proj.weight",
    "attention.output.bias": "self_attn.o_proj.bias",
    "feed_forward.norm": "post_attention_layernorm.weight",
    "feed_forward.norm.bias": "post_attention_layernorm.bias",
    "feed_forward.gate": "mlp.gate_proj.weight",
    "feed_forward.gate.bias": "mlp.gate_proj.bias",
    "feed_forward.up": "mlp.up_proj.weight",
    "feed_forward.up.bias": "mlp.up_proj.bias",
    "feed_forward.down": "mlp.down_proj.weight",
    "feed_forward.down.bias": "mlp.down_proj.bias",
    "experts.norm": "post_attention_layernorm.weight",
    "experts.router": "mlp.gate.weight",
    "experts.shared.gate": "mlp.shared_expert.gate_proj.weight",
    "experts.shared.up": "mlp.shared_expert.up_proj.weight",
    "experts.shared.down": "mlp.shared_expert.down_proj.weight",
    "experts.shared.router": "mlp.shared_expert_gate.weight",
}


def laid_out(layers: int, model: Mapping[str, Source], layer: Mapping[str, Source], prefix: str) -> dict[str, Source]:
    """All weights' sources: `prefix` stands before each tensor of a layer and has a {} for the layer's number."""
    found: dict[str, Source] = dict(model)
    for index in range(layers):
        before = prefix.format(index)
        found |= {f"layers.{index}.{ours}": _prefixed(theirs, before) for ours, theirs in layer.items()}
    return found


def gguf_sources(layers: int, **changed: Source) -> dict[str, Source]:
    """`changed` is for names within a layer, with "__" where a name has a dot."""
    return laid_out(layers, GGUF_MODEL, GGUF_LAYER | _dotted(changed), "blk.{}.")


def config_sources(layers: int, **changed: Source) -> dict[str, Source]:
    return laid_out(layers, CONFIG_MODEL, CONFIG_LAYER | _dotted(changed), "model.layers.{}.")


def stacked_experts(names: str, experts: int) -> Source:
    """Experts that lie apart: `names` has {e} for the expert's number."""
    return Stacked(tuple(names.replace("{e}", str(expert)) for expert in range(experts)))


def _dotted(changed: Mapping[str, Source]) -> dict[str, Source]:
    return {name.replace("__", "."): source for name, source in changed.items()}


def _prefixed(source: Source, before: str) -> Source:
    if isinstance(source, str):
        return before + source
    if isinstance(source, Ones):
        return source
    if isinstance(source, Stacked):
        return Stacked(tuple(_prefixed(part, before) for part in source.of))
    return replace(source, of=_prefixed(source.of, before))
