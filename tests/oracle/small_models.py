"""Small random models of every family, made and saved by transformers, and what each of them shows.

Weights are drawn so that logits spread and every part matters; texts are longer than windows and than original
contexts. A `SmallModel` is data: what to build and how much text to run through it. Nothing here runs our own code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 320
WIDTH = 64
CONTEXT = 48  # the models' own, where nothing depends on it
TOKENS = 96
LLAMA_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ORIGINAL = "original_max_position_embeddings"
LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 0.5 * i for i in range(8)]}


@dataclass(frozen=True)
class SmallModel:
    """`config`: transformers' name of the configuration's class. `length`: whether the rotary rule depends on the
    text's length, which is then told. `skewed`: one expert is chosen nearly always.

    For llama.cpp's converter: `older` are entries of config.json that it looks for and transformers no longer writes
    (None: has to be away), `lost` is what GGUF does not keep of such a model, as changes of its description, and
    `refused` why there is no GGUF file."""

    name: str
    config: str
    fields: dict[str, Any] = field(default_factory=dict)
    length: bool = False
    skewed: bool = False
    older: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


OWN = ("length", "skewed", "older", "lost", "refused")


def _small(name: str, config: str, fields: dict[str, Any]) -> SmallModel:
    own = {key: fields.pop(key) for key in OWN if key in fields}
    return SmallModel(name, config, fields, **own)


def _llama(name: str, config: str = "Llama", **fields: Any) -> SmallModel:
    return _small(name, config, LLAMA_SIZES | fields)


def _ungrouped(name: str, config: str, **fields: Any) -> SmallModel:
    """Of families that have a key head for every query head."""
    return _small(name, config, {k: v for k, v in LLAMA_SIZES.items() if k != "num_key_value_heads"} | fields)


def _rope(name: str, rule: dict[str, Any], **own: Any) -> SmallModel:
    rule = {"rope_type": name.removeprefix("llama, "), "rope_theta": 10_000.0} | rule
    return _llama(name, rope_parameters=rule, **own)


def _falcon(name: str, **fields: Any) -> SmallModel:
    sizes = {key: LLAMA_SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    return _small(name, "Falcon", sizes | {"bos_token_id": 1, "eos_token_id": 2} | fields)


def _gpt2(name: str, **fields: Any) -> SmallModel:
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 128}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return _small(name, "GPT2", sizes | ids | {"older": {"n_ctx": 128}} | fields)


NO_WINDOW = {"window": 0}
FOLDERS_ONLY = "the converter does not know it"
ALL = (
    _llama("llama"),
    _rope("llama, linear", {"factor": 4.0}),
    _rope("llama, dynamic", {"factor": 2.0}, length=True, refused="GGUF has no such rule"),
    _rope("llama, yarn", {"factor": 4.0, ORIGINAL: 24}),
    _rope("llama, llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 24}),
    _rope("llama, longrope", {ORIGINAL: 24, **LONG}, length=True, refused="written for Phi 3 alone"),
    _llama("mistral", "Mistral", sliding_window=20, lost=NO_WINDOW),
    _llama("smollm3", "SmolLM3", num_hidden_layers=4, use_sliding_window=False),
    _llama("qwen2", "Qwen2", use_sliding_window=True, sliding_window=20, max_window_layers=1, lost=NO_WINDOW),
    _llama("qwen3", "Qwen3", head_dim=32),
    _llama("gemma", "Gemma", head_dim=32),
    _llama(
        "gemma2",
        "Gemma2",
        head_dim=32,
        sliding_window=20,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        lost={"scale": 32**-0.5},
    ),
    _llama(
        "gemma3",
        "Gemma3Text",
        num_hidden_layers=6,
        head_dim=32,
        sliding_window=20,
        query_pre_attn_scalar=24,
        lost={"scale": 32**-0.5},
    ),
    _llama("phi3", "Phi3", sliding_window=20, older={ORIGINAL: CONTEXT}),
    _llama(
        "phi3, longrope",
        "Phi3",
        original_max_position_embeddings=24,
        length=True,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            ORIGINAL: 24,
            **LONG,
        },
    ),
    _llama("olmo", "Olmo"),
    _llama("olmo2", "Olmo2"),
    _llama(
        "olmo3",
        "Olmo3",
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, ORIGINAL: 24},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    _llama(
        "granite",
        "Granite",
        attention_multiplier=0.1,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.0,
    ),
    _llama("starcoder2", "Starcoder2", sliding_window=20, lost=NO_WINDOW),
    _ungrouped("gpt_neox", "GPTNeoX", older={"rotary_pct": 0.25}),
    _ungrouped("gpt_neox, one after the other", "GPTNeoX", use_parallel_residual=False, older={"rotary_pct": 0.25}),
    _gpt2("gpt2"),
    _gpt2("gpt2, scaled by layer", scale_attn_by_inverse_layer_idx=True, lost={"scale": 0.25}),
    _ungrouped("opt", "OPT", ffn_dim=96, word_embed_proj_dim=WIDTH, max_position_embeddings=128, refused=FOLDERS_ONLY),
    _falcon("falcon", older={"num_kv_heads": None}),
    _falcon("falcon, grouped", new_decoder_architecture=True, num_kv_heads=2),
    _falcon("falcon, grouped with one norm", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    _falcon("falcon, one after the other", multi_query=False, parallel_attn=False, bias=True, refused=FOLDERS_ONLY),
    _llama("stablelm", "StableLm", use_qkv_bias=True),
    _llama("stablelm, beside each other", "StableLm", use_parallel_residual=True),
    _llama("mixtral", "Mixtral", num_local_experts=6, num_experts_per_tok=2, sliding_window=20, lost=NO_WINDOW),
    _llama("mixtral, skewed", "Mixtral", num_local_experts=6, num_experts_per_tok=2, skewed=True),
    _llama("qwen2_moe", "Qwen2Moe", shared_expert_intermediate_size=48, **EXPERTS),
    _llama(
        "qwen2_moe, one layer without",
        "Qwen2Moe",
        shared_expert_intermediate_size=48,
        mlp_only_layers=[1],
        refused=FOLDERS_ONLY,
        **EXPERTS,
    ),
    _llama(
        "qwen2_moe, every second",
        "Qwen2Moe",
        shared_expert_intermediate_size=48,
        decoder_sparse_step=2,
        norm_topk_prob=True,
        refused=FOLDERS_ONLY,
        **EXPERTS,
    ),
    _llama(
        "qwen3_moe",
        "Qwen3Moe",
        head_dim=32,
        norm_topk_prob=True,
        use_sliding_window=True,
        sliding_window=20,
        lost=NO_WINDOW,
        **EXPERTS,
    ),
    _llama("olmoe", "Olmoe", num_experts=6, num_experts_per_tok=2),
)
BY_NAME = {model.name: model for model in ALL}


IDS = [int(token) for token in np.random.default_rng(7).integers(3, VOCABULARY, TOKENS)]


def save(model: SmallModel, folder: Path) -> Any:
    """Writes the model's folder and gives back transformers' model, ready to be asked."""
    config = getattr(transformers, f"{model.config}Config")(**model.fields)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    _draw(made, zero_centred=model.config.startswith("Gemma"))
    if model.skewed:
        _skew(made)
    made.save_pretrained(folder)
    return made.eval()


def answer(made: Any, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits of every token of the text: [tokens, vocabulary]."""
    with torch.no_grad():
        return made(torch.tensor([ids])).logits[0].float().numpy()


def _draw(made: Any, *, zero_centred: bool) -> None:
    """Norms near one (`zero_centred`: stored without it), biases and matrices wide enough to matter."""
    random = torch.Generator().manual_seed(11)
    for name, values in made.named_parameters():
        drawn = torch.randn(values.shape, generator=random)
        if values.ndim == 1 and name.endswith("bias"):
            drawn *= 0.3
        elif values.ndim == 1:
            drawn = drawn * 0.2 + (0.0 if zero_centred else 1.0)
        elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
            drawn *= 0.3
        else:
            drawn *= 1.4 / values.shape[-1] ** 0.5
        values.data.copy_(drawn)


def _skew(made: Any) -> None:
    """Every token has much of the first value, which no branch changes, and that is what the first expert's row of
    each router looks for."""
    made.get_input_embeddings().weight.data[:, 0] = 4.0
    for name, values in made.named_parameters():
        if name.endswith("gate.weight"):
            values.data[:, 0] = 0.0
            values.data[0, 0] = 4.0
        elif name.endswith(("o_proj.weight", "down_proj")):
            values.data[..., 0, :] = 0.0
