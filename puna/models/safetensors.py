"""Opens a folder as Hugging Face keeps models: config.json, .safetensors files, tokenizer files beside them.

A file is `header length u64 | header JSON | tensor bytes`. It comes from a stranger: every offset is checked against
the bytes that are really there. Weights are views into the mapped files. This module knows the container; what the
numbers mean is the families' business.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from puna.errors import ModelFileError, ModelNotFoundError
from puna.kernels.tensor import BLOCK_SIZES, RawTensor
from puna.models.facts import Facts
from puna.models.folder_vocabulary import kind_of_folder
from puna.models.gguf_parse import brief, clipped
from puna.models.model_file import Container
from puna.models.packed_parts import Fail
from puna.models.packed_weights import plain_weights
from puna.models.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_JSON = 64 << 20  # of config.json and its neighbours
MAX_DEPTH = 40  # of config.json; those of published models have four levels
SAMPLES = 64  # of the weights, for the fingerprint
SAMPLE_BYTES = 16_384


@dataclass(frozen=True)
class SafetensorsFolder:
    """`config` is config.json; `tensors` are those of all parts, beside those of packed weights what they are decoded
    to; `stored` without that, `maps` the mapped parts."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, RawTensor]
    maps: tuple[tuple[Path, mmap.mmap], ...]
    stored: Mapping[str, RawTensor] = field(default_factory=dict)

    @property
    def container(self) -> Container:
        return "safetensors"

    @property
    def size(self) -> int:
        return sum(len(mapped) for _, mapped in self.maps)

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config

    @property
    def architecture(self) -> str:
        value = self.config.get("model_type")
        if not isinstance(value, str):
            self.fail(f"config.json: 'model_type' is {brief(value)}; expected a string")
        return value

    @property
    def name(self) -> str | None:
        value = self.config.get("_name_or_path")
        return value if isinstance(value, str) and value else self.path.resolve().name

    @property
    def licence(self) -> str | None:
        return None

    @cached_property
    def chat_template(self) -> str | None:
        """chat_template.jinja, or the entry of tokenizer_config.json (of several the one named "default")."""
        apart = self.path / "chat_template.jinja"
        if apart.is_file():
            return _text(apart)
        value = self.json("tokenizer_config.json").get("chat_template")
        if isinstance(value, list):
            named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
            value = named.get("default")
        return value if isinstance(value, str) and value else None

    def facts(self) -> Facts:
        return Facts(self, self.config)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self)

    def tokenizer_kind(self) -> str:
        if (self.path / "tokenizer.json").is_file():
            return kind_of_folder(self)
        return "tokenizer.model" if (self.path / "tokenizer.model").is_file() else "none"

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the weights; empty where there is no such file. Raises ModelFileError."""
        return _object(self.path / name) if (self.path / name).is_file() else {}

    def fingerprint(self) -> str:
        """SHA-256 of config.json, the parts' sizes and headers and evenly spread samples of the weights, cut to 16 hex
        digits. It tells models apart within milliseconds; it is no proof that every byte is intact."""
        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        samples = max(2, SAMPLES // max(1, len(self.maps)))
        for _, mapped in self.maps:
            start = 8 + struct.unpack("<Q", mapped[:8])[0]
            digest.update(f"{len(mapped)} ".encode() + mapped[:start])
            rest = max(0, len(mapped) - start - SAMPLE_BYTES)
            for index in range(samples):
                at = start + rest * index // (samples - 1)
                digest.update(mapped[at : at + SAMPLE_BYTES])
        return digest.hexdigest()[:16]

    def release_pages(self) -> None:
        for _, mapped in self.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {clipped(message, 1500)}")


def read_safetensors(folder: str | os.PathLike[str]) -> SafetensorsFolder:
    """Raises ModelNotFoundError where there is no such folder, ModelFileError where what is in it is no good."""
    path = Path(folder)
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such folder")
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{path}: there is no config.json; expected a folder with one and .safetensors files")
    config = _object(path / "config.json")
    if _depth(config) > MAX_DEPTH:
        raise ModelFileError(f"{path / 'config.json'}: is nested deeper than {MAX_DEPTH} levels")
    tensors: dict[str, RawTensor] = {}
    places: dict[str, Path] = {}
    maps: list[tuple[Path, mmap.mmap]] = []
    wanted = _parts(path)
    for part, names in wanted.items():
        mapped = _mapped(part)
        maps.append((part, mapped))
        found = dict(_tensors(part, mapped))
        for name in found.keys() & tensors.keys():
            raise ModelFileError(f"{part}: tensor {clipped(name)!r} is also in another part of this model")
        for name in sorted(names - found.keys()):
            raise ModelFileError(f"{part}: tensor {clipped(name)!r} is missing; {INDEX} says that it is here")
        tensors |= found
        places |= dict.fromkeys(found, part)
    weights = plain_weights(tensors, config, _failing_at(path, places))
    stored = MappingProxyType(tensors)
    return SafetensorsFolder(path, MappingProxyType(config), MappingProxyType(weights), tuple(maps), stored)


def _failing_at(path: Path, places: Mapping[str, Path]) -> Fail:
    """Errors that begin with the part that a tensor lies in, or with the folder."""

    def fail(message: str, tensor: str | None = None, /) -> NoReturn:
        raise ModelFileError(f"{places.get(tensor or '', path)}: {clipped(message, 1500)}")

    return fail


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        inner = [entry.values() if isinstance(entry, dict) else entry for entry in level]
        level = [member for entry in inner for member in entry if isinstance(member, dict | list)]
        depth += 1
    return depth


def _parts(path: Path) -> dict[Path, set[str]]:
    """Files of the model, and the tensors that the index promises in each."""
    if (path / INDEX).is_file():
        placed = _object(path / INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed or not all(isinstance(part, str) for part in placed.values()):
            raise ModelFileError(f"{path / INDEX}: 'weight_map' has to be an object of tensor names and file names")
        parts: dict[Path, set[str]] = {}
        for name, part in placed.items():
            if Path(part).name != part or part == "..":
                raise ModelFileError(f"{path / INDEX}: {clipped(part, 80)!r} is not a file name of this folder")
            parts.setdefault(path / part, set()).add(name)
        for part_path in parts:
            if not _is_file(part_path):
                raise ModelFileError(f"{clipped(str(part_path))}: a part of the model is missing; {INDEX} names it")
        return dict(sorted(parts.items()))
    if (path / "model.safetensors").is_file():
        return {path / "model.safetensors": set()}
    files = sorted(file for file in path.glob("*.safetensors") if _is_file(file))
    if len(files) == 1:
        return {files[0]: set()}
    listed = ", ".join(file.name for file in files[:20]) or "none"
    raise ModelFileError(f"{path}: expected model.safetensors or {INDEX}; .safetensors files here: {listed}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 8:
                raise ModelFileError(f"{path}: the file has no header; expected a safetensors file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def _tensors(path: Path, mapped: mmap.mmap) -> Iterator[tuple[str, RawTensor]]:
    size = struct.unpack("<Q", mapped[:8])[0]
    if size > min(MAX_HEADER, len(mapped) - 8):
        raise ModelFileError(f"{path}: the header is said to have {size} bytes, in a file of {len(mapped)}")
    header = _parsed(path, mapped[8 : 8 + size], hook=_each_once)
    content = np.frombuffer(mapped, np.uint8)[8 + size :]
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop, tensor = _tensor(path, name, entry, content)
            spans.append((start, stop, name))
            yield name, tensor
    spans.sort()
    for (_, end, first), (start, stop, second) in pairwise(spans):
        if start < end and start < stop:
            raise ModelFileError(
                f"{path}: tensor {clipped(second)!r} overlaps tensor {clipped(first)!r}; each has to have its own bytes"
            )


def _tensor(
    path: Path, name: str, entry: Any, content: np.ndarray[Any, np.dtype[np.uint8]]
) -> tuple[int, int, RawTensor]:
    where = f"{path}: tensor {clipped(name)!r}"
    if not isinstance(entry, dict):
        raise ModelFileError(f"{where} is {brief(entry)}; expected dtype, shape and data_offsets")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or BLOCK_SIZES.get(kind, (0, 0))[0] != 1:
        known = ", ".join(kind for kind, (values, _) in BLOCK_SIZES.items() if values == 1)
        raise ModelFileError(f"{where} has dtype {brief(kind)}; Puna reads: {known}")
    extents = _whole_numbers(shape)
    if extents is None or len(extents) > 8:
        raise ModelFileError(f"{where} has shape {brief(shape)}; expected a list of whole numbers")
    wanted = math.prod(extents) * BLOCK_SIZES[kind][1]
    span = _whole_numbers(offsets)
    if span is None or len(span) != 2 or not span[0] <= span[1] <= len(content):
        raise ModelFileError(f"{where} has data_offsets {brief(offsets)}; expected two within {len(content)} bytes")
    if span[1] - span[0] != wanted:
        held = span[1] - span[0]
        raise ModelFileError(f"{where} of shape {brief(shape)} and dtype {kind} has {held} bytes; expected {wanted}")
    return span[0], span[1], RawTensor(name, kind, tuple(extents), content[span[0] : span[1]])


def _whole_numbers(values: Any) -> list[int] | None:
    whole = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
    return values if whole else None


def _object(path: Path) -> dict[str, Any]:
    return _parsed(path, _text(path).encode())


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(f"{path}: {path.stat().st_size} bytes; expected at most {MAX_JSON}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read as text: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {clipped(twice, 80)!r} stands twice in one object")
    return found


def _parsed(path: Path, text: bytes, *, hook: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is no valid JSON: {clipped(str(error))}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: is {brief(value)}; expected a JSON object")
    return value
