"""A fuzzer of attention: random tables, lengths, chunks, windows, soft caps, heads, cache types and paths at a time.

Each example computes the same sequences twice on every path, cut and grouped differently and in other blocks, on one
thread and on several; some begin as others do, and the second time they share blocks with them. All of it has to be the
same bits on the paths of vector code, and what the NumPy twin says on every path. PUNA_FUZZ_EXAMPLES in the environment
says how many examples to try; a long run wants thousands.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puna.kernels.batch import Interpreter, KVConfig, Rounding, attends_on_tiles
from puna.kernels.cpu import NativeInterpreter, paths
from puna.kernels.reference.interpreter import ReferenceInterpreter
from tests.kernels.sanitized import examples as fewer
from tests.kernels.steps import F32, Case, difference, step
from tests.kernels.test_attention import ROUNDED_BESIDE_TWIN, TOKENS, Shape, case_of, tables_of

EXAMPLES = int(os.environ.get("PUNA_FUZZ_EXAMPLES", fewer(10)))


@dataclass(frozen=True)
class Example:
    shape: Shape
    block_size: int
    dtype: str
    lengths: tuple[int, ...]
    parents: tuple[
        tuple[int, float], ...
    ]  # of each sequence: one before it or itself, and how much of that it begins with
    seed: int


@st.composite
def examples(draw: st.DrawFn) -> Example:
    head_dim = draw(st.sampled_from([16, 32, 48, 64, 80, 96, 128, 256]))
    group = draw(st.integers(1, max(1, min(17, 768 // head_dim))))
    kv_heads = draw(st.integers(1, max(1, min(3, 768 // (head_dim * group)))))
    window = draw(st.one_of(st.just(0), st.integers(1, 300)))
    softcap = draw(st.sampled_from([0.0, 0.0, 0.5, 5.0, 50.0]))
    # Around the borders of tiles (16) and ranges (128), and anywhere.
    length = st.one_of(st.sampled_from([1, 15, 16, 17, 127, 128, 129, 255, 257]), st.integers(1, 400))
    lengths = tuple(draw(st.lists(length, min_size=1, max_size=5)))
    return Example(
        Shape(kv_heads, group, head_dim, window, softcap),
        draw(st.sampled_from([16, 32, 48, 128])),
        draw(st.sampled_from(["f32", "f16", "bf16", "int8"])),
        lengths,
        tuple((draw(st.integers(0, r)), draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))) for r in range(len(lengths))),
        draw(st.integers(0, 2**32 - 1)),
    )


def sequences_of(example: Example) -> tuple[list[list[int]], list[int]]:
    """Tokens, and how many of them at the beginning are its parent's."""
    random = np.random.default_rng(example.seed)
    ids: list[list[int]] = []
    common = []
    for length, (parent, share) in zip(example.lengths, example.parents, strict=True):
        beginning = ids[parent][: int(share * (length - 1))] if parent < len(ids) else []
        ids.append(beginning + random.integers(0, TOKENS, length - len(beginning)).tolist())
        common.append(len(beginning))
    return ids, common


def computed(
    interpreter: Interpreter, example: Example, ids: list[list[int]], common: list[int], width: int, seed: int
) -> list[F32]:
    """What each token of each sequence attends to, computed in random pieces, order and blocks. Whole blocks of what a
    sequence has in `common` with its parent are the parent's, and computed once."""
    random = np.random.default_rng(seed)
    free = (1 + random.permutation(interpreter.kv.num_blocks - 1)).tolist()
    size = example.block_size
    blocks: list[list[int]] = []
    for tokens, shared, (parent, _) in zip(ids, common, example.parents, strict=True):
        taken = blocks[parent][: shared // size] if shared else []
        blocks.append(taken + [free.pop() for _ in range(-(-len(tokens) // size) - len(taken))])
    done = [shared // size * size for shared in common]

    def is_ready(r: int) -> bool:
        """Whether what it begins with has been computed."""
        parent = example.parents[r][0]
        return not common[r] or (done[parent] >= common[r] // size * size and is_ready(parent))

    parts: list[list[F32]] = [[] for _ in ids]
    sizes = [[1], [1, 7, 40], [16, 48, 130], [512]][int(random.integers(4))]
    while any(d < len(tokens) for d, tokens in zip(done, ids, strict=True)):
        chosen = [
            r for r in random.permutation(len(ids)) if done[r] < len(ids[r]) and is_ready(r) and random.random() < 0.8
        ]
        ends = [min(len(ids[r]), done[r] + int(random.choice(sizes))) for r in chosen]
        if sizes == [1]:  # a long beginning at once: tokens one by one are wanted at the end
            ends = [max(end, len(ids[r]) - 4) for r, end in zip(chosen, ends, strict=True)]
        batch = step([(ids[r][done[r] : end], done[r], blocks[r]) for r, end in zip(chosen, ends, strict=True)])
        logits = interpreter.step(batch).logits
        assert logits is not None
        begin = 0
        for r, end in zip(chosen, ends, strict=True):
            parts[r].append(logits[begin : begin + end - done[r], :width])
            begin += end - done[r]
            done[r] = end
    found: list[F32] = []
    for part, shared, (parent, _) in zip(parts, common, example.parents, strict=True):
        found.append(np.concatenate([found[parent][: shared // size * size], *part] if shared else part))
    return found


@settings(max_examples=EXAMPLES, deadline=None, derandomize="PUNA_FUZZ_EXAMPLES" not in os.environ)
@given(examples())
@example(Example(Shape(1, 3, 64), 16, "bf16", (400, 129, 17, 300), ((0, 0.0), (1, 0.0), (2, 0.0), (0, 0.9)), 1))
@example(Example(Shape(2, 5, 32, window=100), 48, "bf16", (257, 400), ((0, 0.0), (0, 1.0)), 2))
@example(Example(Shape(1, 17, 96, softcap=5.0), 16, "bf16", (150, 33), ((0, 0.0), (1, 0.0)), 3))
def test_however_it_is_cut_attention_gives_the_same_bits_and_what_the_twin_says(example: Example) -> None:
    shape = example.shape
    width = shape.kv_heads * shape.group * shape.head_dim
    case: Case = case_of(shape, tables_of(shape, example.seed % 1000))
    ids, common = sequences_of(example)
    nothing = [0] * len(ids)
    needed = sum(-(-length // example.block_size) for length in example.lengths)
    kv = KVConfig(needed + 3, example.block_size, example.dtype)
    tiles = attends_on_tiles(shape.head_dim, example.dtype)

    def twin(rounding: Rounding) -> list[F32]:
        interpreter = ReferenceInterpreter(case.program, case.weights, kv, rounding=rounding)
        return computed(interpreter, example, ids, nothing, width, 0)

    exact, rounded = twin("none"), twin("bf16") if tiles and "amx" in paths() else []
    bits: list[F32] | None = None
    for isa in paths():
        on_tiles = tiles and isa == "amx"
        wanted, tolerance = (rounded, ROUNDED_BESIDE_TWIN) if on_tiles else (exact, 2e-5)
        once, again = (
            computed(
                NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=threads),
                example,
                ids,
                shared,
                width,
                seed,
            )
            for threads, seed, shared in ((1, example.seed, nothing), (3, example.seed + 1, common))
        )
        for first, second, right in zip(once, again, wanted, strict=True):
            np.testing.assert_array_equal(first, second, err_msg=isa)
            assert difference(first, right) <= tolerance, isa
        if isa != "portable" and not on_tiles:
            bits = bits or once
            for first, second in zip(bits, once, strict=True):
                np.testing.assert_array_equal(first, second, err_msg=f"{isa} beside another")
