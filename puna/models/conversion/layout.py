"""Where a family keeps its weights in a container that is yet to be written, and what it will read there.

The family itself is asked: it reads the new metadata from a file that does not exist and whose tensors are whatever it
looks for, but for those that only old or other files have. Its table of sources then says where each weight goes, and a
second reading, of the very tensors that will be written, has to give the description that the model came with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import isclose
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from puna.errors import ModelFileError
from puna.kernels.tensor import RawTensor
from puna.models.facts import Facts
from puna.models.families import BY_CONFIG_NAME, BY_GGUF_NAME
from puna.models.families.family import Reading
from puna.models.model_file import Container
from puna.models.spec import ModelSpec

# Tensors that families look for to tell old or other layouts from the usual one.
MARKS_OF_OTHERS = frozenset(
    {
        *("blk.0.ffn_gate.0.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
        *("wte.weight", "embed_tokens.weight", "decoder.embed_tokens.weight"),
    }
)
MARKS_OF_TWO_NORMS = frozenset({"blk.0.attn_norm_2.weight", "transformer.h.0.ln_attn.weight"})
MARKS_OF_HEAD_NORMS = frozenset({"blk.0.attn_q_norm.weight"})
NO_BYTES = np.zeros(0, np.uint8)
MANY_TENSORS = 1 << 24


class LookedFor(Mapping[str, RawTensor]):
    """Every tensor that is asked for is there, but for the marks; those with a shape that matters have it."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], marks: frozenset[str]) -> None:
        self._shapes, self._marks = shapes, marks

    def __getitem__(self, name: str) -> RawTensor:
        if name in self._marks:
            raise KeyError(name)
        return RawTensor(name, "F32", self._shapes.get(name, (1,)), NO_BYTES)

    def __contains__(self, name: object) -> bool:
        return name not in self._marks

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return MANY_TENSORS


@dataclass(frozen=True)
class PlannedFile:
    """As much of a `ModelFile` as families read."""

    path: Path
    container: Container
    metadata: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture" if self.container == "gguf" else "model_type"])

    def read(self) -> Reading:
        """Raises ModelFileError where the family refuses what is planned."""
        known = BY_GGUF_NAME if self.container == "gguf" else BY_CONFIG_NAME
        prefix = self.architecture if self.container == "gguf" else ""
        return known[self.architecture].read(Facts(self, self.metadata, prefix), 0)  # type: ignore[arg-type]

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(f"{self.path}, as it would be written: {message}")


def planned_layout(
    path: Path, container: Container, metadata: Mapping[str, Any], spec: ModelSpec, *, two_norms: bool
) -> Reading:
    """What the family would read, with tensors of every kind. `two_norms`: branches beside each other have one each."""
    attention = spec.layers[0].attention
    fused = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    shapes = {
        **dict.fromkeys(_EMBEDDINGS, (spec.vocab_size, spec.width)),
        **dict.fromkeys(_FUSED_HEADS, (fused, spec.width)),
    }
    marks = MARKS_OF_OTHERS if two_norms else MARKS_OF_OTHERS | MARKS_OF_TWO_NORMS
    if attention.query_key_norm is None:
        marks |= MARKS_OF_HEAD_NORMS
    return PlannedFile(path, container, metadata, LookedFor(shapes, marks)).read()


_EMBEDDINGS = (
    *("token_embd.weight", "model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"),
    *("transformer.word_embeddings.weight", "model.decoder.embed_tokens.weight"),
)
_FUSED_HEADS = (
    "gpt_neox.layers.0.attention.query_key_value.weight",
    "transformer.h.0.self_attention.query_key_value.weight",
)


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where two descriptions differ beyond the rounding of float32, as "layers 1.attention.window: 20, not 0". The
    pairs that rotate are not compared: rows are brought into the order of the container."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        found = []
        for field in fields(ours):
            if field.name not in ("style", "family"):
                before, after = getattr(ours, field.name), getattr(theirs, field.name)
                found += differences(before, after, f"{where}.{field.name}" if where else field.name)
        return found
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        return [
            line
            for index, (before, after) in enumerate(zip(ours, theirs, strict=True))
            for line in differences(before, after, f"{where} {getattr(before, 'name', index)}")
        ]
    same = ours == theirs
    if isinstance(ours, float) and isinstance(theirs, float):
        same = isclose(ours, theirs, rel_tol=1e-6)
    return [] if same else [f"{where}: {_shown(ours)}, read as {_shown(theirs)}"]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
