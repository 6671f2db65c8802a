"""The last linear of a head hands the sampler what it knows of its rows: tokens are those of the finished logits.

Vocabularies end within tiles and panels; steps have one row, a few, and more than are held at a time.
"""

from __future__ import annotations

import numpy as np
import pytest

from puna.kernels.batch import KVConfig, StepBatch
from puna.kernels.cpu import NativeInterpreter, paths
from puna.kernels.cpu.sampler import NativeSampler
from puna.kernels.program import Embed, Linear, Op, Program, Softcap
from puna.kernels.tensor import RawTensor
from tests.kernels.steps import F32, NO_MOVES, raw, rows

WIDTH = 64


def head(weight: F32, type: str, isa: str, *then: Op) -> NativeInterpreter:
    """Token t's hidden row is row t of a fixed table of 64."""
    vocab = len(weight)
    program = Program(
        buffers={"hidden": WIDTH, "logits": vocab},
        body=(Embed("hidden", "table"),),
        head=(Linear("hidden", "logits", "weight"), *then),
        kv=(),
        vocab_size=vocab,
    )
    table = np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float32)
    weights: dict[str, RawTensor] = {"table": raw("table", table), "weight": raw("weight", weight, type)}
    return NativeInterpreter(program, weights, KVConfig(num_blocks=2), threads=2, isa=isa)


def batch(count: int, vocab: int) -> StepBatch:
    """One token a sequence; every third row is greedy, the others are drawn with and without top-p and penalties."""
    turn = np.arange(count) % 3
    samples = rows(
        range(count),
        temperature=np.where(turn == 0, 0, 1),
        top_p=np.where(turn == 1, 0.95, 1),
        repetition=np.where(np.arange(count) % 2 == 0, 1, 1.5),
        seed=np.arange(count),
        position=5,
        history=np.arange(count * 8).reshape(count, 8) % vocab,
        history_row=range(count),
        total_len=8,
        prompt_len=4,
    )
    return StepBatch(
        token_ids=(np.arange(count) % min(64, vocab)).astype(np.int32),
        positions=np.zeros(count, np.int32),
        query_start=np.arange(count + 1, dtype=np.int32),
        tables=np.ones((count, 1), np.int32),
        moves=NO_MOVES,
        samples=samples,
        want_logits=True,
    )


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("type", ["F32", "Q8_0"])
@pytest.mark.parametrize("vocab", [31, 255, 256, 257, 1000, 5001])
def test_tokens_are_those_of_the_finished_logits(isa: str, type: str, vocab: int) -> None:
    weight = np.random.default_rng(vocab).standard_normal((vocab, WIDTH)).astype(np.float32) / 4
    for then in ((), (Softcap("logits", 1.5),)):
        core = head(weight, type, isa, *then)
        for count in (1, 5, 33, 70):
            step = batch(count, vocab)
            out = core.step(step)
            assert out.logits is not None
            wanted = NativeSampler(isa, threads=1).sample(out.logits.copy(), step.samples)
            assert out.tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("place", [0, 299, 700])
def test_a_logit_that_is_not_finite_ends_its_row_wherever_the_head_writes_it(isa: str, place: int) -> None:
    weight = np.zeros((701, WIDTH), np.float32)
    weight[:, 0] = np.linspace(-1, 1, 701)
    weight[place, 0] = np.inf
    assert head(weight, "F32", isa).step(batch(35, 701)).tokens.tolist() == [-1] * 35


def test_the_time_of_sampling_is_told_apart_from_the_rest_of_the_step() -> None:
    interpreter = head(np.random.default_rng(2).standard_normal((300, WIDTH)).astype(np.float32), "F32", "auto")
    interpreter.profile(True)
    sampled_s = 0.0
    for step in (many := batch(40, 300), many, batch(3, 300)):  # more rows than are held at a time; again; fewer
        interpreter.step(step)
        assert interpreter.sample_s > 0
        sampled_s += interpreter.sample_s
    (kept,) = [stage for stage in interpreter.profile_times() if stage.name == "sample"]
    assert round(1e9 * sampled_s) == kept.nanoseconds
    interpreter.step(batch(0, 300))
    assert interpreter.sample_s == 0
