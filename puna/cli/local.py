"""A model that runs inside this process: prompts in, deltas of text out, without sockets or threads.

It knows the engine, the tokenizer and the chat template; it prints nothing. The engine lives as long as this does, so
its prefix cache makes each turn of a conversation cheap.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgspec

from puna.cli.progress import PullProgress, loading
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.output import SampleText
from puna.engine.params import FinishReason, SampleUpdate, SamplingParams
from puna.engine.prompts import Prompt, chat_template, encode_within
from puna.engine.request import make_request
from puna.engine.selection import best, mean_logprob
from puna.engine.truncation import fit_conversation, prompt_limit
from puna.errors import EngineError, InputError, PunaError
from puna.models.calls.formats import call_format, reasoning_marks
from puna.models.calls.history import for_template
from puna.models.calls.pieces import PieceReader
from puna.models.calls.reasoning import ReasoningReader
from puna.models.calls.tool import Tool
from puna.models.load import LoadedModel
from puna.models.names import resolve


@dataclass(frozen=True)
class LocalDelta:
    """News of one sample of request `request_id`. `seed` and `cached_tokens` come with its first tokens."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    seed: int | None
    cached_tokens: int | None
    finish_reason: FinishReason | None
    error: str | None
    score: float | None = None  # of an answer that was chosen among others


