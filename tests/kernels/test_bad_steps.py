"""A step whose indices leave their range is refused before anything is computed, and the next one runs as ever.

Every array of a step is spoilt in turn. The block moves of a bad step must not have happened, nor any operator run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna.errors import InputError
from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT, KVConfig, StepBatch, StepOutput
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Embed, EmbedPositions, Linear, Program
from puna.models.load import LoadedModel
from tests.kernels.steps import raw, rows, step

KV = KVConfig(num_blocks=12, block_size=16, tier_blocks=3)
VOCAB = 300
COUNT = 3
BIG = 2**31 - 1


def good(**samples: Any) -> StepBatch:
    """Two sequences of 20 and 3 tokens; three rows, one of each kind."""
    given = {
        "temperature": [0.0, 1.0, 1.0],
        "target": [-1, 17, -1],
        "num_logprobs": [2, 2, 2],
        "repetition": [1.3, 1.0, 1.2],
        "history": np.arange(12).reshape(2, 6),
        "history_row": [0, 1, 1],
        "prompt_len": [2, 0, 1],
        "total_len": [5, 6, 6],
        "allowed": [[5, 6, 7], [], []],
        "banned": [[6], [], [1, 2]],
        "bias": [{}, {9: 1.0}, {8: 1.0, 299: -2.0}],
    } | samples
    sequences = [(list(range(40, 60)), 0, [1, 2]), ([7, 8, 9], 14, [5, 6])]
    return step(sequences, rows([19, 19, 22], **given), moves=[(MOVE_OUT, 3, 1), (MOVE_COPY, 1, 4)])


def changed(values: Any, at: Any, value: int) -> Any:
    copy: np.ndarray[Any, Any] = values.copy()
    copy[at] = value
    return copy


STEPS: list[tuple[str, Any, int]] = [
    *[("token_ids", at, value) for at in (0, 22) for value in (-1, VOCAB, BIG, -BIG)],
    *[("positions", at, value) for at in (0, 7, 22) for value in (-1, 32, BIG, -BIG, 3)],
    *[("tables", at, value) for at in ((0, 0), (1, 1)) for value in (-1, 12, BIG)],
    *[("query_start", at, value) for at in (0, 1, 2) for value in (-1, 24, BIG)],
    *[("moves", (0, 0), value) for value in (-1, 3, BIG)],
    *[("moves", (0, 1), value) for value in (-1, 12, BIG)],
    *[("moves", (0, 2), value) for value in (-1, 3, 11, BIG)],
    *[("moves", (1, 1), value) for value in (-1, 12)],
    *[("moves", (1, 2), value) for value in (-1, 12)],
]
SAMPLES: list[tuple[str, int, int]] = [
    *[("index", at, value) for at in (0, 2) for value in (-1, 23, BIG)],
    *[("target", 1, value) for value in (VOCAB, BIG)],
    *[("history_row", at, value) for at in (0, 1, 2) for value in (-1, 2, BIG)],
    *[("total_len", at, value) for at in (0, 2) for value in (-1, 7, BIG)],
    *[("allowed_start", at, value) for at in (0, 1, 2, 3) for value in (-1, 4, BIG)],
    *[("banned_start", at, value) for at in (0, 1, 2, 3) for value in (-1, 4, BIG)],
    *[("bias_start", at, value) for at in (0, 2, 3) for value in (-1, 4, BIG)],
    *[("allowed_ids", at, value) for at in (0, 2) for value in (-1, VOCAB, BIG)],
    *[("banned_ids", at, value) for at in (0, 2) for value in (-1, VOCAB, BIG)],
    *[("bias_ids", at, value) for at in (0, 2) for value in (-1, VOCAB, BIG)],
]


class Watched:
    """An interpreter with something in its pool and in its tier, and a second one that never sees a bad step."""

    def __init__(self, model: LoadedModel) -> None:
        self.native = NativeInterpreter(model.program, model.weights, KV, threads=2)
        self.untouched = NativeInterpreter(model.program, model.weights, KV, threads=2)
        for interpreter in (self.native, self.untouched):
            prompt = step([(range(50, 98), 0, [1, 3, 4]), (range(70, 86), 0, [5])])
            interpreter.step(replace(prompt, moves=np.zeros((0, 3), np.int32)))
            interpreter.step(step([], moves=[(MOVE_OUT, 5, 1)]))

    def refuses(self, batch: StepBatch, match: str = "the step was refused") -> None:
        before = self.native.progress()
        with pytest.raises(InputError, match=match):
            self.native.step(batch)
        assert self.native.progress() == before, "an operator ran"
        self.works()

    def works(self) -> None:
        """The pool and the tier are as they were: what is read from them is what the other interpreter reads."""
        moves = [(MOVE_IN, 1, 8)]
        sequences = [([11], 48, [1, 3, 4, 10]), ([12], 16, [5, 10]), ([13], 16, [8, 10])]
        found, wanted = (i.step(step(sequences, moves=moves)) for i in (self.native, self.untouched))
        assert_same(found, wanted)


def assert_same(found: StepOutput, wanted: StepOutput) -> None:
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert found.logits is not None
    np.testing.assert_array_equal(found.logits, wanted.logits)


@pytest.fixture(scope="module")
def watched(tiny: LoadedModel) -> Watched:
    return Watched(tiny)


def test_the_step_that_is_spoilt_below_is_good(tiny: LoadedModel) -> None:
    out = NativeInterpreter(tiny.program, tiny.weights, KV, threads=2).step(good())
    assert out.tokens[0] in (5, 7)
    assert out.tokens[1] == 17


@pytest.mark.parametrize(("name", "at", "value"), STEPS)
def test_a_value_out_of_range_in_a_step_is_refused(watched: Watched, name: str, at: Any, value: int) -> None:
    batch = good()
    watched.refuses(replace(batch, **{name: changed(getattr(batch, name), at, value)}))


@pytest.mark.parametrize(("name", "at", "value"), SAMPLES)
def test_a_value_out_of_range_in_a_sample_is_refused(watched: Watched, name: str, at: int, value: int) -> None:
    batch = good()
    samples = replace(batch.samples, **{name: changed(getattr(batch.samples, name), at, value)})
    watched.refuses(replace(batch, samples=samples))


@pytest.mark.parametrize("value", [-1, VOCAB, BIG])
def test_a_token_of_the_history_out_of_range_is_refused_where_penalties_read_it(watched: Watched, value: int) -> None:
    watched.refuses(good(history=changed(np.arange(12).reshape(2, 6), (0, 4), value)))


def test_a_token_behind_the_known_ones_of_a_history_may_be_anything(tiny: LoadedModel) -> None:
    native = NativeInterpreter(tiny.program, tiny.weights, KV, threads=2)
    wanted = native.step(good())
    assert_same(native.step(good(history=changed(np.arange(12).reshape(2, 6), (0, 5), BIG))), wanted)


def test_penalties_over_a_history_without_rows_are_refused(tiny: LoadedModel) -> None:
    watched = Watched(tiny)
    batch = good()
    readable = np.zeros((4, 6), np.int32)[:0]
    watched.refuses(replace(batch, samples=replace(batch.samples, history=readable, history_row=np.zeros(3, np.int32))))


def test_positions_with_a_gap_are_refused(watched: Watched) -> None:
    batch = good()
    watched.refuses(replace(batch, positions=changed(batch.positions, slice(10, 20), 0) + 0), "consecutive")


def test_a_message_names_the_array_the_place_the_value_and_what_is_allowed(watched: Watched) -> None:
    batch = good()
    watched.refuses(
        replace(batch, token_ids=changed(batch.token_ids, 4, 300)), r"token_ids\[4\] is 300; allowed: 0 to 299"
    )
    watched.refuses(replace(batch, tables=changed(batch.tables, (0, 1), 12)), r"tables\[1\] is 12; allowed: 0 to 11")


@pytest.mark.parametrize("name", ["token_ids", "positions", "query_start", "tables"])
def test_arrays_of_differing_lengths_are_refused(watched: Watched, name: str) -> None:
    batch = good()
    shorter: Any = np.ascontiguousarray(getattr(batch, name)[:-1])
    watched.refuses(replace(batch, **{name: shorter}))


@pytest.mark.parametrize(
    "name",
    [name for name in good().samples.__dataclass_fields__ if name not in ("history", "index", "num_logprobs", "mask")],
)
def test_arrays_of_samples_of_differing_lengths_are_refused(watched: Watched, name: str) -> None:
    batch = good()
    shorter: Any = np.ascontiguousarray(getattr(batch.samples, name)[:-1])
    watched.refuses(replace(batch, samples=replace(batch.samples, **{name: shorter})))


@pytest.mark.parametrize("shape", [(2, 10), (4, 10), (3, 9), (3, 11)])
def test_a_mask_of_another_shape_than_rows_and_vocabulary_is_refused(watched: Watched, shape: tuple[int, int]) -> None:
    batch = good()
    watched.refuses(replace(batch, samples=replace(batch.samples, mask=np.zeros(shape, np.uint32))))


def with_learned_positions() -> NativeInterpreter:
    random = np.random.default_rng(0)
    weights = {name: raw(name, random.standard_normal((20, 32))) for name in ("words", "places", "head")}
    body = (Embed("hidden", "words"), EmbedPositions("hidden", "places", 2))
    program = Program({"hidden": 32, "logits": 20}, body, (Linear("hidden", "logits", "head"),), (), 20)
    return NativeInterpreter(program, weights, KV, threads=1)


def test_a_position_behind_the_last_learned_one_is_refused() -> None:
    native = with_learned_positions()
    native.step(step([([1], 17, [1, 2])]))
    with pytest.raises(InputError, match=r"positions\[1\] is 18; allowed: 0 to 17"):
        native.step(step([([1, 2], 17, [1, 2])]))
    native.step(step([([1], 17, [1, 2])]))


def test_a_position_behind_the_last_learned_one_is_refused_before_anything_is_computed() -> None:
    native = with_learned_positions()
    with pytest.raises(InputError):
        native.step(step([([1, 2], 17, [1, 2])]))
    assert native.progress() == 0


@pytest.mark.parametrize("sequences", [[], [([], 0, [1])], [([5], 0, [1]), ([], 3, [2]), ([6], 0, [3])]])
def test_steps_with_little_or_nothing_in_them_are_good(
    tiny: LoadedModel, sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]]
) -> None:
    watched = Watched(tiny)
    moved = [(ids, first, [6 + table[0]]) for ids, first, table in sequences]  # into blocks that nothing is in
    out = watched.native.step(step(moved))
    assert out.tokens.shape == (sum(len(ids) for ids, _, _ in sequences),)
    watched.works()
