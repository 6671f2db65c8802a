"""`LLM`: generating offline, in this process, with the shape of vLLM's offline API.

Ties a model's tokenizer and chat template to an engine. It feeds the engine no faster than it admits, shows progress
where a person watches, and leaves nothing behind when it is interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from puna.engine.beam_api import BeamSearchOutput, BeamSearchParams, beam_output
from puna.engine.collect import Collector, RequestOutput
from puna.engine.config import config_from
from puna.engine.core import Engine
from puna.engine.params import SamplingParams
from puna.engine.progress import GenerationProgress
from puna.engine.prompts import Prompt, as_conversations, as_prompts, chat_prompts, one_params_each
from puna.engine.request import make_request
from puna.engine.truncation import prompt_limit
from puna.errors import InputError, OverloadedError

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer

__all__ = ["LLM", "RequestOutput"]


class LLM:
    """A model, ready to generate. Use it as a context manager, or `close` it, to free its memory early.

    `options` are the fields of EngineConfig, such as `backend`, `max_model_len`, `kv_bytes` and `threads`. Raises
    InputError, ModelNotFoundError, ModelFileError or MemoryBudgetError. Not thread-safe.
    """

    def __init__(self, model: str = "smollm2", **options: Any) -> None:
        self.engine = Engine(config_from({"model": str(model), **options}))
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Completes each prompt; one output a prompt, in their order.

        `prompts`: a string, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of these.
        `sampling_params`: one for all, or one each. `use_tqdm`: show a progress bar on a terminal when it takes long.
        Raises InputError before anything runs if any prompt cannot be served as asked.
        """
        tokenizer = self.get_tokenizer()
        given = [sampling_params] if isinstance(sampling_params, SamplingParams) else sampling_params or ()
        cuts = any(getattr(each, "truncate_prompt_tokens", None) is not None for each in given)
        wanted = as_prompts(prompts, tokenizer, None if cuts else self.engine.max_model_len)
        params = one_params_each(sampling_params, len(wanted))
        limits = self._limits(params)
        wanted = [prompt.shortened(limit, tokenizer) for prompt, limit in zip(wanted, limits, strict=True)]
        return self._run(wanted, params, use_tqdm, priority)

    def chat(
        self,
        messages: SequenceOf[Any],
        sampling_params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        use_tqdm: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation (a list of {"role": ..., "content": ...}) or a list of conversations.

        InputError where the model has no chat template; TemplateError where the template refuses the messages.
        """
        conversations = as_conversations(messages)
        params = one_params_each(sampling_params, len(conversations))
        extra = dict(chat_template_kwargs or {})
        model, limits = self.engine.backend.model, self._limits(params)
        return self._run(chat_prompts(model, conversations, add_generation_prompt, extra, limits), params, use_tqdm, 0)

    def beam_search(self, prompts: Any, params: BeamSearchParams, *, use_tqdm: bool = False) -> list[BeamSearchOutput]:
        """The best `params.beam_width` completions of each prompt that beam search finds. `prompts` as for `generate`,
        which takes `SamplingParams(beam_width=...)` too."""
        outputs = self.generate(prompts, params.sampling_params(), use_tqdm=use_tqdm)
        return [beam_output(output, self.get_tokenizer()) for output in outputs]

    def get_tokenizer(self) -> Tokenizer:
        return self.engine.backend.model.tokenizer

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limits(self, params: list[SamplingParams]) -> list[int | None]:
        return [prompt_limit(wanted, self.engine.max_model_len) for wanted in params]

    def _run(
        self, prompts: list[Prompt], params: list[SamplingParams], use_tqdm: bool, priority: int
    ) -> list[RequestOutput]:
        tokenizer = self.get_tokenizer()
        collectors: dict[str, Collector] = {}
        for number, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
            request = make_request(tokenizer, str(next(self._numbers)), prompt.token_ids, wanted, priority=priority)
            try:
                self.engine.check(request)
                self.engine.compile(request)
            except InputError as error:
                where = f"prompt {number}: " if len(prompts) > 1 else ""
                raise InputError(f"{where}{error}", param=error.param) from None
            collectors[request.request_id] = Collector(request, prompt, tokenizer)
        with _stoppable() as stopped, GenerationProgress(len(prompts), shown=use_tqdm) as progress:
            try:
                self._drive(collectors, stopped, progress)
            finally:
                for request_id in collectors:
                    self.engine.abort(request_id)
        return [collector.output() for collector in collectors.values()]

    def _drive(self, collectors: dict[str, Collector], stopped: threading.Event, progress: GenerationProgress) -> None:
        waiting = list(reversed(collectors.values()))
        while waiting or self.engine.has_work:
            self._admit(waiting)
            news = self.engine.step()
            for _, error in news.refused:
                raise error
            for update in news:
                collector = collectors[update.request_id]
                if collector.take(update):
                    self.engine.abort(update.request_id, update.index)
                progress.note(len(update.token_ids), finished=collector.finished)
            if stopped.is_set():
                raise KeyboardInterrupt

    def _admit(self, waiting: list[Collector]) -> None:
        """Adds requests, the last of `waiting` first, until the engine has enough in its queue."""
        while waiting:
            try:
                self.engine.add(waiting[-1].request)
            except OverloadedError:
                if not self.engine.has_work:
                    raise  # it will never be less loaded than it is now
                return
            waiting.pop()


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C, so that a step is not torn in the middle. The second one interrupts at
    once. In other threads than the main one, and under another handler than Python's own, it is never set."""
    stopped = threading.Event()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield stopped
        return

    def on_signal(number: int, where: FrameType | None) -> None:
        if stopped.is_set():
            signal.default_int_handler(number, where)
        stopped.set()
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)
