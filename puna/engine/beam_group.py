"""A request that is answered by beam search: its search, the streams of its beams, and what its client is told.

Nothing is told before the search is done but how far it is; then all answers come at once. Knows streams and what a
step brought for them. Which beam goes on is decided in beams.py; sequences are moved about in beam_keeper.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import msgspec

from puna.engine.beams import Answer, BeamRules, BeamSearch, Candidates
from puna.engine.ends import NOT_NUMBERS
from puna.engine.live import Sample, Stream
from puna.engine.params import EngineRequest, PositionLogprobs, SampleUpdate, TokenLogprob
from puna.engine.sampling import Recipe
from puna.kernels.batch import NO_TOKEN, StepOutput


def search_recipe(recipe: Recipe, rules: BeamRules, vocab_size: int) -> Recipe:
    """The recipe of every beam: no noise, and as many of the likeliest tokens as the search looks at."""
    wanted = max(rules.candidates, recipe.params.logprobs or 0)
    params = msgspec.structs.replace(recipe.params, temperature=0.0)
    return dataclasses.replace(recipe, params=params, num_logprobs=min(wanted, vocab_size), plain=True)


@dataclass(slots=True, eq=False)
class BeamGroup:
    """`streams[i]` is that of `search.beams[i]`, `first` the one that the prompt was computed in. `wanted`: answers
    that the client still wants. `failed`: why there will be none. `drawn_tokens`: of all beams so far."""

    request: EngineRequest
    recipe: Recipe
    search: BeamSearch
    streams: list[Stream]
    wanted: set[int]
    first: Stream
    cached_tokens: int | None = None  # of the prompt, when it was computed first
    candidates: dict[int, Candidates] = field(default_factory=dict)  # by sequence id
    drawn_tokens: int = 0
    failed: str | None = None

    @property
    def is_over(self) -> bool:
        return self.search.done or self.failed is not None or not self.wanted

    def note(self, stream: Stream, output: StepOutput, s: int) -> None:
        """Takes what row s brought for one of the beams."""
        if output.tokens[s] == NO_TOKEN:
            self.failed = NOT_NUMBERS
        count = self.recipe.num_logprobs
        ids, logprobs = output.top_ids[s, :count].tolist(), output.top_logprobs[s, :count].tolist()
        self.candidates[stream.sequence.sequence_id] = Candidates(ids, logprobs)
        if self.cached_tokens is None:
            self.cached_tokens = stream.sequence.cached_len
        for sample in stream.samples:
            sample.started = True

    def updates(self) -> list[SampleUpdate]:
        """What there is to tell now: answers, all at once; or how far the search is."""
        request_id = self.request.request_id
        if self.failed is not None:
            return [
                SampleUpdate(request_id=request_id, index=i, token_ids=[], finish_reason="error", error=self.failed)
                for i in sorted(self.wanted)
            ]
        if not self.search.done:
            length = self.search.beams[0].length
            return [SampleUpdate(request_id=request_id, index=min(self.wanted), token_ids=[], searched_tokens=length)]
        answers = self.search.answers[: self.request.params.n]
        updates = [self._update(index, answers[index]) for index in sorted(self.wanted)]
        scores, tokens = self.first.scores, sum(answer.beam.length for answer in answers)
        updates[0] = msgspec.structs.replace(
            updates[0],
            prompt_logprobs=None if scores is None else scores.entries(),
            cached_tokens=self.cached_tokens,
            queue_s=self.first.queue_s,
            discarded_tokens=max(0, self.drawn_tokens - tokens),
        )
        return updates

    def _update(self, index: int, answer: Answer) -> SampleUpdate:
        last, logprobs = answer.beam.token, self.request.params.logprobs
        is_stop_id = answer.by_end_id and last not in self.recipe.eos_ids
        return SampleUpdate(
            request_id=self.request.request_id,
            index=index,
            token_ids=[beam.token for beam in answer.beam.chain()],
            logprobs=None if logprobs is None else _logprobs(answer, logprobs),
            finish_reason="stop" if answer.by_end_id else "length",
            stop_token_id=last if is_stop_id else None,
            score=answer.score,
        )


def open_search(request: EngineRequest, recipe: Recipe, stream: Stream, max_tokens: int, vocab_size: int) -> BeamGroup:
    """The search that begins with `stream`, which has the seats of all its beams to come."""
    p = request.params
    rules = BeamRules(
        width=p.seats,
        max_tokens=max_tokens,
        end_ids=recipe.eos_ids | recipe.stop_ids,
        min_tokens=p.min_tokens,
        length_penalty=p.length_penalty,
        early_stopping=p.early_stopping,
    )
    recipe = search_recipe(recipe, rules, vocab_size)
    stream.samples = [Sample(request.request_id, 0, recipe)]
    stream.beams = BeamGroup(request, recipe, BeamSearch(rules), [stream], set(range(p.n)), stream)
    return stream.beams


def _logprobs(answer: Answer, count: int) -> list[PositionLogprobs]:
    entries = []
    for beam in answer.beam.chain():
        among = beam.among
        top = () if among is None else zip(among.token_ids[:count], among.logprobs[:count], strict=True)
        best = [TokenLogprob(token, logprob, rank) for rank, (token, logprob) in enumerate(top, 1)]
        entries.append(PositionLogprobs(TokenLogprob(beam.token, beam.logprob, beam.rank), best))
    return entries
