"""Turns tokens into text one at a time, never giving out half a character.

A byte-level token can end inside a UTF-8 character; its bytes wait until the rest arrives or turns out never to come.
What all `push` calls and the final `flush` return, joined, is what decoding all bytes at once would give, with U+FFFD
for invalid bytes, less the space that some vocabularies put before a text. It knows bytes, not stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One output stream. `bytes_of` gives a token's bytes, empty for one that is not shown; `before` are bytes that
    precede the stream, whose unfinished last character the first tokens may finish. `drop_space`: a space that all of
    the text begins with is left out."""

    __slots__ = ("_bytes_of", "_decoder", "_drop_space")

    def __init__(self, bytes_of: Callable[[int], bytes], before: bytes = b"", *, drop_space: bool = False) -> None:
        self._bytes_of = bytes_of
        self._drop_space = drop_space
        self._decoder = _new_utf8_decoder(errors="replace")
        self._decoder.decode(before)

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty while a character is being spelled."""
        text = self._decoder.decode(self._bytes_of(token_id))
        return self._at_start(text) if self._drop_space and text else text

    def push_all(self, token_ids: Iterable[int]) -> str:
        text = self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))
        return self._at_start(text) if self._drop_space and text else text

    def flush(self) -> str:
        """Ends the stream: what waits can no longer be finished. The next push starts anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._drop_space = False
        return text

    def _at_start(self, text: str) -> str:
        self._drop_space = False
        return text.removeprefix(" ")
