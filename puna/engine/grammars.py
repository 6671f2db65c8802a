"""Compiles the grammars of an engine's requests on a thread of its own, and keeps those that were asked for last.

Steps go on meanwhile: who asks gets a `Compiling` at once and looks at it between steps. A form that is not plain is
tried in another process first (grammar_trial.py). Knows forms and the grammar library; does not know requests.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from puna.engine.grammar_library import GrammarLibrary, TokenBytes
from puna.engine.grammar_text import grammar_text, is_plain
from puna.engine.grammar_trial import GrammarTrial
from puna.engine.structure import FIELD, StructuredOutputs
from puna.errors import InputError, OverloadedError, PunaError

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_KEPT = 64  # grammars, and errors, after their last use
MAX_WAITING = 256  # grammars that are not compiled yet
STACK_BYTES = 16 << 20


class Compiling:
    """One form's grammar: under way until `done`. `wanted` counts who waits for it; `dropped`: nobody did."""

    def __init__(self, form: StructuredOutputs) -> None:
        self.form = form
        self.wanted = 0
        self.dropped = False
        self.ends: frozenset[int] = frozenset()
        self._matcher: LLMatcher | None = None
        self._error: PunaError | None = None
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._done.wait(timeout_s)

    def matcher(self, named: str) -> LLMatcher:
        """A matcher at the beginning, of the caller's own. Raises what compiling did; the field is the caller's."""
        if isinstance(self._error, InputError):
            raise InputError(str(self._error), param=named)
        if self._error is not None:
            raise self._error
        assert self._matcher is not None
        return self._matcher.deep_copy()

    def settle(self, matcher: LLMatcher | None, ends: frozenset[int], error: PunaError | None) -> None:
        self._matcher, self.ends, self._error = matcher, ends, error
        self._done.set()


class Grammars:
    """`vocabulary` is asked for with the first form, on the thread. Not thread-safe: one thread calls it."""

    def __init__(self, vocabulary: Callable[[], TokenBytes]) -> None:
        self._vocabulary = vocabulary
        self._known: OrderedDict[bytes, Compiling] = OrderedDict()
        self._orders: queue.SimpleQueue[Compiling | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trial: GrammarTrial | None = None
        self._library: GrammarLibrary | None = None
        self._closed = False
        self._lock = threading.Lock()  # of `wanted` and `dropped`

    def ask(self, form: StructuredOutputs) -> Compiling:
        """Say so with `leave` when it is no longer wanted. OverloadedError where too many wait already."""
        key = msgspec.msgpack.encode(msgspec.structs.replace(form, named=FIELD))
        found = self._known.get(key)
        if found is not None:
            with self._lock:
                found.wanted += 1
                if not found.dropped:
                    self._known.move_to_end(key)
                    return found
        waiting = sum(not one.done for one in self._known.values())
        if waiting >= MAX_WAITING:
            raise OverloadedError(f"{waiting} grammars wait to be compiled; try again later", retry_after_s=2.0)
        self._known[key] = compiling = Compiling(form)
        compiling.wanted = 1
        for old in [key for key, one in self._known.items() if one.done][: max(0, len(self._known) - MAX_KEPT)]:
            del self._known[old]
        if self._thread is None:
            self._thread = self._start()
        self._orders.put(compiling)
        return compiling

    def leave(self, compiling: Compiling) -> None:
        """What nobody wants any more is not compiled, unless it has begun."""
        with self._lock:
            compiling.wanted -= 1

    def close(self) -> None:
        """Ends the thread, and what it is doing as far as that can be ended."""
        self._closed = True
        self._orders.put(None)
        if self._trial is not None:
            self._trial.close()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="grammars", daemon=True)
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        return thread

    def _work(self) -> None:
        while (order := self._orders.get()) is not None and not self._closed:
            with self._lock:
                order.dropped = order.wanted == 0
            if order.dropped:
                order.settle(None, frozenset(), InputError("it was not compiled: nobody waited for it"))
                continue
            try:
                library, matcher = self._compile(order.form)
                order.settle(matcher, library.ends, None)
            except PunaError as error:
                order.settle(None, frozenset(), error)
            except Exception as error:  # of the library's own; the engine goes on
                order.settle(None, frozenset(), InputError(f"it cannot be compiled: {error}", param=order.form.named))

    def _compile(self, form: StructuredOutputs) -> tuple[GrammarLibrary, LLMatcher]:
        if self._library is None:
            vocabulary = self._vocabulary()
            self._trial = GrammarTrial(vocabulary)
            self._library = GrammarLibrary(vocabulary)
        assert self._trial is not None
        text = grammar_text(form) if is_plain(form) else self._trial.run(form)
        return self._library, self._library.compile(text, form.named)
