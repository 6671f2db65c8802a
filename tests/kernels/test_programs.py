"""Programs that the native core cannot run are refused when they are bound, with a reason, not while they run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.errors import InputError, ModelFileError
from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.tensor import RawTensor
from tests.kernels.steps import around, raw, step

TABLE = np.ones((4, 48), np.float32)
GOOD = KVConfig(num_blocks=4, block_size=16)
SHAPE = (ops.KVShape(2, 16),)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (KVConfig(4, block_size=8), "block_size is 8; it is a multiple of 16"),
        (KVConfig(4, block_size=0), "block_size is 0; it is a multiple of 16"),
        (KVConfig(1), "the pool needs at least two blocks"),
        (KVConfig(4, dtype="f8"), "cache type 'f8' is not one of f32, bf16, f16, int8"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(config: KVConfig, message: str) -> None:
    case = around([], {"x": TABLE}, {}, out="x")
    with pytest.raises(InputError, match=message):
        NativeInterpreter(case.program, case.weights, config, threads=1)


def _experts(**given: Any) -> ops.Experts:
    """Two experts that fit, but for what is given."""
    good = {"src": "x", "router": "scores", "out": "x2", "gate": "stack", "up": "stack", "down": "turned", "used": 1}
    return ops.Experts(**{**good, "width": 33, "kind": "silu", "normalised": True, **given})


BAD: list[tuple[ops.Op, tuple[ops.KVShape, ...]]] = [
    (ops.Add("x", "y"), ()),
    (ops.RmsNorm("x", "x", "w", 1e-5), ()),
    (ops.RmsNorm("x", "x", "w", 1e-5, 5), ()),
    (ops.LayerNorm("x", "x", "w", None, 1e-5), ()),
    (ops.Linear("x", "y", "m"), ()),
    (ops.Linear("y", "y", "square"), ()),
    (ops.Gate("x", "y", "x", "silu"), ()),
    (ops.Activate("x", "y", "silu"), ()),
    (ops.Rope("x", 3, 15, (1.0,), "halves"), ()),
    (ops.Rope("x", 3, 16, (1.0,) * 9, "halves"), ()),
    (ops.StoreKV(0, "x", "x"), ()),
    (ops.StoreKV(1, "y", "y"), SHAPE),
    (ops.StoreKV(0, "x", "y"), SHAPE),
    (ops.Attend(0, "x", "x", 3, 1, 16, 1.0), (ops.KVShape(1, 16),)),
    (ops.Attend(0, "x", "x2", 3, 2, 16, 1.0), SHAPE),
    (ops.Attend(0, "x", "x2", 3, 3, 16, 1.0), SHAPE),
    (ops.Attend(2, "x", "x2", 3, 1, 16, 1.0), (ops.KVShape(1, 16),)),
    (ops.EmbedPositions("x", "m"), ()),
    (_experts(up="turned"), ()),
    (_experts(down="stack"), ()),
    (_experts(out="y"), ()),
    (_experts(out="x"), ()),
    (_experts(used=3), ()),
    (_experts(used=0), ()),
    (ops.ScaleRows("x", "y"), ()),
]


@pytest.mark.parametrize(("op", "kv"), BAD, ids=lambda value: type(value).__name__)
def test_an_operator_that_does_not_fit_is_refused(op: ops.Op, kv: tuple[ops.KVShape, ...]) -> None:
    weights = {"w": raw("w", np.ones(7)), "m": raw("m", np.ones((32, 33))), "square": raw("square", np.ones((32, 32)))}
    weights |= {"stack": raw("stack", np.ones((2, 33, 48))), "turned": raw("turned", np.ones((2, 48, 33)))}
    case = around([op], {"x": TABLE}, weights, widths={"y": 32, "x2": 48, "scores": 2}, out="x", kv=kv)
    with pytest.raises(InputError, match="does not fit its buffers or weights"):
        NativeInterpreter(case.program, case.weights, GOOD, threads=1)


@pytest.mark.parametrize("head_dim", [8, 40])
def test_a_size_of_heads_that_has_no_kernel_is_refused(head_dim: int) -> None:
    case = around([], {"x": TABLE}, {}, out="x", kv=(ops.KVShape(1, head_dim),))
    with pytest.raises(InputError, match=f"head_dim is {head_dim}; the native core takes multiples of 16"):
        NativeInterpreter(case.program, case.weights, GOOD, threads=1)


def test_a_weight_of_the_wrong_size_or_type_is_named() -> None:
    case = around([], {"x": TABLE}, {}, out="x")
    whole = case.weights["identity"]
    short = RawTensor("identity", "F32", whole.shape, whole.data[:-4])
    other = RawTensor("identity", "Q6_K", whole.shape, whole.data)
    strange = RawTensor("identity", "Q9_Z", whole.shape, whole.data)
    bytes_and_shape = "'identity' .*do not match its shape"
    blocks = "'identity' of type Q6_K: .* not a whole number of blocks of 256"
    for weight, message in ((short, bytes_and_shape), (other, blocks), (strange, "'identity' .*type Q9_Z")):
        with pytest.raises(ModelFileError, match=message):
            NativeInterpreter(case.program, {**case.weights, "identity": weight}, GOOD, threads=1)


@pytest.mark.parametrize("option", [{"compute": "int4"}, {"isa": "mmx"}])
def test_an_unknown_option_is_refused(option: dict[str, Any]) -> None:
    case = around([], {"x": TABLE}, {}, out="x")
    (name,) = option
    with pytest.raises(InputError) as refusal:
        NativeInterpreter(case.program, case.weights, GOOD, **option)
    assert refusal.value.param == name


def test_the_same_program_may_be_bound_many_times_and_dropped() -> None:
    case = around([ops.Softcap("x", 3.0)], {"x": TABLE}, {}, out="x")
    batch = step([(range(4), 0, [1])])
    first = NativeInterpreter(case.program, case.weights, GOOD, threads=2).step(batch).logits
    for threads in (1, 2, 3) * 5:
        again = NativeInterpreter(case.program, case.weights, GOOD, threads=threads).step(batch).logits
        np.testing.assert_array_equal(again, first)


def test_experts_that_fit_are_not_refused() -> None:
    """What the refusals above differ from in one thing each."""
    weights = {"stack": raw("stack", np.ones((2, 33, 48))), "turned": raw("turned", np.ones((2, 48, 33)))}
    case = around([_experts()], {"x": TABLE}, weights, widths={"x2": 48, "scores": 2}, out="x")
    out = NativeInterpreter(case.program, case.weights, GOOD, threads=1).step(step([([0, 1], 0, [1])]))
    assert (out.tokens >= 0).all()
