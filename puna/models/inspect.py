"""What is in a model file, as one record for people: sizes, types, memory a token, tokenizer, licence.

It opens the file as serving would, so what it reports is what will run; it decodes no weights.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.tensor import RawTensor
from puna.models.load import load_model
from puna.models.spec import LayerSpec


@dataclass(frozen=True)
class TypeShare:
    """How much of a file is of one element type."""

    type: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ModelReport:
    """`kv_bytes_per_token` maps cache types to the bytes that one token's keys and values take in all layers. Heads,
    key heads, head size and feed-forward width are those of the first layer."""

    path: Path
    name: str
    fingerprint: str
    file_bytes: int
    container: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward_width: int
    context_length: int
    vocab_size: int
    tied_head: bool
    parameters: int
    bits_per_parameter: float
    types: tuple[TypeShare, ...]
    kv_bytes_per_token: dict[str, int]
    tokenizer: str
    chat_template: bool
    licence: str | None


def describe(path: str | os.PathLike[str]) -> ModelReport:
    """Raises ModelNotFoundError and ModelFileError as `load_model` does; a tokenizer that Puna cannot use is reported,
    not raised."""
    model = load_model(path)
    spec, first = model.spec, model.spec.layers[0]
    tensors = list(model.file.tensors.values())
    parameters = sum(tensor.elements for tensor in tensors)
    return ModelReport(
        path=model.path,
        name=model.name,
        fingerprint=model.fingerprint,
        file_bytes=model.file.size,
        container=model.file.container,
        family=spec.family,
        layers=len(spec.layers),
        width=spec.width,
        heads=first.attention.heads,
        kv_heads=first.attention.kv_heads,
        head_dim=first.attention.head_dim,
        feed_forward_width=_feed_forward_width(first),
        context_length=spec.context_length,
        vocab_size=spec.vocab_size,
        tied_head=spec.tied_head,
        parameters=parameters,
        bits_per_parameter=8 * sum(tensor.nbytes for tensor in tensors) / max(1, parameters),
        types=_shares(tensors),
        kv_bytes_per_token={
            dtype: kv_bytes_per_block(model.program, KVConfig(1, block_size=1, dtype=dtype))
            for dtype in ("f16", "f32", "int8")
        },
        tokenizer=model.file.tokenizer_kind(),
        chat_template=model.chat_template is not None,
        licence=model.file.licence,
    )


def _shares(tensors: Iterable[RawTensor]) -> tuple[TypeShare, ...]:
    """The largest share first."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type] += 1
        parameters[tensor.type] += tensor.elements
        sizes[tensor.type] += tensor.nbytes
    return tuple(TypeShare(kind, counts[kind], parameters[kind], size) for kind, size in sizes.most_common())


def _feed_forward_width(layer: LayerSpec) -> int:
    """Values between the matrices of all feed-forwards of a layer, experts counted one by one."""
    apart = sum(part.width for part in layer.feed_forwards)
    return apart + sum(part.experts * part.width + part.shared_width for part in layer.experts)
