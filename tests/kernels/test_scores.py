"""Log-probabilities, ranks and best tokens, of drawn tokens and of given ones."""

from __future__ import annotations

import numpy as np

from tests.kernels.drawing import sample, softmax
from tests.kernels.steps import rows


def test_logprobs_ranks_and_best_tokens_are_those_of_the_raw_logits(isa: str) -> None:
    """Whatever filters, penalties and temperature did to the draw."""
    random = np.random.default_rng(8)
    logits = (random.standard_normal((6, 333)) * 4).astype(np.float32)
    logits[3] = np.round(logits[3])  # many ties
    samples = rows(
        [0, 1, 2, 3, 3, 4, 5],
        num_logprobs=[5, 0, -1, 9, 9, 400, 1],
        temperature=2.0,
        top_k=50,
        seed=range(7),
        banned=[[int(logits[0].argmax())], [], [], [], [], [], []],
        target=[-1, -1, -1, -1, 17, -1, 3],
    )
    out = sample(logits, samples, isa)
    assert out.top_ids.shape == (7, 400)
    for s, row in enumerate(samples.index):
        wanted = logits[row].astype(np.float64) - np.log(np.exp(logits[row].astype(np.float64)).sum())
        k = int(samples.num_logprobs[s])
        if k < 0:
            assert (out.logprob[s], out.rank[s]) == (0, 0)
            assert (out.top_ids[s] == -1).all()
            continue
        np.testing.assert_allclose(out.logprob[s], wanted[out.tokens[s]], atol=1e-5)
        assert out.rank[s] == 1 + (logits[row] > logits[row][out.tokens[s]]).sum()
        best = sorted(range(333), key=lambda i, r=row: (-logits[r][i], i))[:k]  # type: ignore[misc]
        assert out.top_ids[s, : len(best)].tolist() == best
        np.testing.assert_allclose(out.top_logprobs[s, : len(best)], wanted[best], atol=1e-5)
        assert (out.top_ids[s, len(best) :] == -1).all()
        assert np.isneginf(out.top_logprobs[s, len(best) :]).all()
    assert out.tokens[0] != logits[0].argmax()


def test_a_row_with_a_target_scores_it_and_draws_nothing(isa: str) -> None:
    logits = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    targets = [49, 0, 7, 8, 9]
    out = sample(logits, rows([0, 0, 1, 2, 2], target=targets, num_logprobs=0, temperature=1.0), isa)
    assert out.tokens.tolist() == targets
    wanted = [np.log(softmax(logits[row]))[token] for row, token in zip([0, 0, 1, 2, 2], targets, strict=True)]
    np.testing.assert_allclose(out.logprob, wanted, atol=1e-6)


def test_rows_beyond_one_pass_of_the_head_are_scored_alike(isa: str) -> None:
    """Logits are held for some dozens of rows at one time; a step may want hundreds."""
    logits = np.random.default_rng(1).standard_normal((90, 40)).astype(np.float32)
    index = np.random.default_rng(2).permutation(90)
    out = sample(logits, rows(index, num_logprobs=2), isa)
    assert out.tokens.tolist() == logits[index].argmax(axis=1).tolist()
    assert out.logits is not None
    np.testing.assert_array_equal(out.logits[:, :40], logits[index])
