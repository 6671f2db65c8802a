"""Runs a small model through our interpreters, whole or with a part of it changed, and measures how far logits deviate.

Texts pass in chunks, so that attention over cached keys is part of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import Interpreter, KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Program
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.kernels.tensor import RawTensor
from puna.models.load import LoadedModel
from puna.models.lowering import lower
from puna.models.spec import BranchSpec, LayerSpec
from tests.kernels.steps import rows, step

F32 = npt.NDArray[np.float32]
CHUNK = 40
Backend = Callable[[Program, Mapping[str, RawTensor], KVConfig], Interpreter]


def native(isa: str) -> Backend:
    return lambda *given: NativeInterpreter(*given, compute="float32", threads=1, isa=isa)


def logits(model: LoadedModel, ids: list[int], backend: Backend = ReferenceInterpreter) -> F32:
    """Of every token of the text: [tokens, vocabulary]."""
    blocks = -(-len(ids) // 16)
    interpreter = backend(model.program, model.weights, KVConfig(blocks + 1, 16, "f32"))
    parts = []
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        out = interpreter.step(step([(chunk, begin, range(1, blocks + 1))], rows(range(len(chunk)))))
        assert out.logits is not None
        parts.append(out.logits.copy())
    return np.concatenate(parts)


def deviation(found: F32, wanted: F32) -> float:
    """The largest, in parts of the largest wanted logit."""
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def changed(model: LoadedModel, **values: Any) -> LoadedModel:
    """The same weights under another description. Each value replaces every field of that name, in the model, its
    layers, branches, attention, feed-forwards, experts and rotations; a function is given what stood there."""
    used: set[str] = set()
    spec = _changed(model.spec, values, used)
    assert used == set(values), f"nothing has these fields: {set(values) - used}"
    assert spec != model.spec
    return replace(model, spec=spec, program=lower(spec))


def _changed(part: Any, values: Mapping[str, Any], used: set[str]) -> Any:
    if isinstance(part, tuple) and part and isinstance(part[0], LayerSpec | BranchSpec):
        return tuple(_changed(member, values, used) for member in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    found: dict[str, Any] = {}
    for field in fields(part):
        before = getattr(part, field.name)
        if field.name in values:
            used.add(field.name)
            value = values[field.name]
            found[field.name] = value(before) if callable(value) else value
        else:
            found[field.name] = _changed(before, values, used)
    return replace(part, **found)
