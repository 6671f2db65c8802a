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
LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 0.5 * i for i in range(8)]}


@dataclass(frozen=True)
class SmallModel:
    """`config`: transformers' name of the configuration's class. `length`: whether the rotary rule depends on the
    text's length, which is then told. `skewed`: one expert is chosen nearly always."""

    name: str
    config: str
    fields: dict[str, Any] = field(default_factory=dict)
    length: bool = False
    skewed: bool = False


def _llama(name: str, config: str = "Llama", *, length: bool = False, **fields: Any) -> SmallModel:
    return SmallModel(name, config, LLAMA_SIZES | fields, length=length)


def _ungrouped(name: str, config: str, **fields: Any) -> SmallModel:
    """Of families that have a key head for every query head."""
    return SmallModel(name, config, {k: v for k, v in LLAMA_SIZES.items() if k != "num_key_value_heads"} | fields)


def _rope(name: str, *, length: bool = False, **rule: Any) -> SmallModel:
    rule = {"rope_type": name.removeprefix("llama, "), "rope_theta": 10_000.0} | rule
    return _llama(name, rope_parameters=rule, length=length)


def _falcon(name: str, **fields: Any) -> SmallModel:
    sizes = {key: LLAMA_SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    return SmallModel(name, "Falcon", sizes | {"bos_token_id": 1, "eos_token_id": 2} | fields)


GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 128}
ALL = (
    _llama("llama"),
    _rope("llama, linear", factor=4.0),
    _rope("llama, dynamic", factor=2.0, length=True),
    _rope("llama, yarn", factor=4.0, original_max_position_embeddings=24),
    _rope(
        "llama, llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=24,
    ),
    _rope("llama, longrope", original_max_position_embeddings=24, length=True, **LONG),
    _llama("mistral", "Mistral", sliding_window=20),
    _llama("smollm3", "SmolLM3", num_hidden_layers=4, use_sliding_window=False),
    _llama("qwen2", "Qwen2", use_sliding_window=True, sliding_window=20, max_window_layers=1),
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
    ),
    _llama(
        "gemma3",
        "Gemma3Text",
        head_dim=32,
        sliding_window=20,
        query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    _llama("phi3", "Phi3", sliding_window=20),
    _llama(
        "phi3, longrope",
        "Phi3",
        original_max_position_embeddings=24,
        length=True,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 24,
            **LONG,
        },
    ),
    _llama("olmo2", "Olmo2"),
    _llama(
        "olmo3",
        "Olmo3",
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 24,
            },
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
    _llama("starcoder2", "Starcoder2", sliding_window=20),
    _ungrouped("gpt_neox", "GPTNeoX"),
    _ungrouped("gpt_neox, one after the other", "GPTNeoX", use_parallel_residual=False),
    SmallModel("gpt2", "GPT2", GPT2_SIZES),
    SmallModel("gpt2, scaled by layer", "GPT2", GPT2_SIZES | {"scale_attn_by_inverse_layer_idx": True}),
    _ungrouped("opt", "OPT", ffn_dim=96, word_embed_proj_dim=WIDTH, max_position_embeddings=128),
    _falcon("falcon"),
    _falcon("falcon, grouped", new_decoder_architecture=True, num_kv_heads=2),
    _falcon("falcon, grouped with one norm", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    _falcon("falcon, one after the other", multi_query=False, parallel_attn=False, bias=True),
    _llama("mixtral", "Mixtral", num_local_experts=6, num_experts_per_tok=2, sliding_window=20),
    SmallModel(
        "mixtral, skewed", "Mixtral", LLAMA_SIZES | {"num_local_experts": 6, "num_experts_per_tok": 2}, skewed=True
    ),
    _llama("qwen2_moe", "Qwen2Moe", shared_expert_intermediate_size=48, mlp_only_layers=[1], **EXPERTS),
    _llama(
        "qwen2_moe, every second",
        "Qwen2Moe",
        shared_expert_intermediate_size=48,
        decoder_sparse_step=2,
        norm_topk_prob=True,
        **EXPERTS,
    ),
    _llama(
        "qwen3_moe", "Qwen3Moe", head_dim=32, norm_topk_prob=True, use_sliding_window=True, sliding_window=20, **EXPERTS
    ),
    _llama("olmoe", "Olmoe", num_experts=6, num_experts_per_tok=2),
)
BY_NAME = {model.name: model for model in ALL}


def text(count: int = TOKENS) -> list[int]:
    return [int(token) for token in np.random.default_rng(7).integers(3, VOCABULARY, count)]


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
