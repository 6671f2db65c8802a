"""From a sample's token updates to its text, on the client's side: detokenizing and stop strings.

Knows a sample's parameters and a detokenizer; the engine knows neither. While a stop string could still be completed,
the characters that may belong to it are held back, so that nothing of it leaks. The string that is completed first
wins; of those completed by the same character, the first in the list. Tokens behind the completing one are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from puna.engine.params import FinishReason, PositionLogprobs, SampleUpdate, SamplingParams


class TokenStream(Protocol):
    """What `Tokenizer.detokenizer` returns."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True)
class TextDelta:
    """News of one sample. `abort`: a stop string ended it, and the engine is still drawing: abort the sample there.

    `stop_reason`: the stop string or stop token id that ended it; None for an end-of-sequence token.
    """

    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    abort: bool = False
    error: str | None = None


@dataclass
class SampleText:
    """One sample's text. `text` is what was given out so far; `token_ids` and `logprobs` are those that count."""

    detokenizer: TokenStream
    params: SamplingParams
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    _held: str = ""  # decoded, not given out: a beginning of some stop string

    def __post_init__(self) -> None:
        self._stops = self.params.stops

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum over the tokens that count; None unless log-probabilities were asked for."""
        return None if self.params.logprobs is None else sum(entry.token.logprob for entry in self.logprobs)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def resume(self, token_ids: Iterable[int]) -> None:
        """Takes in tokens whose text was given out before (by another engine, say)."""
        self.push(SampleUpdate(request_id="", index=0, token_ids=list(token_ids)))

    def push(self, update: SampleUpdate) -> TextDelta:
        """The text that this update completes. After the end, updates bring nothing."""
        if self.finished:
            return TextDelta("", [], finish_reason=self.finish_reason, stop_reason=self.stop_reason)
        kept: list[int] = []
        pieces: list[str] = []
        hidden_end = update.finish_reason == "stop" and not self.params.include_stop_str_in_output
        for number, token in enumerate(update.token_ids, 1):
            kept.append(token)
            if hidden_end and number == len(update.token_ids):
                break  # the token that ended the sample has no text
            piece = self.detokenizer.push(token)
            stop, text = self._take(piece, checked=len(self.token_ids) + number > self.params.min_tokens)
            pieces.append(text)
            if stop is not None:
                return self._end(pieces, kept, update, "stop", stop, abort=update.finish_reason is None)
        if update.finish_reason is None:
            return self._keep("".join(pieces), kept, update)
        stop, text = self._take(self.detokenizer.flush(), checked=update.finish_reason == "length")
        pieces.append(text)
        if stop is not None:
            return self._end(pieces, kept, update, "stop", stop, abort=False)
        pieces.append(self._held)
        return self._end(pieces, kept, update, update.finish_reason, update.stop_token_id, abort=False)

    def _take(self, piece: str, *, checked: bool) -> tuple[str | None, str]:
        """Adds decoded text. Returns the stop string that it completed, and the text that may be given out."""
        held, window = len(self._held), self._held + piece
        match = _earliest_stop(window, held, self._stops) if checked and piece else None
        if match is not None:
            stop, end = match
            self._held = ""
            return stop, window[: end if self.params.include_stop_str_in_output else end - len(stop)]
        free = _free_length(window, self._stops)
        self._held = window[free:]
        return None, window[:free]

    def _keep(self, text: str, kept: list[int], update: SampleUpdate) -> TextDelta:
        logprobs = None if update.logprobs is None else update.logprobs[: len(kept)]
        self.text += text
        self.token_ids += kept
        self.logprobs += logprobs or []
        return TextDelta(text, kept, logprobs)

    def _end(
        self,
        pieces: list[str],
        kept: list[int],
        update: SampleUpdate,
        reason: FinishReason,
        stop_reason: str | int | None,
        *,
        abort: bool,
    ) -> TextDelta:
        delta = self._keep("".join(pieces), kept, update)
        self.finish_reason, self.stop_reason, self.error = reason, stop_reason, update.error
        return TextDelta(delta.text, kept, delta.logprobs, reason, stop_reason, abort, update.error)


def _earliest_stop(window: str, old: int, stops: list[str]) -> tuple[str, int] | None:
    """The stop string that ends first behind the first `old` characters, and where it ends."""
    best: tuple[str, int] | None = None
    for stop in stops:
        at = window.find(stop, max(0, old - len(stop) + 1))
        if at >= 0 and (best is None or at + len(stop) < best[1]):
            best = (stop, at + len(stop))
    return best


def _free_length(text: str, stops: list[str]) -> int:
    """How much of `text` cannot belong to a stop string that is not complete yet."""
    longest = max(map(len, stops), default=1) - 1
    firsts = {stop[0] for stop in stops}
    for start in range(max(0, len(text) - longest), len(text)):
        if text[start] in firsts and any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)