class LocalModel:
    """A context manager. Not thread-safe. `default_max_tokens`: where parameters set none, or what the context leaves.
    A model may repeat itself for ever, and nobody wants to wait for the whole context."""

    def __init__(self, engine: Engine, default_max_tokens: int) -> None:
        model = engine.backend.model
        self.engine = engine
        self.tokenizer = model.tokenizer
        self.context_tokens = engine.max_model_len
        self._template = chat_template(model)
        self._calls = call_format(self._template)
        self._reasoning = reasoning_marks(self._template)
        self._default_max_tokens = default_max_tokens
        self._texts: dict[str, list[SampleText]] = {}
        self._held: dict[str, list[SampleUpdate | None]] = {}  # with best_of: the first news of each sample
        self._ids = itertools.count()

    @classmethod
    def open(cls, config: EngineConfig, default_max_tokens: int) -> LocalModel:
        """Pulls the model where it is not here yet, showing progress, and loads it."""
        with PullProgress() as progress:
            path = resolve(config.model, progress=progress)
        with loading(config.model):
            engine = Engine(msgspec.structs.replace(config, model=str(path)), on_file=_begin_tokenizer)
        return cls(engine, default_max_tokens)

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.engine.close()
        failure = self.engine.recording_failure
        if failure is not None and kind is None:
            raise PunaError(
                f"the recording {self.engine.config.record} is not whole: {failure.strerror}; the answers are"
            )

    def chat_text(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> str:
        """What the model reads of a conversation and of tools. InputError where it has no template."""
        if self._template is None:
            raise InputError("this model's file has no chat template; use `puna generate`, or a model tuned for chat")
        told, shapes = for_template(self._template, messages, tools)
        return self._template.render(told, add_generation_prompt=True, tools=shapes)

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Prompt:
        """Cut where it has to be and `params` allow it, as is `text_prompt`."""
        text, limit = self.chat_text(messages, tools), prompt_limit(params, self.context_tokens)
        if limit is None:
            return Prompt(text, self._encode(text, add_special=False))

        def encode(of: Sequence[Mapping[str, Any]]) -> list[int]:
            return self.tokenizer.encode(self.chat_text(of, tools), add_special=False)

        return Prompt(text, *fit_conversation(messages, limit, encode, self.tokenizer))

    def chat_reader(self, prompt: Prompt, tools: Sequence[Tool]) -> PieceReader | None:
        """Takes the answer to a conversation apart; None where it is content and no more."""
        reader = self._calls.make_reader([tool.name for tool in tools], ()) if tools else None
        if self._reasoning is None:
            return reader
        return ReasoningReader(self._reasoning, reader, is_open=self._reasoning.is_open(prompt.text or ""))

    def shown_tokens(self) -> frozenset[int]:
        """Special tokens that `chat_reader` has to see."""
        marks = () if self._reasoning is None else (self._reasoning.opens, self._reasoning.closes)
        ids = {self.tokenizer.token_id(text) for text in (*self._calls.tokens, *marks)}
        return frozenset(token for token in ids if token in self.tokenizer.special_ids)

    def text_prompt(self, text: str, params: SamplingParams) -> Prompt:
        limit = prompt_limit(params, self.context_tokens)
        if limit is None:
            return Prompt(text, self._encode(text, add_special=True))
        return Prompt(text, self.tokenizer.encode(text)).shortened(limit, self.tokenizer)

    def ids_prompt(self, token_ids: list[int], params: SamplingParams) -> Prompt:
        return Prompt(None, token_ids).shortened(prompt_limit(params, self.context_tokens), self.tokenizer)

    def _encode(self, text: str, *, add_special: bool) -> list[int]:
        return encode_within(self.context_tokens, self.tokenizer, text, add_special=add_special)

    def add(self, prompt_ids: list[int], params: SamplingParams, shown: frozenset[int] = frozenset()) -> str:
        """Queues a prompt and gives its id. Raises what `Engine.add` raises. `shown`: special tokens that are text."""
        request_id = str(next(self._ids))
        if params.max_tokens is None:
            room = max(1, self.context_tokens - len(prompt_ids))
            wanted = max(self._default_max_tokens, params.min_tokens)
            params = msgspec.structs.replace(params, max_tokens=max(min(room, wanted), params.min_tokens))
        request = make_request(self.tokenizer, request_id, prompt_ids, params)
        self.engine.check(request)
        self.engine.compile(request)
        self.engine.add(request)
        skip = params.skip_special_tokens
        self._texts[request_id] = [
            SampleText(self.tokenizer.detokenizer(prompt_ids, skip_special_tokens=skip, shown=shown), params)
            for _ in range(params.samples)
        ]
        return request_id

    def step(self) -> list[LocalDelta]:
        """One step of the engine, for all prompts."""
        deltas = []
        news = self.engine.step()
        for _, error in news.refused:
            raise error
        for update in news:
            samples = self._texts[update.request_id]
            sample = samples[update.index]
            if sample.finished or update.searched_tokens:
                continue
            delta = sample.push(update)
            if delta.abort:
                self.engine.abort(update.request_id, update.index)
            if sample.params.chooses:
                held = self._held.setdefault(update.request_id, [None] * len(samples))
                held[update.index] = held[update.index] or update
                if all(each.finished for each in samples):
                    deltas += _chosen(samples, [first for first in held if first is not None])
                continue
            deltas.append(
                LocalDelta(
                    update.request_id,
                    update.index,
                    delta.text,
                    delta.token_ids,
                    update.seed,
                    update.cached_tokens,
                    delta.finish_reason,
                    delta.error,
                    update.score,
                )
            )
        return deltas

    def forget(self, request_id: str) -> None:
        """Aborts the request where it still runs."""
        self.engine.abort(request_id)
        self._texts.pop(request_id, None)
        self._held.pop(request_id, None)

    def answer(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        stop: Callable[[], bool],
        shown: frozenset[int] = frozenset(),
    ) -> Iterator[LocalDelta]:
        """One prompt's answer as it comes; ends early where `stop` says so. EngineError where computing it failed."""
        request_id = self.add(prompt_ids, params, shown)
        try:
            while self.engine.has_work and not stop():
                for delta in self.step():
                    if delta.finish_reason == "error":
                        raise EngineError(delta.error or "the engine could not compute this answer")
                    yield delta
        finally:
            self.forget(request_id)


def _chosen(samples: list[SampleText], firsts: list[SampleUpdate]) -> list[LocalDelta]:
    """The best of finished samples, the best first."""
    scores = [mean_logprob(sample.logprobs) for sample in samples]
    return [
        LocalDelta(
            firsts[i].request_id,
            place,
            samples[i].text,
            samples[i].token_ids,
            firsts[i].seed,
            firsts[i].cached_tokens,
            samples[i].finish_reason,
            samples[i].error,
            scores[i],
        )
        for place, i in enumerate(best(scores, samples[0].params.n))
    ]


def _begin_tokenizer(model: LoadedModel) -> None:
    """Builds it while the native core packs the weights, which takes as long. Who asks for it meets its error."""

    def build() -> None:
        with contextlib.suppress(PunaError):
            _ = model.tokenizer

    threading.Thread(target=build, name="tokenizer", daemon=True).start()
