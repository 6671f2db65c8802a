"""Opens a model file: description, program, weights under the program's names, tokenizer and chat template.

Everything is checked before a backend sees it: every weight the program reads is there and has the shape that its
operator implies. Weights stay views into the mapped file; nothing is decoded here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.kernels.program import Program
from puna.kernels.tensor import PLAIN_TYPES, RawTensor
from puna.models.families import family_of
from puna.models.families.family import Reading
from puna.models.gguf import read_gguf
from puna.models.lowering import lower, weight_shapes
from puna.models.model_file import ModelFile
from puna.models.safetensors import read_safetensors
from puna.models.spec import ModelSpec
from puna.models.tokenizer import Tokenizer
from puna.models.weights import MissingTensorError, Source, find, first_name

NOT_DECODED = PLAIN_TYPES - {"F32", "F16", "BF16"}  # what weights are stored in that something else gives a scale


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for a backend."""

    path: Path
    spec: ModelSpec
    program: Program
    weights: Mapping[str, RawTensor]
    file: ModelFile

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.file.metadata

    @property
    def chat_template(self) -> str | None:
        return self.file.chat_template

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built on first use. Raises ModelFileError where the file's vocabulary is missing or broken."""
        return self.file.tokenizer()

    @cached_property
    def fingerprint(self) -> str:
        """Names the contents: 16 hex digits."""
        return self.file.fingerprint()

    @property
    def name(self) -> str:
        """The name the file gives itself, or else the file's own."""
        return self.file.name or self.path.stem

    def for_texts_of(self, length: int) -> LoadedModel:
        """This model for texts of up to `length` tokens, with the same weights; itself where nothing depends on that.

        Only rotary rules do (dynamic, longrope): the keys of a cache are turned once and for all."""
        spec = family_of(self.file).read(self.file.facts(), length).spec
        return self if spec == self.spec else replace(self, spec=spec, program=lower(spec))


def load_model(path: str | os.PathLike[str], *, length: int = 0) -> LoadedModel:
    """`length`: the longest text that will be run; 0 is the model's own context. Only rotary rules that stretch with a
    text's length ask for it.

    Raises ModelNotFoundError, or ModelFileError with what is wrong, where, and what was expected.
    """
    file = open_model_file(path)
    reading = family_of(file).read(file.facts(), length)
    program = lower(reading.spec)
    weights = _bind_weights(file, program, reading.sources)
    _check_positions(file, reading, weights)
    return LoadedModel(file.path, reading.spec, program, weights, file)


def open_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """A GGUF file, or a folder with config.json and safetensors."""
    return read_safetensors(path) if Path(path).is_dir() else read_gguf(path)


def _bind_weights(file: ModelFile, program: Program, sources: Mapping[str, Source]) -> dict[str, RawTensor]:
    weights = {}
    for weight, shape in weight_shapes(program).items():
        source = sources.get(weight)
        if source is None:
            file.fail(f"a model of this kind has no {weight}; expected a tensor of shape {shape}")
        try:
            tensor = find(file, source)
        except MissingTensorError as missing:
            file.fail(f"tensor {str(missing)!r} ({weight}) is missing; expected one of shape {shape}")
        if not _fits(tensor.shape, shape):
            file.fail(f"tensor {first_name(source)!r} ({weight}) has shape {tensor.shape}; expected {shape}")
        if tensor.type in NOT_DECODED:
            file.fail(
                f"tensor {first_name(source)!r} ({weight}) has type {tensor.type}, and config.json does not say how it "
                "is scaled ('quantization_config'); expected F32, F16 or BF16"
            )
        weights[weight] = tensor.renamed(weight)
    return weights


def _check_positions(file: ModelFile, reading: Reading, weights: Mapping[str, RawTensor]) -> None:
    """A table of learned positions has a row for each that the context promises."""
    spec = reading.spec
    wanted = spec.learned_positions + spec.position_offset
    if spec.learned_positions and (rows := weights["positions"].shape[0]) < wanted:
        file.fail(
            f"tensor {first_name(reading.sources['positions'])!r} (positions) has {rows} rows; "
            f"{file.facts().key('context')}, {spec.learned_positions}, asks for {wanted}"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))
