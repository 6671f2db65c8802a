"""One model from one file or folder into another: GGUF to GGUF, a folder to GGUF, GGUF to a folder.

Which of them it is follows from the source and from the target's name. A GGUF file that only changes its types keeps
its metadata and names; anything else goes through the family's description and tables, in both directions, and is read
back before it is written. Memory holds a few tensors at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puna.errors import InputError
from puna.kernels.tensor import BLOCK_SIZES, RawTensor
from puna.models.conversion.encoding import Target
from puna.models.conversion.folder_entries import folder_entries, write_folder_texts
from puna.models.conversion.ggml_vocabulary import ggml_vocabulary
from puna.models.conversion.gguf_entries import gguf_architecture, gguf_entries, rope_tensors, rules_by_length
from puna.models.conversion.layout import PlannedFile, differences, planned_layout
from puna.models.conversion.mixes import MIXES, type_of
from puna.models.conversion.placing import picked, place
from puna.models.conversion.working_folder import clear_abandoned
from puna.models.conversion.writing import (
    Progress,
    appearing,
    check_free,
    unheard,
    unseen,
    write_gguf_file,
    write_safetensors_file,
)
from puna.models.families import family_of
from puna.models.families.family import Reading
from puna.models.gguf import GgufFile
from puna.models.load import LoadedModel, load_model, open_model_file
from puna.models.model_file import Container, ModelFile
from puna.models.safetensors import SafetensorsFolder
from puna.models.spec import ModelSpec

FOLDER_TYPES = ("F16", "BF16", "F32")
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Converted:
    """What was written: where, of which kind, how large, and what the container cannot say of the model."""

    path: Path
    type: str
    bytes: int
    lost: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str | None = None,
    *,
    force: bool = False,
    lossy: bool = False,
    progress: Progress = unseen,
    tell: Callable[[str], None] = unheard,
) -> Converted:
    """`target`: a name that ends in .gguf becomes a file, any other a folder. `type`: one of MIXES for a file, of
    FOLDER_TYPES for a folder; where it is left out, the type of most weights where the target can have it, else F16.
    `lossy`: write also what the container cannot describe in full. What a conversion to the same target has left that
    was killed is removed, and `tell` told.

    Raises InputError for what was asked, ModelFileError for what is wrong with the source.
    """
    path = Path(target)
    to_gguf = path.suffix == ".gguf"
    allowed = tuple(MIXES) if to_gguf else FOLDER_TYPES
    if type is not None and type not in allowed:
        kind = "a .gguf file" if to_gguf else "a folder (a name that does not end in .gguf)"
        raise InputError(f"type {type!r} is not known for {kind}; known: {', '.join(allowed)}", param="type")
    clear_abandoned(path, tell)
    check_free(path, force=force, folder=not to_gguf)
    file = open_model_file(source)
    _check_apart(file, path)
    chosen = type or _usual_type(file.tensors, allowed)
    if isinstance(file, GgufFile) and to_gguf:
        return _requantised(file, path, chosen, force, progress)
    if isinstance(file, SafetensorsFolder) and not to_gguf:
        raise InputError(
            f"{file.path} is a folder already; name a target that ends in .gguf (that file can become a folder again)"
        )
    model = load_model(source)
    write = _to_gguf if to_gguf else _to_folder
    return write(model, path, chosen, force, lossy, progress)


def _check_apart(file: ModelFile, target: Path) -> None:
    """A model is not written over the files that it is read from: what is lost in smaller types is lost for good."""
    parts = file.others if isinstance(file, GgufFile) else ()
    for path in (file.path, *(part.path for part in parts)):
        resolved, place = path.resolve(), target.resolve()
        if place == resolved or place in resolved.parents:
            raise InputError(f"{target} is the source or holds it ({path}); name another target")


def _requantised(file: GgufFile, path: Path, kind: str, force: bool, progress: Progress) -> Converted:
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    metadata |= {"general.file_type": MIXES[kind].number, "general.quantization_version": QUANTIZATION_VERSION}
    metadata.pop("general.alignment", None)
    targets = _typed(file.tensors, kind)
    return _written_gguf(path, metadata, targets, kind, (), force, progress)


def _to_gguf(model: LoadedModel, path: Path, kind: str, force: bool, lossy: bool, progress: Progress) -> Converted:
    file = model.file
    arch = gguf_architecture(family_of(file), file)
    metadata = gguf_entries(arch, model.spec, file)
    factors = rope_tensors(model.spec, file)
    placed, lost = _placed(model, path, "gguf", metadata, {factor.name: factor.source for factor in factors}, lossy)
    metadata |= {"general.file_type": MIXES[kind].number, "general.quantization_version": QUANTIZATION_VERSION}
    metadata |= ggml_vocabulary(file, arch, model.spec.vocab_size)
    return _written_gguf(path, metadata, [*factors, *_typed(placed, kind)], kind, lost, force, progress)


def _to_folder(model: LoadedModel, path: Path, kind: str, force: bool, lossy: bool, progress: Progress) -> Converted:
    config = folder_entries(family_of(model.file), model.spec, model.file)
    if config.get("new_decoder_architecture"):  # Falcon: how many norms stand before branches beside each other
        config["num_ln_in_parallel_attn"] = 2 if _has_two_norms(model) else 1
    placed, lost = _placed(model, path, "safetensors", config, {}, lossy)
    config["dtype"] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
    targets = [Target(name, kind, tensor) for name, tensor in placed.items()]
    size = sum(target.nbytes for target in targets)
    with appearing(path, size, force=force, folder=True) as part:
        write_folder_texts(part, config, model)
        write_safetensors_file(part / "model.safetensors", targets, progress)
    return Converted(path, kind, size, lost)


def _written_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    targets: list[Target],
    kind: str,
    lost: tuple[str, ...],
    force: bool,
    progress: Progress,
) -> Converted:
    with appearing(path, sum(target.nbytes for target in targets), force=force) as part:
        write_gguf_file(part, metadata, targets, progress)
    return Converted(path, kind, path.stat().st_size, lost)


def _typed(tensors: Mapping[str, RawTensor], kind: str) -> list[Target]:
    numbered = (re.match(r"blk\.(\d{1,9})\.", name, re.ASCII) for name in tensors)
    layers = 1 + max((int(found[1]) for found in numbered if found), default=0)
    tied = "output.weight" not in tensors
    return [
        Target(name, type_of(name, tensor.shape, kind, layers=layers, tied=tied), tensor)
        for name, tensor in tensors.items()
    ]


def _usual_type(tensors: Mapping[str, RawTensor], allowed: tuple[str, ...]) -> str:
    bytes_of: dict[str, int] = {}
    for tensor in tensors.values():
        bytes_of[tensor.type] = bytes_of.get(tensor.type, 0) + tensor.nbytes
    most = max(bytes_of, key=lambda kind: bytes_of[kind], default="F16")
    return most if most in allowed and BLOCK_SIZES[most][0] == 1 else "F16"


def _placed(
    model: LoadedModel,
    path: Path,
    container: Container,
    metadata: Mapping[str, Any],
    others: Mapping[str, RawTensor],
    lossy: bool,
) -> tuple[dict[str, RawTensor], tuple[str, ...]]:
    """Tensors by the target's names, and what the target will not say of the model."""
    planned = planned_layout(path, container, metadata, model.spec, two_norms=_has_two_norms(model))
    weights = _rotated(model, planned.spec)
    try:
        placed = place(weights, planned.sources)
    except KeyError as error:
        model.file.fail(f"{container} files of this family have no place for weight {error}")
    reading = PlannedFile(path, container, metadata, {**placed, **others}).read()
    lost = (*rules_by_length(model.file.facts(), container), *differences(model.spec, reading.spec))
    if lost and not lossy:
        shown = "; ".join(lost[:4]) + (f"; and {len(lost) - 4} more" if len(lost) > 4 else "")
        raise InputError(
            f"{path}: a {container} {'file' if container == 'gguf' else 'folder'} of this family cannot say "
            f"everything of this model ({shown}); --lossy writes it without that"
        )
    return placed, lost


