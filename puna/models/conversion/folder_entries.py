"""A model's numbers as config.json, by the keys of Hugging Face's transformers, and the texts beside the weights.

Every entry comes from the description (`ModelSpec`). Most families share Llama's keys; the table below says what each
calls otherwise, adds or computes. Rotary frequencies that GGUF keeps as divisors become a rule that states divisors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna.models.conversion.stated_rule import stated_rule
from puna.models.conversion.tokenizer_json import tokenizer_texts
from puna.models.families.family import Family
from puna.models.load import LoadedModel
from puna.models.model_file import ModelFile
from puna.models.rope import ORIGINAL
from puna.models.spec import ExpertsSpec, FeedForwardSpec, LayerSpec, ModelSpec, RopeSpec

Entries = dict[str, Any]

ARCHITECTURES = {
    "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "smollm3": "SmolLM3", "qwen2": "Qwen2",
    "qwen3": "Qwen3", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "gemma": "Gemma", "gemma2": "Gemma2",
    "gemma3_text": "Gemma3", "phi3": "Phi3", "olmo": "Olmo", "olmo2": "Olmo2", "olmo3": "Olmo3", "olmoe": "Olmoe",
    "granite": "Granite", "starcoder2": "Starcoder2", "gpt_neox": "GPTNeoX", "gpt2": "GPT2", "falcon": "Falcon",
    "stablelm": "StableLm",
}  # fmt: skip
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}


def folder_entries(family: Family, spec: ModelSpec, file: ModelFile) -> Entries:
    """config.json. Raises ModelFileError for families that folders cannot be written of."""
    kind = _model_type(family, spec, file)
    if kind not in ARCHITECTURES:
        file.fail(f"folders of the family {family.name!r} cannot be written yet")
    entries = {
        "architectures": [f"{ARCHITECTURES[kind]}ForCausalLM" if kind != "gpt2" else "GPT2LMHeadModel"],
        "model_type": kind,
        **_shared(spec),
    }
    entries |= _SPECIAL.get(kind, _nothing)(spec)
    stated = stated_rule(file.facts(), _global_rope(spec))
    if stated:
        rules = entries["rope_parameters"]
        rules.get("full_attention", rules).update(stated)
        if kind == "phi3":
            entries[ORIGINAL] = stated[ORIGINAL]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        index = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        entries[f"{name}_token_id"] = index if type(index) is int else None
    return {key: value for key, value in entries.items() if value is not None or key.endswith("_token_id")}


def write_folder_texts(folder: Path, config: Entries, model: LoadedModel) -> None:
    """config.json, the tokenizer's files and the chat template."""
    texts: dict[str, Any] = {"config.json": config}
    if isinstance(model.metadata.get("tokenizer.ggml.tokens"), list):
        ends = model.tokenizer.eos_ids
        texts |= tokenizer_texts(model.file, ends, model.spec.context_length)
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if model.chat_template:
        (folder / "chat_template.jinja").write_text(model.chat_template, encoding="utf-8")


def _model_type(family: Family, spec: ModelSpec, file: ModelFile) -> str:
    if family.name == "llama" and file.architecture == "llama":
        windowed = any(layer.attention.window for layer in spec.layers)
        return "mixtral" if spec.layers[0].experts else "mistral" if windowed else "llama"
    if family.name == "gemma3":
        return "gemma3_text"
    if family.name == "olmo2" and any(layer.attention.window for layer in spec.layers):
        return "olmo3"
    return file.architecture if file.architecture in ARCHITECTURES else family.config[0]


