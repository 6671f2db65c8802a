"""Every row-wise operator of the native core is its NumPy twin, on every instruction path, for any shape.

Deviations are relative to the largest value. float32 sums may differ in their order only; the integer path is compared
with its twin that rounds activations in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.kernels.tensor import BLOCK_SIZES, NATIVE_TYPES, RawTensor
from tests.kernels.sanitized import examples
from tests.kernels.steps import F32, Case, around, difference, raw, step

TOLERANCE = 1e-5
PRODUCT_TOLERANCE = 1e-6
TYPES = ("BF16", "F16", "F32", "Q4_0", "Q4_1", "Q8_0")  # that given numbers can be written in; all: test_layouts.py
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
KV = KVConfig(num_blocks=70, block_size=16, dtype="f32")

many = settings(
    max_examples=examples(20),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
tokens = st.integers(1, 70)
widths = st.integers(1, 150)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def outputs(case: Case, isa: str, first: int = 0, compute: str = "float32") -> tuple[F32, F32]:
    """What the native core and its twin leave, for one sequence whose first token stands at `first`."""
    blocks = -(-(first + case.tokens) // KV.block_size)
    batch = step([(range(case.tokens), first, [1 + i % 60 for i in range(blocks)])])
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=2, compute=compute)
    twin = ReferenceInterpreter(case.program, case.weights, KV, rounding=native.rounding)
    found, wanted = native.step(batch).logits, twin.step(batch).logits
    assert found is not None
    assert wanted is not None
    return found, wanted


def assert_twins(case: Case, isa: str, first: int = 0) -> None:
    assert difference(*outputs(case, isa, first)) <= TOLERANCE


def assert_products_are_twins(
    isa: str,
    compute: str,
    seed: int,
    count: int,
    k: int,
    n: int,
    kind: str,
    *,
    bias: bool,
    accumulate: bool,
    spread: float = 1.0,
) -> None:
    """Terms of a product may cancel: its deviation is relative to the largest sum of its terms' absolute values."""
    weights = {"w": raw("w", normal(seed + 1, n, k), kind)}
    if bias:
        weights["b"] = raw("b", normal(seed + 2, n))
    op = ops.Linear("x", "y", "w", "b" if bias else None, accumulate)
    x = normal(seed, count, k) * np.exp(spread * normal(seed + 3, count, k))
    case = around([op], {"x": x, "y": normal(seed + 4, count, n)}, weights, out="y")
    found, wanted = outputs(case, isa, compute=compute)
    terms = (np.abs(x) @ np.abs(dequantize(weights["w"])).T).max()
    assert np.abs(found - wanted).max() <= PRODUCT_TOLERANCE * max(terms, np.abs(wanted).max())


@pytest.mark.parametrize("kind", TYPES)
@many
@given(seed=seeds, count=tokens, k=widths, n=widths, bias=st.booleans(), accumulate=st.booleans())
def test_a_float32_product_is_its_twin(
    isa: str, kind: str, seed: int, count: int, k: int, n: int, bias: bool, accumulate: bool
) -> None:
    block = BLOCK_SIZES[kind][0]
    k = -(-k // block) * block
    assert_products_are_twins(isa, "float32", seed, count, k, n, kind, bias=bias, accumulate=accumulate)


@pytest.mark.parametrize("kind", TYPES)
@many
@given(
    seed=seeds,
    count=tokens,
    groups=st.integers(1, 7),
    n=widths,
    bias=st.booleans(),
    accumulate=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 2.5]),
)
def test_an_integer_product_is_its_twin_that_rounds_activations(
    isa: str, kind: str, seed: int, count: int, groups: int, n: int, bias: bool, accumulate: bool, spread: float
) -> None:
    k = 32 * groups
    assert_products_are_twins(isa, "int8", seed, count, k, n, kind, bias=bias, accumulate=accumulate, spread=spread)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.startswith("Q")])
def test_integer_products_of_wide_rows_with_outliers_are_their_twins(isa: str, kind: str) -> None:
    x = normal(1, 9, 1536)
    x[:, ::97] *= 50
    x[3] = 0
    x[4, 32:64] = 0
    x[5] = 1e-30 * x[5]
    x[6] = 1e-39 * x[6] / np.abs(x[6]).max()  # no scale of its groups has a finite inverse
    weights = {"w": raw("w", normal(2, 77, 1536), kind)}
    case = around([ops.Linear("x", "y", "w")], {"x": x}, weights, widths={"y": 77}, out="y")
    found, wanted = outputs(case, isa, compute="int8")
    assert difference(found, wanted) <= TOLERANCE
    assert (found[3, :77] == 0).all()
    assert (found[6, :77] == 0).all()


