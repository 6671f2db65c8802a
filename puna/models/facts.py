"""A model's numbers under one set of names, whichever container states them.

GGUF metadata and Hugging Face's config.json say the same things in other words. The table below is the dictionary; a
family asks for "kv_heads" and need not know. Every number is checked for sanity here, since counts from a file decide
how much is built from them. What only one family or one container knows is asked for by its own key (`gguf`, `config`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from puna.models.gguf_parse import brief
from puna.models.model_file import ModelFile

MAX_WIDTH = 2**20  # values in a row of anything but the vocabulary
MAX_HEADS = 2**12
MAX_HEAD_DIM = 2**12
MAX_LENGTH = 2**31 - 1  # tokens of a context or a window

# Our name -> GGUF's key behind the architecture's prefix, keys of config.json (the first that is there holds).
NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "layers": ("block_count", ("num_hidden_layers", "n_layer", "num_layers")),
    "width": ("embedding_length", ("hidden_size", "n_embd", "d_model")),
    "context": ("context_length", ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")),
    "heads": ("attention.head_count", ("num_attention_heads", "n_head")),
    "kv_heads": ("attention.head_count_kv", ("num_key_value_heads", "num_kv_heads", "n_head_kv")),
    "head_dim": ("attention.key_length", ("head_dim",)),
    "value_dim": ("attention.value_length", ("v_head_dim",)),
    "feed_forward": ("feed_forward_length", ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")),
    "rms_eps": ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    "layer_eps": ("attention.layer_norm_epsilon", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    "window": ("attention.sliding_window", ("sliding_window",)),
    "attention_scale": ("attention.scale", ("attention_multiplier",)),
    "attention_softcap": ("attn_logit_softcapping", ("attn_logit_softcapping",)),
    "logit_softcap": ("final_logit_softcapping", ("final_logit_softcapping",)),
    "embedding_scale": ("embedding_scale", ("embedding_multiplier",)),
    "residual_scale": ("residual_scale", ("residual_multiplier",)),
    "logit_divisor": ("logit_scale", ("logits_scaling",)),
    "experts": ("expert_count", ("num_local_experts", "num_experts")),
    "experts_used": ("expert_used_count", ("num_experts_per_tok",)),
    "experts_normalised": ("expert_weights_norm", ("norm_topk_prob",)),
    "expert_width": ("expert_feed_forward_length", ("moe_intermediate_size",)),
    "shared_width": ("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",)),
}


@dataclass(frozen=True)
class Facts:
    """`values` are GGUF metadata, or the dictionary of config.json (the text model's own, where it is nested)."""

    file: ModelFile
    values: Mapping[str, Any]
    prefix: str = ""  # of GGUF's keys: the architecture

    @property
    def is_gguf(self) -> bool:
        return self.file.container == "gguf"

    def fail(self, message: str) -> NoReturn:
        self.file.fail(message)

    def has(self, name: str) -> bool:
        return self._find(name)[1] is not None

    def key(self, name: str) -> str:
        """What a message calls it: the container and its key."""
        return self._find(name)[0]

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_WIDTH) -> int:
        key, value = self._wanted(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(f"{key} is {brief(value)}; expected a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None, *, above: float = 0.0, most: float = 1e12) -> float:
        key, value = self._wanted(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            self.fail(f"{key} is {brief(value)}; expected a number above {above:g} and up to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        key, value = self._wanted(name, default)
        if not isinstance(value, bool):
            self.fail(f"{key} is {brief(value)}; expected true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        key, value = self._wanted(name, default)
        if not isinstance(value, str):
            self.fail(f"{key} is {brief(value)}; expected a string")
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above zero."""
        key, value = self._wanted(name, None)
        entries = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(entries, list) or len(entries) != count or not all(_is_positive(entry) for entry in entries):
            self.fail(f"{key} has to be {count} numbers above zero")
        return tuple(float(entry) for entry in entries)

    def per_layer(self, name: str, layers: int, default: int | None = None, *, most: int = MAX_WIDTH) -> list[int]:
        """A number for all layers, or a list with one for each."""
        key, value = self._find(name)
        entries = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(entries, list):
            return [self.integer(name, default, most=most)] * layers
        if len(entries) != layers or not all(type(entry) is int and 1 <= entry <= most for entry in entries):
            self.fail(f"{key} has to be {layers} whole numbers from 1 to {most}")
        return entries

    def kinds(self, name: str, layers: int, known: Sequence[Any]) -> list[Any] | None:
        """What a list says of each layer, one of `known`; None where the file has no list."""
        key, value = self._find(name)
        entries = value.tolist() if isinstance(value, np.ndarray) else value
        if entries is None or (self.is_gguf and type(entries) is int):
            return None
        if not isinstance(entries, list) or len(entries) != layers or not all(entry in known for entry in entries):
            self.fail(f"{key} is {brief(entries)}; expected a list of {layers}, one a layer, of {brief(list(known))}")
        return entries

    def layers(self) -> int:
        """Every layer has tensors, so their count bounds that of the layers."""
        return self.integer("layers", most=max(1, len(self.file.tensors)))

    def vocab_size(self, embedding: str) -> int:
        """Rows of the embedding matrix, which decide; the token list may not be longer."""
        matrix = self.file.tensors.get(embedding)
        if matrix is None or len(matrix.shape) != 2:
            self.fail(f"tensor {embedding!r}, the embedding matrix, is missing or not a matrix")
        rows = matrix.shape[0]
        tokens = self.file.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and len(tokens) > rows:
            self.fail(f"the vocabulary has {len(tokens)} tokens but {embedding!r} only {rows} rows")
        return rows

    def part(self, key: str) -> Facts | None:
        """The dictionary under a key of config.json, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(f"config.json: {key!r} is {brief(value)}; expected an object")
        return Facts(self.file, value)

    def _wanted(self, name: str, default: Any) -> tuple[str, Any]:
        key, value = self._find(name)
        value = default if value is None else value
        if value is None:
            self.fail(f"{key} is missing; a model of this kind needs it")
        return key, value

    def _find(self, name: str) -> tuple[str, Any]:
        """The key as messages name it, and its value; a name that is not in the table is a key as it stands."""
        gguf, config = NAMES.get(name, (name, (name,)))
        if self.is_gguf:
            key = f"{self.prefix}.{gguf}"
            return f"metadata {key!r}", self.values.get(key)
        key = next((key for key in config if self.values.get(key) is not None), config[0])
        return f"config.json: {key!r}", self.values.get(key)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