def _shared(spec: ModelSpec) -> Entries:
    attention = spec.layers[0].attention
    norm = spec.final_norm or next(b.norm_before for b in spec.layers[0].branches if b.norm_before)
    feeds = _dense(spec)
    return {
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": feeds.width if feeds else spec.layers[0].experts[0].width,
        "hidden_act": ACTIVATIONS[feeds.activation if feeds else spec.layers[0].experts[0].activation],
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps" if norm.kind == "rms" else "layer_norm_eps": norm.eps,
        "tie_word_embeddings": spec.tied_head,
        "attention_bias": attention.query_bias,
        "mlp_bias": bool(feeds and feeds.up_bias),
        "sliding_window": max(layer.attention.window for layer in spec.layers) or None,
        "rope_parameters": _rope(_global_rope(spec), spec.context_length),
        "use_cache": True,
    }


def _rope(rope: RopeSpec | None, context: int) -> Entries | None:
    if rope is None:
        return None
    rule: Entries = {"rope_type": "default", "rope_theta": rope.base}
    if rope.frequency_factors:
        factors = list(rope.frequency_factors)
        rule |= {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
        rule |= {"attention_factor": rope.magnitude, "original_max_position_embeddings": context}
    elif rope.linear_factor != 1.0:
        rule |= {"rope_type": "linear", "factor": rope.linear_factor}
    return rule


def _global_rope(spec: ModelSpec) -> RopeSpec | None:
    turned = [layer.attention for layer in spec.layers if layer.attention.rope is not None]
    whole = [attention for attention in turned if not attention.window]
    return (whole or turned)[0].rope if turned else None


def _local_rope(spec: ModelSpec) -> RopeSpec | None:
    return next((layer.attention.rope for layer in spec.layers if layer.attention.window), None)


def _dense(spec: ModelSpec) -> FeedForwardSpec | None:
    return next((feeds for layer in spec.layers for feeds in layer.feed_forwards), None)


def _layer_types(spec: ModelSpec) -> list[str]:
    return ["sliding_attention" if layer.attention.window else "full_attention" for layer in spec.layers]


def _rope_by_kind(spec: ModelSpec) -> Entries:
    local = _local_rope(spec)
    whole = _rope(_global_rope(spec), spec.context_length)
    return {"full_attention": whole, "sliding_attention": _rope(local, spec.context_length) or whole}


def _experts(spec: ModelSpec) -> ExpertsSpec:
    return next(experts for layer in spec.layers for experts in layer.experts)


def _mixture(spec: ModelSpec) -> Entries:
    experts = _experts(spec)
    return {
        "num_experts": experts.experts,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalised,
        "shared_expert_intermediate_size": experts.shared_width or None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, layer in enumerate(spec.layers) if not layer.experts],
        "use_sliding_window": False,
    }


def _mixtral(spec: ModelSpec) -> Entries:
    return {"num_local_experts": _experts(spec).experts, "num_experts_per_tok": _experts(spec).used}


def _olmoe(spec: ModelSpec) -> Entries:
    return {**_mixture(spec), "intermediate_size": _experts(spec).width, "moe_intermediate_size": None}


def _smollm3(spec: ModelSpec) -> Entries:
    return {
        "no_rope_layers": [int(layer.attention.rope is not None) for layer in spec.layers],
        "use_sliding_window": False,
    }


def _gemma(spec: ModelSpec) -> Entries:
    feeds, attention = _dense(spec), spec.layers[0].attention
    activation = ACTIVATIONS[feeds.activation] if feeds else None
    scalar = attention.scale**-2
    nearest = round(scalar)  # transformers wants a whole number where it is one
    return {
        "hidden_activation": activation,
        "query_pre_attn_scalar": nearest if math.isclose(nearest, scalar, rel_tol=1e-6) else scalar,
    }


def _gemma2(spec: ModelSpec) -> Entries:
    return {
        **_gemma(spec),
        "attn_logit_softcapping": spec.layers[0].attention.softcap or None,
        "final_logit_softcapping": spec.logit_softcap or None,
        "layer_types": _layer_types(spec),
    }


def _gemma3(spec: ModelSpec) -> Entries:
    return {**_gemma2(spec), "rope_parameters": _rope_by_kind(spec)}


