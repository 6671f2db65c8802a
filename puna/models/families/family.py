"""What a family has to provide, and how the metadata that most families share are read.

Metadata keys of a model begin with its architecture ("llama.block_count"); `Keys` adds that. Every number is checked
for sanity here, since counts from a file decide how much is built from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from puna.models.gguf import GgufFile
from puna.models.spec import ModelSpec

MAX_WIDTH = 2**20  # values in a row of anything but the vocabulary
MAX_HEADS = 2**12
MAX_HEAD_DIM = 2**12


@dataclass(frozen=True)
class Family:
    """`read_spec` raises ModelFileError. `tensor_names` maps the program's weight names to the file's."""

    name: str
    read_spec: Callable[[GgufFile], ModelSpec]
    tensor_names: Callable[[ModelSpec], Mapping[str, str]]


@dataclass(frozen=True)
class Keys:
    """A file's metadata under the prefix of its architecture."""

    file: GgufFile
    prefix: str

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.file.metadata

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_WIDTH) -> int:
        return self.file.integer(f"{self.prefix}.{key}", default, least=least, most=most)

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        return self.file.number(f"{self.prefix}.{key}", default, above=above)

    def string(self, key: str, default: str) -> str:
        return self.file.string(f"{self.prefix}.{key}", default)

    def layers(self) -> int:
        """Every layer has tensors, so their count bounds that of the layers."""
        return self.integer("block_count", most=max(1, len(self.file.tensors)))

    def per_layer(self, key: str, layers: int, default: int | None = None, *, most: int = MAX_WIDTH) -> list[int]:
        """A number for all layers, or an array with one for each."""
        value = self.file.metadata.get(f"{self.prefix}.{key}")
        if not isinstance(value, np.ndarray):
            return [self.integer(key, default, most=most)] * layers
        if len(value) != layers or value.dtype.kind not in "iu" or value.min() < 1 or value.max() > most:
            self.file.fail(f"metadata '{self.prefix}.{key}' has to be {layers} whole numbers from 1 to {most}")
        return [int(entry) for entry in value]

    def vocab_size(self, embedding: str) -> int:
        """Rows of the embedding matrix, which decide; the token list may not be longer."""
        if embedding not in self.file.tensors or len(self.file.tensors[embedding].shape) != 2:
            self.file.fail(f"tensor {embedding!r}, the embedding matrix, is missing or not a matrix")
        rows = self.file.tensors[embedding].shape[0]
        tokens = self.file.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and len(tokens) > rows:
            self.file.fail(f"the vocabulary has {len(tokens)} tokens but {embedding!r} only {rows} rows")
        return rows
