"""Small random models of every family, made of what the families themselves ask for.

A family reads a description and says which tensors it wants in which shapes; this writes them, into a folder or a GGUF
file, so that nobody lists tensors of nineteen families by hand. It shows nothing about a family's numbers (tests/oracle
does): it makes files that load, for tests of what happens when such a file is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from puna.errors import ModelFileError
from puna.kernels.tensor import RawTensor
from puna.models.facts import Facts
from puna.models.families import BY_CONFIG_NAME, BY_GGUF_NAME
from puna.models.gguf_write import encode, write_gguf
from puna.models.lowering import lower, weight_shapes
from puna.models.model_file import Container
from puna.models.weights import Ones, Picked, PlusOne, Rows, Source, Stacked, Turned
from tests.models.folders import write_folder

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, CONTEXT = 300, 32, 2, 2, 1, 16, 2, 64
Shapes = dict[str, tuple[int, ...]]
CONFIG: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
}
MIXTURE = {"num_experts": EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 20},
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 1},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "qwen3": {"head_dim": HEAD_DIM},
    "qwen2_moe": MIXTURE | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": MIXTURE | {"head_dim": HEAD_DIM},
    "gemma": {"head_dim": HEAD_DIM},
    "gemma2": {"head_dim": HEAD_DIM, "sliding_window": 20, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": HEAD_DIM, "sliding_window": 20},
    "gemma3": {"text_config": CONFIG | {"head_dim": HEAD_DIM, "sliding_window": 20}},
    "olmo3": {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": 1},
    "granite": {"attention_multiplier": 0.1, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "starcoder2": {"sliding_window": 20},
    "gpt_neox": {"num_key_value_heads": HEADS, "rotary_pct": 0.25},
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "num_key_value_heads": HEADS},
    "falcon": {"num_kv_heads": 1},
    "stablelm": {"use_qkv_bias": True},
}
METADATA: dict[str, Any] = {
    "block_count": LAYERS,
    "embedding_length": WIDTH,
    "context_length": CONTEXT,
    "feed_forward_length": 48,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 8,
    "rope.freq_base": 10_000.0,
}
MORE_METADATA: dict[str, dict[str, Any]] = {
    name: {"expert_count": EXPERTS, "expert_used_count": 1, "expert_feed_forward_length": 32}
    for name in ("qwen2moe", "qwen3moe", "olmoe")
}
EMBEDDINGS = (
    *("token_embd", "model.embed_tokens", "transformer.wte", "transformer.word_embeddings", "gpt_neox.embed_in"),
    "model.decoder.embed_tokens",
)
# Whether these are there decides how a family reads the rest.
ROUTERS = (*("blk.{}.ffn_gate_inp.weight", "model.layers.{}.mlp.gate.weight"), "model.layers.{}.mlp.router.weight")


@dataclass(frozen=True)
class _Promised:
    """A model file that has the tensors which are asked of it, in name only."""

    container: Container
    architecture: str
    tensors: Mapping[str, RawTensor]
    metadata: Mapping[str, Any]
    path: Path = Path("promised")

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(message)


def config_of(model_type: str) -> dict[str, Any]:
    changed = CONFIG | CONFIGS.get(model_type, {})
    return {"model_type": model_type} | {key: value for key, value in changed.items() if value is not None}


def metadata_of(architecture: str) -> dict[str, Any]:
    own = METADATA | MORE_METADATA.get(architecture, {})
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in own.items()}


def shapes_of(container: Container, architecture: str, values: Mapping[str, Any]) -> Shapes:
    """The tensors that a family asks for, and their shapes."""
    mixture = any("expert" in key for key in values)
    shapes: Shapes = {f"{name}.weight": (VOCABULARY, WIDTH) for name in EMBEDDINGS}
    shapes |= {name.format(layer): (EXPERTS, WIDTH) for name in ROUTERS for layer in range(LAYERS) if mixture}
    rows = (HEADS + 2 * (HEADS if architecture == "gpt_neox" else KV_HEADS)) * HEAD_DIM
    for fused in ("gpt_neox.layers.0.attention.query_key_value", "transformer.h.0.self_attention.query_key_value"):
        shapes[f"{fused}.weight"] = (rows, WIDTH)
    promised = {name: RawTensor(name, "F32", shape, np.empty(0, np.uint8)) for name, shape in shapes.items()}
    file: Any = _Promised(container, architecture, promised, values)
    known = BY_GGUF_NAME if container == "gguf" else BY_CONFIG_NAME
    reading = known[architecture].read(Facts(file, values, architecture if container == "gguf" else ""), 0)
    asked: Shapes = {}
    for weight, shape in weight_shapes(lower(reading.spec)).items():
        rows_of_table = CONTEXT + reading.spec.position_offset
        extents = tuple(rows_of_table if extent < 0 else extent for extent in shape)
        for name, extent in _demands(reading.sources[weight], extents):
            asked[name] = max(extent, asked.get(name, extent))
    return asked


def write_family_folder(folder: Path, model_type: str) -> Path:
    config = config_of(model_type)
    shapes = shapes_of("safetensors", model_type, config)
    return write_folder(folder, config, {name: _drawn(name, shape) for name, shape in shapes.items()})


def write_family_gguf(path: Path, architecture: str) -> Path:
    metadata = metadata_of(architecture)
    shapes = shapes_of("gguf", architecture, metadata)
    write_gguf(path, metadata, [encode(name, _drawn(name, shape), "F32") for name, shape in shapes.items()])
    return path


def _demands(source: Source, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    match source:
        case str():
            yield source, shape
        case Rows():
            yield from _demands(source.of, (source.stop, *shape[1:]))
        case Picked() | PlusOne():
            yield from _demands(source.of, (len(source.order), *shape[1:]) if isinstance(source, Picked) else shape)
        case Turned():
            yield from _demands(source.of, shape[::-1])
        case Stacked():
            for part in source.of:
                yield from _demands(part, shape[1:])
        case Ones():
            return


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    random = np.random.default_rng(sum(name.encode()))
    spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.2
    return np.asarray(random.standard_normal(shape) * spread + (len(shape) == 1), np.float32)