def _olmo3(spec: ModelSpec) -> Entries:
    return {"layer_types": _layer_types(spec), "rope_parameters": _rope_by_kind(spec)}


def _granite(spec: ModelSpec) -> Entries:
    return {
        "attention_multiplier": spec.layers[0].attention.scale,
        "embedding_multiplier": spec.embedding_scale,
        "residual_multiplier": spec.layers[0].branches[0].factor,
        "logits_scaling": spec.logit_divisor,
    }


def _share(spec: ModelSpec) -> float:
    rope = _global_rope(spec)
    return (rope.dimensions / spec.layers[0].attention.head_dim) if rope else 1.0


def _partly(spec: ModelSpec) -> Entries:
    rule = _rope(_global_rope(spec), spec.context_length) or {}
    return {"partial_rotary_factor": _share(spec), "rope_parameters": rule | {"partial_rotary_factor": _share(spec)}}


def _phi3(spec: ModelSpec) -> Entries:
    return {**_partly(spec), "original_max_position_embeddings": spec.context_length}


def _stablelm(spec: ModelSpec) -> Entries:
    layer: LayerSpec = spec.layers[0]
    biases = {"use_qkv_bias": layer.attention.query_bias, "use_parallel_residual": layer.parallel}
    return {**_partly(spec), **biases, "qk_layernorm": False}


def _starcoder2(spec: ModelSpec) -> Entries:
    return {"norm_epsilon": _layer_eps(spec), "use_bias": spec.layers[0].attention.query_bias, "layer_norm_eps": None}


def _gpt_neox(spec: ModelSpec) -> Entries:
    rope = _global_rope(spec)
    return {
        **_partly(spec),
        "rotary_pct": _share(spec),
        "rotary_emb_base": rope.base if rope else None,
        "use_parallel_residual": spec.layers[0].parallel,
    }


def _gpt2(spec: ModelSpec) -> Entries:
    feeds, attention = _dense(spec), spec.layers[0].attention
    replaced = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    return {
        **dict.fromkeys((*replaced, "intermediate_size", "max_position_embeddings", "layer_norm_eps", "hidden_act")),
        "n_embd": spec.width,
        "n_layer": len(spec.layers),
        "n_head": attention.heads,
        "n_positions": spec.context_length,
        "n_inner": feeds.width if feeds else None,
        "activation_function": "gelu_new" if feeds and feeds.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": _layer_eps(spec),
    }


def _falcon(spec: ModelSpec) -> Entries:
    attention, layer = spec.layers[0].attention, spec.layers[0]
    grouped = attention.kv_heads > 1
    feeds = _dense(spec)
    return {
        **dict.fromkeys(("num_key_value_heads", "head_dim", "layer_norm_eps", "hidden_act", "intermediate_size")),
        "layer_norm_epsilon": _layer_eps(spec),
        "activation": ACTIVATIONS[feeds.activation] if feeds else None,
        "ffn_hidden_size": feeds.width if feeds else None,
        "num_kv_heads": attention.kv_heads,
        "new_decoder_architecture": grouped,
        "multi_query": not grouped,
        "parallel_attn": layer.parallel,
        "bias": attention.output_bias,
        "alibi": False,
    }


def _layer_eps(spec: ModelSpec) -> float | None:
    return spec.final_norm.eps if spec.final_norm else None


def _qwen(_: ModelSpec) -> Entries:
    return {"use_sliding_window": False}


def _nothing(_: ModelSpec) -> Entries:
    return {}


_SPECIAL: dict[str, Callable[[ModelSpec], Entries]] = {
    "mixtral": _mixtral,
    "smollm3": _smollm3,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen2_moe": _mixture,
    "qwen3_moe": _mixture,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "olmo3": _olmo3,
    "olmoe": _olmoe,
    "granite": _granite,
    "starcoder2": _starcoder2,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "falcon": _falcon,
    "stablelm": _stablelm,
}
