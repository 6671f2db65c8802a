"""Collects a request's updates into its whole output, as vLLM's offline API shapes it.

Needs a tokenizer for text; knows nothing of where updates come from. The structs are plain and can be printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.engine.output import SampleText
from puna.engine.params import EngineRequest, FinishReason, PositionLogprobs, SampleUpdate
from puna.engine.selection import best, mean_logprob

if TYPE_CHECKING:
    from puna.engine.prompts import Prompt
    from puna.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Logprob:
    """Log-probability under the raw logits; rank 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One sample. `stop_reason`: the stop string or stop token id that ended it, None for an end-of-sequence token.
    `seed`: what it was drawn with (None where greedy); a request of its own with this seed draws the same.
    `score`: what best_of or beams chose it by. `logprobs[i]` maps token ids to their log-probabilities
    at token i: the drawn one first, then the most likely."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    seed: int | None = None
    error: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class RequestOutput:
    """One prompt and its samples. `prompt` is None where token ids were given. `prompt_token_ids` is what the model
    read: `truncated_tokens` fewer than were given, where `truncate_prompt_tokens` allowed that."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None
    truncated_tokens: int = 0


class Collector:
    """Takes one request's updates."""

    def __init__(self, request: EngineRequest, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.request = request
        self._prompt = prompt
        self._tokenizer = tokenizer
        skip = request.params.skip_special_tokens
        self._samples = [
            SampleText(tokenizer.detokenizer(request.prompt_token_ids, skip_special_tokens=skip), request.params)
            for _ in range(request.params.samples)
        ]
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None
        self._cached_tokens: int | None = None
        self._seeds: dict[int, int] = {}
        self._scores: dict[int, float] = {}

    @property
    def finished(self) -> bool:
        return all(sample.finished for sample in self._samples)

    def take(self, update: SampleUpdate) -> bool:
        """True: the sample is done, though the engine does not know; it has to be aborted there."""
        if update.prompt_logprobs is not None:
            self._prompt_logprobs = update.prompt_logprobs
        if update.cached_tokens is not None and self._cached_tokens is None:
            self._cached_tokens = update.cached_tokens
        if update.seed is not None:
            self._seeds[update.index] = update.seed
        if update.score is not None:
            self._scores[update.index] = update.score
        return self._samples[update.index].push(update).abort

    def output(self) -> RequestOutput:
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt.text,
            prompt_token_ids=self.request.prompt_token_ids,
            prompt_logprobs=None if self._prompt_logprobs is None else [self._named(p) for p in self._prompt_logprobs],
            outputs=[self._completion(place, index) for place, index in enumerate(self._returned())],
            finished=self.finished,
            num_cached_tokens=self._cached_tokens,
            truncated_tokens=self._prompt.truncated_tokens,
        )

    def _returned(self) -> list[int]:
        """All samples or, with best_of, the best of them, the best first."""
        params = self.request.params
        if not params.chooses:
            return list(range(len(self._samples)))
        self._scores = {i: mean_logprob(sample.logprobs) for i, sample in enumerate(self._samples)}
        return best(self._scores.values(), params.n)

    def _completion(self, place: int, index: int) -> CompletionOutput:
        sample, wanted = self._samples[index], self.request.params.logprobs is not None
        return CompletionOutput(
            index=place,
            text=sample.text,
            token_ids=sample.token_ids,
            cumulative_logprob=sample.cumulative_logprob,
            logprobs=[named for p in sample.logprobs if (named := self._named(p))] if wanted else None,
            finish_reason=sample.finish_reason,
            stop_reason=sample.stop_reason,
            seed=self._seeds.get(index),
            error=sample.error,
            score=self._scores.get(index),
        )

    def _named(self, position: PositionLogprobs | None) -> dict[int, Logprob] | None:
        if position is None:
            return None
        return {
            entry.token_id: Logprob(entry.logprob, entry.rank, self._tokenizer.token_text(entry.token_id))
            for entry in (position.token, *position.top)
        }
