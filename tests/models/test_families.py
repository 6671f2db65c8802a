"""What families refuse, and how they find weights in tensors that hold several.

That their numbers are right is shown beside transformers, in tests/oracle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.models.families import BY_CONFIG_NAME, BY_GGUF_NAME
from puna.models.families.fused import by_kind
from puna.models.gguf import read_gguf
from puna.models.gguf_write import TensorToWrite, encode, write_gguf
from puna.models.load import LoadedModel, load_model
from tests.models.folders import write_folder
from tests.tiny import write_tiny_llama

F32 = npt.NDArray[np.float32]
WIDTH, HEADS, VOCABULARY = 16, 4, 10


def drawn(*shape: int) -> F32:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def weight(model: LoadedModel, name: str) -> F32:
    return dequantize(model.weights[name])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "falcon", "alibi": True}, "'alibi' is true"),
        ({"model_type": "opt", "do_layer_norm_before": False}, "'do_layer_norm_before' is false"),
        ({"model_type": "opt", "word_embed_proj_dim": 8}, "'word_embed_proj_dim' is 8 in a model of width 16"),
        ({"model_type": "opt", "layer_norm_elementwise_affine": False}, "'layer_norm_elementwise_affine' is false"),
        ({"model_type": "olmoe", "num_experts": 2, "clip_qkv": 8.0}, "'clip_qkv'"),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "clip_qkv.*clipped queries"),
        ({"model_type": "mixtral", "num_local_experts": 4}, "'num_experts_per_tok' is missing"),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}, "is 5; .* from 1 to 4"),
        ({"model_type": "qwen3_moe"}, "'num_local_experts' is missing"),
        ({"model_type": "olmoe", "num_experts": 2**30}, "from 1 to 4096"),
        ({"model_type": "olmoe", "num_experts": 4096}, "1 layers of 4096 experts cannot be in 5 tensors"),
        ({"model_type": "gpt_neox", "num_attention_heads": 2, "head_dim": 16}, r"\(48, 16\); .* to have 96 rows"),
        ({"model_type": "falcon", "num_attention_heads": 1, "head_dim": 4096}, r"is missing; .* 12288 rows"),
        ({"model_type": "gpt_neox", "rotary_pct": 3.0}, "'rotary_pct' is 3.0"),
        ({"model_type": "gpt2", "activation_function": "snake"}, "'activation_function' is 'snake'; supported"),
        ({"model_type": "granite", "residual_multiplier": 0}, "'residual_multiplier' is 0"),
        ({"model_type": "stablelm", "qk_layernorm": True}, "weights of each head's own"),
        ({"model_type": "mamba"}, "'mamba'; Puna knows: falcon"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "max_position_embeddings": 32}
    more = {"intermediate_size": 8, "ffn_dim": 8, "rms_norm_eps": 1e-5, "num_experts_per_tok": None}
    if config.get("num_experts"):
        more["num_experts_per_tok"] = 1
    embeddings = ("model.embed_tokens", "transformer.wte", "gpt_neox.embed_in", "model.decoder.embed_tokens")
    tensors = {f"{name}.weight": drawn(VOCABULARY, WIDTH) for name in embeddings}
    tensors["gpt_neox.layers.0.attention.query_key_value.weight"] = drawn(3 * WIDTH, WIDTH)
    write_folder(tmp_path, sizes | more | config, tensors)
    with pytest.raises(ModelFileError, match=said):
        load_model(tmp_path)


@given(heads=st.integers(1, 6), sharing=st.integers(1, 4), head_dim=st.integers(1, 5))
def test_rows_that_lie_by_group_are_found_by_kind(heads: int, sharing: int, head_dim: int) -> None:
    rows = np.arange(heads * (sharing + 2) * head_dim).reshape(heads, sharing + 2, head_dim)
    wanted = [*rows[:, :-2].ravel(), *rows[:, -2].ravel(), *rows[:, -1].ravel()]
    assert list(by_kind(heads * sharing, heads, head_dim)) == wanted


@pytest.mark.parametrize("before", ["", "transformer."])
def test_gpt2_lies_turned_and_fused_with_and_without_its_prefix(tmp_path: Path, before: str) -> None:
    tensors = {"wte.weight": drawn(VOCABULARY, WIDTH), "wpe.weight": drawn(32, WIDTH)}
    shapes = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16)}
    for name, shape in shapes.items():
        tensors |= {f"h.0.{name}.weight": drawn(*shape), f"h.0.{name}.bias": drawn(shape[1])}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors |= {f"{name}.weight": drawn(WIDTH), f"{name}.bias": drawn(WIDTH)}
    config = {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": 1, "n_head": HEADS, "n_positions": 32}
    model = load_model(write_folder(tmp_path, config, {before + name: values for name, values in tensors.items()}))
    fused = tensors["h.0.attn.c_attn.weight"]
    np.testing.assert_array_equal(weight(model, "layers.0.attention.key"), fused[:, 16:32].T)
    np.testing.assert_array_equal(weight(model, "layers.0.attention.value.bias"), drawn(48)[32:])
    np.testing.assert_array_equal(weight(model, "layers.0.feed_forward.down"), tensors["h.0.mlp.c_proj.weight"].T)
    assert (model.spec.learned_positions, model.spec.tied_head) == (32, True)


def test_a_fused_tensor_that_is_too_short_is_named(tmp_path: Path) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": 8}
    tensors = {
        "model.embed_tokens.weight": drawn(VOCABULARY, WIDTH),
        "model.layers.0.input_layernorm.weight": drawn(WIDTH),
        "model.layers.0.self_attn.qkv_proj.weight": drawn(40, WIDTH),
    }
    write_folder(tmp_path, {"model_type": "phi3", "max_position_embeddings": 32, **sizes}, tensors)
    with pytest.raises(ModelFileError, match=r"qkv_proj\.weight' has 40 rows; rows 32 to 47 are asked of it"):
        load_model(tmp_path)


def mixture(path: Path, *, apart: bool) -> LoadedModel:
    """The tiny llama with four experts for its feed-forwards, stacked as files are now or apart as they were."""
    file = read_gguf(write_tiny_llama(path.with_suffix(".base"), metadata={"llama.expert_count": 4}))
    tensors = [
        TensorToWrite(t.name, t.type, t.shape, t.data.tobytes())
        for t in file.tensors.values()
        if not t.name.endswith(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"))
    ]
    for layer in range(2):
        tensors.append(encode(f"blk.{layer}.ffn_gate_inp.weight", drawn(4, 64), "F32"))
        for part, shape in (("gate", (4, 96, 64)), ("up", (4, 96, 64)), ("down", (4, 64, 96))):
            stack, name = drawn(*shape), f"blk.{layer}.ffn_{part}"
            if apart:
                tensors += [encode(f"{name}.{e}.weight", stack[e], "Q8_0") for e in range(4)]
            else:
                tensors.append(encode(f"{name}_exps.weight", stack, "Q8_0"))
    write_gguf(path, {**file.metadata, "llama.expert_used_count": 2}, tensors)
    return load_model(path)


def test_experts_are_the_same_whether_a_file_stacks_them_or_keeps_them_apart(tmp_path: Path) -> None:
    stacked, apart = mixture(tmp_path / "s.gguf", apart=False), mixture(tmp_path / "a.gguf", apart=True)
    assert stacked.spec == apart.spec
    assert [spec.experts for layer in apart.spec.layers for spec in layer.experts] == [4, 4]
    for part in ("gate", "up", "down"):
        name = f"layers.1.experts.{part}"
        assert apart.weights[name].type == "Q8_0"
        np.testing.assert_array_equal(weight(apart, name), weight(stacked, name))


def test_no_two_families_answer_to_one_name() -> None:
    from puna.models.families import FAMILIES

    assert len(BY_CONFIG_NAME) == sum(len(family.config) for family in FAMILIES)
    assert len(BY_GGUF_NAME) == sum(len(family.gguf) for family in FAMILIES)
