"""Requests that wait until their grammar is compiled, and may then enter the scheduler's queue.

Knows requests and grammars; does not know sequences. A request whose grammar is known already does not wait.
"""

from __future__ import annotations

from puna.engine.grammars import Compiling, Grammars
from puna.engine.params import EngineRequest


class GrammarQueue:
    """In the order of their arrival, but for who waits for a grammar that takes longer."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._waiting: dict[str, tuple[EngineRequest, Compiling]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._waiting)

    def add(self, request: EngineRequest) -> Compiling | None:
        """The grammar of a request that need not wait; None where it waits from now on. OverloadedError where too many
        grammars are to be compiled."""
        form = request.params.structured_outputs
        assert form is not None
        compiling = self._grammars.ask(form)
        if compiling.done:
            self._grammars.leave(compiling)
            return compiling
        self._waiting[request.request_id] = request, compiling
        return None

    def compile(self, request: EngineRequest) -> None:
        """Waits for the grammar of a request, which is not added. Raises what compiling did."""
        form = request.params.structured_outputs
        if form is None:
            return
        compiling = self._grammars.ask(form)
        try:
            compiling.wait()
        finally:
            self._grammars.leave(compiling)
        compiling.matcher(form.named)

    def remove(self, request_id: str) -> bool:
        """False: it does not wait here."""
        request, compiling = self._waiting.pop(request_id, (None, None))
        if compiling is not None:
            self._grammars.leave(compiling)
        return request is not None

    def ready(self) -> list[tuple[EngineRequest, Compiling]]:
        """Those that wait no longer; they are not in here any more."""
        found = [entry for entry in self._waiting.values() if entry[1].done]
        for request, _ in found:
            self.remove(request.request_id)
        return found

    def wait(self, timeout_s: float) -> None:
        """Until the grammar of the one that waits longest is compiled, or that time is over."""
        for _, compiling in self._waiting.values():
            compiling.wait(timeout_s)
            return

    def close(self) -> None:
        self._waiting.clear()
        self._grammars.close()
