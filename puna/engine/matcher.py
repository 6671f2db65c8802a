"""Where one sample stands in its grammar: which tokens may come next, and whether the answer is complete.

Wraps a matcher of the grammar library. Knows token ids and which of them may end the sample; does not know steps, rows
or when masks are computed. A token that may end the sample is allowed only where the grammar accepts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from puna.engine.grammar_library import clean
from puna.kernels.batch import U32

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matcher:
    """`ends`: ids that end this sample. `library_ends`: those that the library allows where the grammar accepts."""

    __slots__ = ("_ends", "_library_ends", "_native", "error", "over")

    def __init__(self, native: LLMatcher, library_ends: frozenset[int], ends: frozenset[int]) -> None:
        self._native = native
        self._ends = ends
        self._library_ends = library_ends
        self.over = False  # complete, and nothing but its end may follow
        self.error: str | None = None  # why it cannot go on

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return self.error is None and (self.over or self._native.is_accepting())

    def take(self, token: int) -> None:
        """Moves on by a token that was drawn. One that ends the sample moves nothing."""
        if token in self._ends or self.error is not None:
            return
        if not self._native.consume_token(token):
            self._fail()
        elif self._native.is_stopped():
            self._note_stop()

    def take_all(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.take(token)

    def write_mask(self, row: U32, address: int) -> None:
        """Fills the words of a row, which lies at `address`: a bit for each token that may come next; none where there
        is an error."""
        native = self._native
        stopped = native.is_stopped()
        if self.error is None:
            native.unsafe_compute_mask_ptr(address, row.nbytes)
            if native.is_stopped() and not stopped:  # then the library would let the answer end here, complete or not
                self._fail()
        if self.error is not None:
            row.fill(0)
        elif self._ends != self._library_ends:
            self._put_ends(row)

    def _put_ends(self, row: U32) -> None:
        token = next(iter(self._library_ends))
        accepts = bool(int(row[token // 32]) >> token % 32 & 1)
        for token in self._library_ends | self._ends:
            bit = 1 << token % 32
            word = int(row[token // 32]) & ~bit
            row[token // 32] = word | bit if accepts and token in self._ends else word

    def _note_stop(self) -> None:
        if self._native.is_error():
            self._fail()
        else:
            self.over = True

    def _fail(self) -> None:
        self.error = f"the grammar cannot be followed any further: {clean(self._native.get_error())}"