def test_a_value_that_is_rounded_once_serves_every_matrix_that_reads_it_and_none_that_comes_after_a_change(
    isa: str,
) -> None:
    weights = {name: raw(name, normal(i, 64, 64), "Q4_1") for i, name in enumerate("abcd")}
    body: list[ops.Op] = [
        ops.Linear("x", "y", "a"),
        ops.Linear("x", "y", "b", None, True),
        ops.Add("y", "x"),
        ops.Linear("x", "z", "c"),
        ops.Linear("z", "x", "d", None, True),
        ops.Linear("x", "y", "a", None, True),
    ]
    case = around(body, {"x": normal(9, 5, 64)}, weights, widths={"y": 64, "z": 64}, out="y")
    # A product that is rounded again may fall to the other side of a half: one step of one activation in 64.
    assert difference(*outputs(case, isa, compute="int8")) <= 1e-3


@many
@given(seed=seeds, count=tokens, groups=st.integers(1, 5), group=st.integers(1, 70), whole=st.booleans())
def test_rms_norm_is_its_twin(isa: str, seed: int, count: int, groups: int, group: int, whole: bool) -> None:
    width = groups * group
    weights = {"w": raw("w", normal(seed + 1, width if whole else group))}
    op = ops.RmsNorm("x", "y", "w", 1e-5, 0 if whole else group)
    assert_twins(around([op], {"x": normal(seed, count, width)}, weights, widths={"y": width}, out="y"), isa)


@many
@given(seed=seeds, count=tokens, width=st.integers(2, 200), bias=st.booleans(), shift=st.floats(-3, 3))
def test_layer_norm_is_its_twin(isa: str, seed: int, count: int, width: int, bias: bool, shift: float) -> None:
    weights = {"w": raw("w", normal(seed + 1, width)), "b": raw("b", normal(seed + 2, width))}
    op = ops.LayerNorm("x", "y", "w", "b" if bias else None, 1e-5)
    table = normal(seed, count, width) + np.float32(shift)
    assert_twins(around([op], {"x": table}, weights, widths={"y": width}, out="y"), isa)


@many
@given(seed=seeds, count=tokens, width=widths, scale=st.sampled_from([0.1, 1.0, 10.0, 60.0]))
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_their_twins(isa: str, kind: Any, seed: int, count: int, width: int, scale: float) -> None:
    x, up = normal(seed, count, width) * np.float32(scale), normal(seed + 1, count, width)
    assert_twins(around([ops.Activate("x", "y", kind)], {"x": x}, {}, widths={"y": width}, out="y"), isa)
    assert_twins(around([ops.Activate("x", "x", kind)], {"x": x}, {}, out="x"), isa)
    assert_twins(around([ops.Gate("x", "u", "u", kind)], {"x": x, "u": up}, {}, out="u"), isa)


@many
@given(
    seed=seeds,
    count=tokens,
    heads=st.integers(1, 5),
    pairs=st.integers(1, 40),
    rest=st.integers(0, 30),
    style=st.sampled_from(["interleaved", "halves"]),
    scale=st.sampled_from([1.0, 1.19]),
    first=st.sampled_from([0, 1, 130]),
)
def test_rope_is_its_twin_also_where_only_a_part_of_a_head_turns(
    isa: str, seed: int, count: int, heads: int, pairs: int, rest: int, style: Any, scale: float, first: int
) -> None:
    inv_freq = tuple(float(f) for f in np.float32(10000.0) ** (-np.arange(pairs, dtype=np.float32) / pairs))
    head_dim = 2 * pairs + rest
    op = ops.Rope("x", heads, head_dim, inv_freq, style, scale)
    case = around([op], {"x": normal(seed, count, heads * head_dim)}, {}, out="x")
    found, wanted = outputs(case, isa, first)
    assert difference(found, wanted) <= TOLERANCE
    if rest:
        still = found[:, : heads * head_dim].reshape(count, heads, head_dim)[..., 2 * pairs :]
        given_rows = normal(seed, count, heads * head_dim).reshape(count, heads, head_dim)[..., 2 * pairs :]
        np.testing.assert_array_equal(still, given_rows)


