"""What is told of a drawn token, and when it is a sample's last.

A sample ends by end-of-sequence ids, then stop ids, then length. Where all rows of a step decode, most have nothing to
tell but a number: `Decoding` says which those are. Knows samples and their sequences; ends and sends nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.engine.live import Sample, Stream, position_logprobs
from puna.engine.news import Roster
from puna.engine.params import FinishReason, SampleUpdate
from puna.engine.runner import PreparedStep
from puna.kernels.batch import GREEDY_BELOW, StepOutput
from puna.sched.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """The rows of a prepared step that may be repeated: whose they are, the ids that may end each, and those that want
    log-probabilities with every token."""

    prepared: PreparedStep
    roster: Roster
    last_ids: list[frozenset[int]]
    with_logprobs: set[int]

    @classmethod
    def of(cls, prepared: PreparedStep) -> Decoding | None:
        """None where a sample has its first token in this step."""
        samples = [sample for _, sample in prepared.drawn]
        if not all(sample.started for sample in samples):
            return None
        return cls(
            prepared,
            Roster(tuple((sample.request_id, sample.index) for sample in samples)),
            [sample.recipe.last_ids for sample in samples],
            {s for s, sample in enumerate(samples) if sample.recipe.params.logprobs is not None},
        )


def finish_rule(sample: Sample, sequence: Sequence) -> tuple[FinishReason | None, int | None]:
    """Whether the last token of `sequence` ends the sample: the reason, and the stop id that it was."""
    recipe, token = sample.recipe, sequence.tokens[-1]
    if sequence.output_len > recipe.params.min_tokens:
        if token in recipe.eos_ids:
            return "stop", None
        if token in recipe.stop_ids:
            return "stop", token
    return ("length", None) if sequence.total_len >= sequence.max_total_len else (None, None)


def token_update(stream: Stream, sample: Sample, token: int, output: StepOutput, s: int) -> SampleUpdate:
    """The news of a token that row s of `output` drew; with the first one comes what is told once."""
    reason, stop_id = finish_rule(sample, stream.sequence)
    k = sample.recipe.params.logprobs
    logprobs = None
    if k is not None:
        top_ids, top_logprobs = output.top_ids[s, :k].tolist(), output.top_logprobs[s, :k].tolist()
        logprobs = [position_logprobs(token, float(output.logprob[s]), int(output.rank[s]), top_ids, top_logprobs)]
    first = not sample.started
    sample.started = True
    return SampleUpdate(
        request_id=sample.request_id,
        index=sample.index,
        token_ids=[token],
        logprobs=logprobs,
        prompt_logprobs=stream.scores.entries() if first and stream.scores is not None else None,
        seed=sample.recipe.seed if first and sample.recipe.params.temperature >= GREEDY_BELOW else None,
        cached_tokens=stream.sequence.cached_len if first else None,
        finish_reason=reason,
        stop_token_id=stop_id,
    )


def end_update(
    sample: Sample, reason: FinishReason, *, stop_token_id: int | None = None, error: str | None = None
) -> SampleUpdate:
    """A sample's end, without a token."""
    return SampleUpdate(
        request_id=sample.request_id,
        index=sample.index,
        token_ids=[],
        finish_reason=reason,
        stop_token_id=stop_token_id,
        error=error,
    )
