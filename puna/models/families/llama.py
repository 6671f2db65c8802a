"""The Llama family: Llama 1 to 3, Mistral, SmolLM and all that share their metadata.

Norms stand before each branch; queries and keys are stored permuted so that rotation pairs are neighbours
("interleaved"). Llama 3's long-context rule comes as the tensor `rope_freqs.weight`. Biases are there where their
tensors are.
"""

from __future__ import annotations

import math

import numpy as np

from puna.models.families.family import MAX_HEAD_DIM, MAX_HEADS, Family, Keys
from puna.models.gguf import GgufFile
from puna.models.spec import AttentionSpec, BranchSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec

ROPE_FACTORS = "rope_freqs.weight"

_LAYER_TENSORS = {
    "attention.norm": "attn_norm.weight",
    "attention.query": "attn_q.weight",
    "attention.query.bias": "attn_q.bias",
    "attention.key": "attn_k.weight",
    "attention.key.bias": "attn_k.bias",
    "attention.value": "attn_v.weight",
    "attention.value.bias": "attn_v.bias",
    "attention.output": "attn_output.weight",
    "attention.output.bias": "attn_output.bias",
    "feed_forward.norm": "ffn_norm.weight",
    "feed_forward.gate": "ffn_gate.weight",
    "feed_forward.gate.bias": "ffn_gate.bias",
    "feed_forward.up": "ffn_up.weight",
    "feed_forward.up.bias": "ffn_up.bias",
    "feed_forward.down": "ffn_down.weight",
    "feed_forward.down.bias": "ffn_down.bias",
}


def read_spec(file: GgufFile) -> ModelSpec:
    keys = Keys(file, "llama")
    if keys.has("expert_count") and keys.integer("expert_count", least=0):
        file.fail("the model is a mixture of experts, which Puna cannot run yet")
    layers = keys.layers()
    width = keys.integer("embedding_length")
    heads = keys.per_layer("attention.head_count", layers, most=MAX_HEADS)
    kv_heads = keys.per_layer("attention.head_count_kv", layers, heads[0], most=MAX_HEADS)
    feed_forward = keys.per_layer("feed_forward_length", layers)
    norm = NormSpec("rms", keys.number("attention.layer_norm_rms_epsilon"))
    specs = []
    for index in range(layers):
        attention = _attention(keys, index, width, heads[index], kv_heads[index])
        specs.append(
            LayerSpec(
                (
                    BranchSpec("attention", attention, norm_before=norm),
                    BranchSpec("feed_forward", _feed_forward(file, index, feed_forward[index]), norm_before=norm),
                )
            )
        )
    return ModelSpec(
        family="llama",
        width=width,
        vocab_size=keys.vocab_size("token_embd.weight"),
        context_length=keys.integer("context_length", least=2, most=2**31 - 1),
        layers=tuple(specs),
        final_norm=norm,
        tied_head="output.weight" not in file.tensors,
    )


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    names = {"embedding": "token_embd.weight", "output_norm": "output_norm.weight", "output": "output.weight"}
    for layer in range(len(spec.layers)):
        names |= {f"layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in _LAYER_TENSORS.items()}
    return names


FAMILY = Family("llama", read_spec, tensor_names)


def _attention(keys: Keys, layer: int, width: int, heads: int, kv_heads: int) -> AttentionSpec:
    file = keys.file
    if heads % kv_heads:
        file.fail(f"{heads} query heads cannot share {kv_heads} key heads evenly (layer {layer})")
    if width % heads and not keys.has("attention.key_length"):
        file.fail(f"a width of {width} does not divide into {heads} heads, and 'llama.attention.key_length' is missing")
    head_dim = keys.integer("attention.key_length", max(1, width // heads), most=MAX_HEAD_DIM)
    if keys.integer("attention.value_length", head_dim, most=MAX_HEAD_DIM) != head_dim:
        file.fail("keys and values of different length are not supported")

    def has_bias(name: str) -> bool:
        return f"blk.{layer}.attn_{name}.bias" in file.tensors

    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=keys.number("attention.scale", 1.0 / math.sqrt(head_dim)),
        rope=_rope(keys, head_dim),
        window=keys.integer("attention.sliding_window", 0, least=0, most=2**31 - 1),
        query_bias=has_bias("q"),
        key_bias=has_bias("k"),
        value_bias=has_bias("v"),
        output_bias=has_bias("output"),
    )


def _feed_forward(file: GgufFile, layer: int, width: int) -> FeedForwardSpec:
    def has_bias(name: str) -> bool:
        return f"blk.{layer}.ffn_{name}.bias" in file.tensors

    return FeedForwardSpec(
        width, "silu", gate_bias=has_bias("gate"), up_bias=has_bias("up"), down_bias=has_bias("down")
    )


def _rope(keys: Keys, head_dim: int) -> RopeSpec:
    file = keys.file
    dimensions = keys.integer("rope.dimension_count", head_dim, most=head_dim)
    if dimensions % 2:
        file.fail(f"metadata 'llama.rope.dimension_count' is {dimensions}; expected an even number")
    scaling = keys.string("rope.scaling.type", "linear" if keys.has("rope.scale_linear") else "none")
    if scaling not in ("none", "linear"):
        file.fail(f"rotary scaling of type {scaling!r} is not supported; supported: none, linear, rope_freqs.weight")
    factor = 1.0
    if scaling == "linear":
        factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    return RopeSpec(
        "interleaved",
        dimensions,
        keys.number("rope.freq_base", 10_000.0),
        linear_factor=factor,
        frequency_factors=_frequency_factors(file, dimensions // 2),
    )


def _frequency_factors(file: GgufFile, pairs: int) -> tuple[float, ...]:
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return ()
    if tensor.type != "F32" or tensor.shape != (pairs,):
        file.fail(f"tensor {ROPE_FACTORS!r} is {tensor.type} of shape {tensor.shape}; expected F32 of shape ({pairs},)")
    values = np.frombuffer(tensor.data.tobytes(), "<f4")
    if not (np.isfinite(values).all() and (values > 0).all()):
        file.fail(f"tensor {ROPE_FACTORS!r} holds a factor that is not above zero")
    return tuple(float(value) for value in values)