def _has_two_norms(model: LoadedModel) -> bool:
    reading: Reading = family_of(model.file).read(model.file.facts(), 0)
    own, other = (reading.sources.get(f"layers.0.{branch}.norm") for branch in ("attention", "feed_forward"))
    return model.spec.layers[0].parallel and own != other


def _rotated(model: LoadedModel, planned: ModelSpec) -> dict[str, RawTensor]:
    """Weights with the rows of queries and keys in the pairs that the target rotates."""
    weights = dict(model.weights)
    for index, (ours, theirs) in enumerate(zip(model.spec.layers, planned.layers, strict=True)):
        have, want = ours.attention.rope, theirs.attention.rope
        if have is None or want is None or have.style == want.style:
            continue
        head = ours.attention.head_dim
        if have.dimensions != head:
            model.file.fail(f"heads of {head} of which {have.dimensions} values rotate cannot change their pairs")
        halves = np.arange(head).reshape(2, head // 2)
        one = halves.T.reshape(-1) if want.style == "interleaved" else np.argsort(halves.T.reshape(-1))
        for part in ("query", "query.bias", "query_norm", "key", "key.bias", "key_norm"):
            name = f"layers.{index}.attention.{part}"
            if name in weights:
                rows = weights[name].shape[0]
                order = (np.arange(0, rows, head)[:, None] + one).reshape(-1)
                weights[name] = picked(weights[name], order)
    return weights
