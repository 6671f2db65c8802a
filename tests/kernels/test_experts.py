"""Mixtures of experts: the native core is its NumPy twin, and no token's bits depend on who is routed beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from puna.errors import InputError
from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.kernels.reference.operators import route
from puna.kernels.tensor import MadeTensor, RawTensor
from tests.kernels.steps import F32, Case, around, difference, raw, step
from tests.kernels.test_operators import TYPES

KV = KVConfig(num_blocks=40, block_size=16, dtype="f32")
OP = ops.Experts("x", "r", "y", "gate", "up", "down", used=2, width=1, kind="silu", normalised=True)
COUNTS = (1, 2, 3, 5, 13, 16, 17, 33, 64, 65, 130, 257)
EVERYONE = 300  # tokens: more than two blocks of rows of one expert, on every path


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def skewed(seed: int, tokens: int, experts: int) -> F32:
    """Scores that send nearly every token to expert 1, most to 0, and nobody to the last."""
    scores = normal(seed, tokens, experts)
    scores[:, 1] += 6
    scores[:, 0] += 3
    scores[:, -1] -= 20
    return scores


def mixture(
    x: F32, scores: F32, *, out: int = 40, width: int = 75, kinds: tuple[str, str, str] = ("F32",) * 3, **given: Any
) -> Case:
    """Random experts that add to random rows. `kinds`: types of gate, up and down."""
    experts, columns = scores.shape[1], x.shape[1]
    shapes = ((experts, width, columns), (experts, width, columns), (experts, out, width))
    weights = {
        name: raw(name, normal(seed, *shape) / np.float32(shape[2] ** 0.5), kind)
        for seed, (name, shape, kind) in enumerate(zip(("gate", "up", "down"), shapes, kinds, strict=True))
    }
    op = replace(OP, **{"width": width, "accumulate": True, **given})
    return around([op], {"x": x, "r": scores, "y": normal(9, len(x), out)}, weights, out="y")


def run(case: Case, isa: str, out: int = 40, threads: int = 2, compute: str = "int8") -> F32:
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=threads, compute=compute)
    logits = native.step(step([(range(case.tokens), 0, range(1, 2 + case.tokens // 16))])).logits
    assert logits is not None
    return logits[:, :out]


def twin(case: Case, rounding: Any = "none", out: int = 40) -> F32:
    reference = ReferenceInterpreter(case.program, case.weights, KV, rounding=rounding)
    logits = reference.step(step([(range(case.tokens), 0, range(1, 2 + case.tokens // 16))])).logits
    assert logits is not None
    return logits[:, :out]


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize(("normalised", "scale", "accumulate"), [(True, 1.0, False), (False, 2.5, True)])
def test_experts_are_their_twin_whatever_becomes_of_shares(
    isa: str, kind: str, normalised: bool, scale: float, accumulate: bool
) -> None:
    case = mixture(
        normal(1, 37, 50),
        normal(2, 37, 7),
        kind=kind,
        normalised=normalised,
        scale=scale,
        accumulate=accumulate,
        used=3,
    )
    assert difference(run(case, isa, compute="float32"), twin(case)) <= 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 33, 31, 5, 5), (70, 64, 96, 16, 8), (50, 130, 20, 9, 1)])
def test_experts_are_their_twin_whatever_their_shape(isa: str, shape: tuple[int, int, int, int, int]) -> None:
    tokens, columns, width, experts, used = shape
    case = mixture(normal(3, tokens, columns), normal(4, tokens, experts), width=width, used=used)
    assert difference(run(case, isa, compute="float32"), twin(case)) <= 1e-5


@pytest.mark.parametrize(
    "kinds",
    [
        *((kind,) * 3 for kind in TYPES),
        ("Q4_0", "F32", "Q8_0"),
        ("F32", "Q8_0", "F16"),
        ("BF16", "F32", "Q4_1"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("routing", [normal, skewed])
def test_experts_of_any_types_are_their_twin_with_the_same_rounding(
    isa: str, kinds: tuple[str, str, str], routing: Any
) -> None:
    case = mixture(normal(5, 70, 64), routing(6, 70, 6), width=96, kinds=kinds)
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=1)
    # What is rounded between the matrices may fall to the other side of a step where sums run in another order.
    assert difference(run(case, isa), twin(case, native.rounding)) <= 2e-3
    assert difference(run(case, isa, compute="float32"), twin(case)) <= 1e-5


def test_types_without_a_layout_are_decoded_for_experts_too(isa: str) -> None:
    kinds = ("Q5_0", "Q5_0", "Q5_1")
    blocks = np.random.default_rng(8).integers(0, 255, (3 * 64 * 2, 24), np.uint8)
    case = mixture(normal(5, 9, 64), normal(6, 9, 3), width=64, out=64)
    for name, kind, size in zip(("gate", "up", "down"), kinds, (22, 22, 24), strict=True):
        data = blocks[:, :size].copy()
        data[:, : size - 20] = np.array([0.01] * ((size - 20) // 2), np.float16).view(np.uint8)
        case.weights[name] = RawTensor(name, kind, (3, 64, 64), data.reshape(-1))
    assert difference(run(case, isa, 64, compute="float32"), twin(case, out=64)) <= 1e-5


def shares_of(scores: F32, isa: str, used: int, *, normalised: bool = False) -> F32:
    """[tokens, experts], 0 where a token does not go: expert e answers 1 in place e."""
    tokens, experts = scores.shape
    weights = {
        "gate": raw("gate", np.ones((experts, 1, 1))),
        "up": raw("up", np.ones((experts, 1, 1))),
        "down": raw("down", np.eye(experts)[:, :, None]),
    }
    op = replace(OP, used=used, kind="relu", normalised=normalised)
    tables = {"x": np.ones((tokens, 1), np.float32), "r": scores}
    return run(around([op], tables, weights, widths={"y": experts}, out="y"), isa, experts)


@pytest.mark.parametrize("normalised", [True, False])
def test_shares_have_the_same_bits_on_every_path_and_are_those_of_the_twin(normalised: bool) -> None:
    scores = normal(7, 60, 33) * 5
    found = [shares_of(scores, isa, 4, normalised=normalised) for isa in paths()]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    chosen, shares = route(scores, 4, normalised, 1.0)
    wanted = np.zeros_like(scores)
    np.put_along_axis(wanted, chosen, shares, axis=1)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)
    assert ((found[0] > 0).sum(axis=1) == 4).all()


def test_of_equal_experts_the_lower_number_is_taken(isa: str) -> None:
    scores = np.array([[0, 1, 1, 1, 0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 1], [-1e30, -1e30, 5, -1e30, -1e30]], np.float32)
    found = shares_of(scores, isa, 2) > 0
    np.testing.assert_array_equal(found[:3].nonzero()[1].reshape(3, 2), [[1, 2], [0, 1], [0, 4]])
    np.testing.assert_array_equal(shares_of(scores, isa, 2)[3], [0, 0, 1, 0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_spoil_their_own_token_only(isa: str, bad: float) -> None:
    x, scores = normal(10, 20, 32), skewed(11, 20, 5)
    wanted = run(mixture(x, scores, kinds=("Q8_0", "Q8_0", "F32")), isa)
    scores[3, 2] = bad
    found = run(mixture(x, scores, kinds=("Q8_0", "Q8_0", "F32")), isa)
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(wanted, 3, axis=0))


@pytest.mark.parametrize("kinds", [("F32",) * 3, ("Q4_1", "Q8_0", "Q4_0"), ("F16", "BF16", "F32")], ids="-".join)
@pytest.mark.parametrize("routing", [normal, skewed])
def test_a_token_has_the_same_bits_among_any_number_of_tokens(
    isa: str, kinds: tuple[str, str, str], routing: Any
) -> None:
    most, counts = (EVERYONE, COUNTS) if isa != "portable" else (80, (1, 2, 17, 65))
    x, scores = normal(12, most, 64), routing(13, most, 6)

    def some(index: Any) -> F32:
        case = mixture(x[index], scores[index], width=96, kinds=kinds, accumulate=False)
        return run(case, isa, threads=1 + len(index) % 3)

    wanted = some(range(most))
    for count in counts:
        np.testing.assert_array_equal(some(range(count)), wanted[:count])
    mixed = np.random.default_rng(14).permutation(most)
    np.testing.assert_array_equal(some(mixed), wanted[mixed])


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(paths()), reason="needs both paths")
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_experts_give_the_same_bits_on_avx512_and_avx2(compute: str) -> None:
    case = mixture(normal(15, 70, 64), skewed(16, 70, 6), width=96, kinds=("Q4_1", "Q8_0", "BF16"))
    np.testing.assert_array_equal(run(case, "avx512", compute=compute), run(case, "avx2", compute=compute))


def test_more_tokens_than_scratch_has_room_for_pass_in_blocks_with_the_same_bits() -> None:
    """A row of 48,000 values between the matrices takes half a megabyte."""
    x, scores = normal(17, 280, 32), normal(18, 280, 2)
    op = {"width": 48_000, "used": 1, "kinds": ("Q8_0",) * 3, "out": 8}
    case = mixture(x, scores, **op)
    native = NativeInterpreter(case.program, case.weights, KV, threads=2)
    whole = native.step(step([(range(280), 0, range(1, 19))])).logits
    assert whole is not None
    assert 32 << 20 < native.experts_scratch_bytes < 66 << 20
    np.testing.assert_array_equal(run(mixture(x[:20], scores[:20], **op), "auto", 8), whole[:20, :8])


def test_only_experts_that_are_wanted_are_read(isa: str) -> None:
    scores = np.full((4, 8), -5, np.float32)
    scores[:, 3], scores[:2, 5], scores[2:, 6] = 4, 2, 2
    case = mixture(normal(19, 4, 64), scores, width=96, out=64)
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=1)
    native.profile(True)
    for tokens, wanted in ((range(4), 3), (range(2), 2)):
        native.profile(True)
        native.step(step([(tokens, 0, [1])]))
        times = {time.name: time for time in native.profile_times()}
        assert times["experts 64x96"].bytes == wanted * 3 * 64 * 96 * 4
        assert times["experts 64x96"].operations == len(tokens) * 2 * 2 * 3 * 64 * 96


def test_a_stack_that_has_to_be_made_is_made_matrix_by_matrix(isa: str) -> None:
    case = mixture(normal(20, 5, 32), normal(21, 5, 4), kinds=("Q8_0", "F32", "F32"))
    wanted = run(case, isa)

    def make() -> NoReturn:
        raise AssertionError("the whole stack was asked for")

    for name in ("gate", "up", "down"):
        stack = case.weights[name]
        case.weights[name] = MadeTensor(name, stack.type, stack.shape, make, tuple(stack.matrices())).renamed("stack")
    np.testing.assert_array_equal(run(case, isa), wanted)


def test_rows_are_scaled_by_the_sigmoid_of_their_gate(isa: str) -> None:
    gates = np.array([[0], [3], [-3], [200], [-200], [np.inf], [-np.inf]], np.float32)
    case = around([ops.ScaleRows("y", "g")], {"y": normal(22, 7, 40), "g": gates}, {}, out="y")
    with np.errstate(over="ignore"):
        assert difference(run(case, isa), twin(case)) <= 1e-6


@pytest.mark.parametrize("experts", [2, 4])
def test_a_stack_of_another_number_of_experts_is_refused(experts: int) -> None:
    case = mixture(normal(23, 5, 32), normal(24, 5, 3))
    case.weights["up"] = raw("up", normal(25, experts, 75, 32))
    with pytest.raises(InputError, match=r"'up' has shape .*; expected matrices of 3 experts"):
        NativeInterpreter(case.program, case.weights, KV)