def test_rope_keeps_its_phase_at_long_positions(isa: str) -> None:
    kv = KVConfig(num_blocks=70, block_size=16384, dtype="f32")
    inv_freq = tuple(float(np.float32(10000.0 ** (-i / 32))) for i in range(32))
    case = around([ops.Rope("x", 1, 64, inv_freq, "halves")], {"x": normal(0, 40, 64)}, {}, out="x")
    batch = step([(range(40), 1_000_003, [1] * 62)])
    found = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=1).step(batch).logits
    assert found is not None
    angle = (1_000_003 + np.arange(40))[:, None] * np.array(inv_freq)
    first, second = normal(0, 40, 64)[:, :32].astype(float), normal(0, 40, 64)[:, 32:].astype(float)
    wanted = np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)], axis=1
    )
    assert difference(found[:, :64], wanted.astype(np.float32)) <= 1e-6


@many
@given(seed=seeds, count=tokens, width=widths, factor=st.floats(-4, 4, width=32), cap=st.floats(0.5, 50, width=32))
def test_add_scale_and_softcap_are_their_twins(
    isa: str, seed: int, count: int, width: int, factor: float, cap: float
) -> None:
    tables = {"x": normal(seed, count, width), "y": normal(seed + 1, count, width)}
    assert_twins(around([ops.Add("x", "y")], tables, {}, out="y"), isa)
    assert_twins(around([ops.Scale("y", factor)], tables, {}, out="y"), isa)
    large = {"y": tables["y"] * np.float32(30)}
    assert_twins(around([ops.Softcap("y", cap)], large, {}, out="y"), isa)


@many
@given(seed=seeds, count=tokens, blocks=st.integers(1, 5), offset=st.integers(0, 3), first=st.integers(0, 40))
@pytest.mark.parametrize("kind", TYPES)
def test_embeddings_are_their_twins_exactly(
    isa: str, kind: str, seed: int, count: int, blocks: int, offset: int, first: int
) -> None:
    width = 32 * blocks
    weights = {
        "positions": raw("positions", normal(seed, first + count + offset, width), kind),
        "words": raw("words", normal(seed + 1, count, width), kind),
    }
    body: Sequence[ops.Op] = [ops.Embed("x", "words"), ops.EmbedPositions("x", "positions", offset)]
    case = around(body, {"x": normal(seed, count, width)}, weights, out="x")
    found, wanted = outputs(case, isa, first)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", sorted(NATIVE_TYPES))
@pytest.mark.parametrize("shape", [(1, 1), (31, 2), (33, 3), (150, 1)])
def test_a_packed_matrix_times_the_identity_is_the_decoded_matrix_exactly(
    isa: str, kind: str, shape: tuple[int, int]
) -> None:
    """Any bytes: every nibble, signed byte and scale comes back from where it was packed to."""
    n, k = shape[0], shape[1] * max(32, BLOCK_SIZES[kind][0])
    weight = any_bytes(kind, n, k)
    ones = np.eye(k, dtype=np.float32)
    case = around([ops.Linear("x", "y", "w")], {"x": ones}, {"w": weight}, widths={"y": n}, out="y")
    found, wanted = outputs(case, isa)
    np.testing.assert_array_equal(found, wanted)
    assert difference(*outputs(case, isa, compute="int8")) <= TOLERANCE


# Where float16 numbers stand in a block; elsewhere than at its start, or not alone.
SCALES_AT: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **dict.fromkeys(("IQ1_M", "MXFP4", "NVFP4"), ()),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def any_bytes(kind: str, n: int, k: int, seed: int = 0) -> RawTensor:
    """Random bytes under scales that are small numbers, subnormal halves among them."""
    block, size = BLOCK_SIZES[kind]
    random = np.random.default_rng(seed)
    if block == 1:
        return raw("w", random.standard_normal((n, k), np.float32), kind)
    blocks = random.integers(0, 256, (n * k // block, size), np.uint8)
    for at in SCALES_AT.get(kind, (0,)):
        scale = random.standard_normal(len(blocks)) * 10.0 ** random.integers(-7, 1, len(blocks))
        blocks[:, at : at + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == "Q4_Z":
        blocks[:, 2:4] = random.integers(0, 16, len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == "IQ1_M":
        blocks[:, 55] &= 0xBF  # the top bit of its scale's exponent: neither infinite nor huge
    if kind == "MXFP4":
        blocks[:, 0] = random.integers(90, 140, len(blocks))  # powers of two that float32 holds with any code
    return RawTensor("w", kind, (n, k), blocks.reshape(-1))
