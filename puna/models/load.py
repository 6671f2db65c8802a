"""Opens a model file: description, program, weights under the program's names, tokenizer and chat template.

Everything is checked before a backend sees it: every weight the program reads is there and has the shape that its
operator implies. Weights stay views into the mapped file; nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.kernels.program import Program
from puna.kernels.tensor import RawTensor
from puna.models.families import family_of
from puna.models.gguf import GgufFile, read_gguf
from puna.models.lowering import lower, weight_shapes
from puna.models.spec import ModelSpec
from puna.models.tokenizer import Tokenizer

SAMPLES = 64
SAMPLE_BYTES = 16_384


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for a backend. `fingerprint` names its contents: 16 hex digits."""

    path: Path
    spec: ModelSpec
    program: Program
    weights: Mapping[str, RawTensor]
    metadata: Mapping[str, Any]
    chat_template: str | None
    file: GgufFile

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built on first use. Raises ModelFileError where the file's vocabulary is missing or broken."""
        return Tokenizer.from_gguf(self.file)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.file)

    @property
    def name(self) -> str:
        """The name the file gives itself, or else the file's own."""
        name = self.metadata.get("general.name")
        return name if isinstance(name, str) and name else self.path.stem


def load_model(path: str | os.PathLike[str]) -> LoadedModel:
    """Raises ModelNotFoundError, or ModelFileError with what is wrong, where, and what was expected."""
    file = read_gguf(path)
    family = family_of(file)
    spec = family.read_spec(file)
    program = lower(spec)
    template = file.metadata.get("tokenizer.chat_template")
    return LoadedModel(
        path=file.path,
        spec=spec,
        program=program,
        weights=_bind_weights(file, program, family.tensor_names(spec)),
        metadata=file.metadata,
        chat_template=template if isinstance(template, str) else None,
        file=file,
    )


def fingerprint(file: GgufFile) -> str:
    """SHA-256 of the size, the whole header and evenly spread samples of the weights, cut to 16 hex digits.

    It tells models and quantisations apart within milliseconds. It is no proof that a file is intact: a single flipped
    byte can lie between two samples.
    """
    digest = hashlib.sha256(f"{file.size} {file.data_start} ".encode())
    digest.update(file.content[: file.data_start])
    rest = max(0, file.size - file.data_start - SAMPLE_BYTES)
    for index in range(SAMPLES):
        start = file.data_start + rest * index // (SAMPLES - 1)
        digest.update(file.content[start : start + SAMPLE_BYTES])
    return digest.hexdigest()[:16]


def _bind_weights(file: GgufFile, program: Program, names: Mapping[str, str]) -> dict[str, RawTensor]:
    weights = {}
    for weight, shape in weight_shapes(program).items():
        tensor_name = names[weight]
        tensor = file.tensors.get(tensor_name)
        if tensor is None:
            file.fail(f"tensor {tensor_name!r} ({weight}) is missing; expected one of shape {shape}")
        if not _fits(tensor.shape, shape):
            file.fail(f"tensor {tensor_name!r} ({weight}) has shape {tensor.shape}; expected {shape}")
        weights[weight] = RawTensor(weight, tensor.type, tensor.shape, tensor.data)
    return weights


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))
