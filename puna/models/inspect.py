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
from puna.kernels.program import Experts, Linear, weights_of
from puna.kernels.tensor import MadeTensor, RawTensor, multiplied, packed_bits
from puna.models.load import LoadedModel, load_model
from puna.models.model_file import ModelFile
from puna.models.spec import LayerSpec


@dataclass(frozen=True)
class TypeShare:
    """How much of a file, or of the matrices as they run, is of one element type."""

    type: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ModelReport:
    """`kv_bytes_per_token` maps cache types to the bytes that one token's keys and values take in all layers. Heads,
    key heads, head size and feed-forward width are those of the first layer. `types` is of the file, `matrices` what
    the native core multiplies, in the bytes that it packs them into; both with the largest share first."""

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
    matrices: tuple[TypeShare, ...]
    kv_bytes_per_token: dict[str, int]
    tokenizer: str
    chat_template: bool
    licence: str | None


def describe(path: str | os.PathLike[str]) -> ModelReport:
    """Raises ModelNotFoundError and ModelFileError as `load_model` does; a tokenizer that Puna cannot use is reported,
    not raised."""
    model = load_model(path)
    spec, first = model.spec, model.spec.layers[0]
    stored = list(model.file.stored.values())
    parameters = _parameters(model.file)
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
        bits_per_parameter=8 * sum(tensor.nbytes for tensor in stored) / max(1, parameters),
        types=_shares((tensor, tensor.nbytes) for tensor in stored),
        matrices=_shares((tensor, _packed_bytes(tensor)) for tensor in _matrices(model)),
        kv_bytes_per_token={
            dtype: kv_bytes_per_block(model.program, KVConfig(1, block_size=1, dtype=dtype))
            for dtype in ("f16", "f32", "int8")
        },
        tokenizer=model.file.tokenizer_kind(),
        chat_template=model.chat_template is not None,
        licence=model.file.licence,
    )


def _parameters(file: ModelFile) -> int:
    """Of decoded weights themselves, not of the parts that lie beside them."""
    made = {name.rpartition(".")[0] for name, tensor in file.tensors.items() if isinstance(tensor, MadeTensor)}
    places = ((name.rpartition("."), tensor) for name, tensor in file.tensors.items())
    return sum(t.elements for (module, _, part), t in places if module not in made or part in ("weight", "bias"))


def _matrices(model: LoadedModel) -> list[RawTensor]:
    ops = [op for op in model.program.body + model.program.head if isinstance(op, Linear | Experts)]
    names = dict.fromkeys(name for op in ops for name in ([op.weight] if isinstance(op, Linear) else weights_of(op)))
    return [multiplied(model.weights[name], "int8") for name in names]


def _packed_bytes(tensor: RawTensor) -> int:
    return int(tensor.elements * packed_bits(tensor.type) / 8)


def _shares(tensors: Iterable[tuple[RawTensor, int]]) -> tuple[TypeShare, ...]:
    """Of tensors and their sizes."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor, size in tensors:
        counts[tensor.type] += 1
        parameters[tensor.type] += tensor.elements
        sizes[tensor.type] += size
    return tuple(TypeShare(kind, counts[kind], parameters[kind], total) for kind, total in sizes.most_common())


def _feed_forward_width(layer: LayerSpec) -> int:
    """Values between the matrices of all feed-forwards of a layer, experts counted one by one."""
    apart = sum(part.width for part in layer.feed_forwards)
    return apart + sum(part.experts * part.width + part.shared_width for part in layer.experts)
