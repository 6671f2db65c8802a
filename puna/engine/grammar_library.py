"""The grammar library (llguidance) bound to a model's vocabulary: texts of grammars in, matchers out.

Knows the library, its limits and its words for errors; does not know requests or threads. The vocabulary is given as
bytes, whatever kind of tokenizer it belongs to. Importing this file does not import the library.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from puna.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from puna.models.tokenizer import Tokenizer

MAX_ERROR_CHARS = 600
DEAD_END = "no token is allowed here, and the answer is not complete"
_UNSUPPORTED = re.compile(r"Unimplemented keys: (\[.*?\])")


class TokenBytes(msgspec.Struct, frozen=True):
    """What every token stands for. `special` ones are no text; `ends` are those that end an answer."""

    tokens: list[bytes]
    special: list[int]
    ends: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> TokenBytes:
        """As many as the model can draw: rows of its head that no token belongs to stand for nothing. InputError where
        no token ends an answer: then a whole answer could not be told from a part of one."""
        if not tokenizer.eos_ids:
            raise InputError(
                "this model's vocabulary names no token that ends an answer, and structured outputs need one",
                param="structured_outputs",
            )
        known = min(vocab_size, tokenizer.vocab_size)
        tokens = [tokenizer.token_bytes(token) for token in range(known)] + [b""] * (vocab_size - known)
        special = {token for token in (*tokenizer.special_ids, *tokenizer.eos_ids) if token < vocab_size}
        return cls(tokens, sorted(special), [token for token in tokenizer.eos_ids if token < vocab_size])


@dataclass(frozen=True)
class Limits:
    """Of one grammar. Fuel bounds the work of building expressions and of each mask; sizes bound memory."""

    compile_fuel: int = 2_000_000
    step_fuel: int = 400_000
    step_items: int = 100_000
    states: int = 50_000
    symbols: int = 200_000


class GrammarLibrary:
    """Compiles for one vocabulary. Thread-safe: a matcher belongs to whoever made it."""

    def __init__(self, vocabulary: TokenBytes, limits: Limits | None = None) -> None:
        from llguidance import LLParserLimits, LLTokenizer

        limits = limits or Limits()
        self.ends = frozenset(vocabulary.ends)
        wanted = _Vocabulary(vocabulary)
        self._tokenizer = LLTokenizer(wanted, eos_token=list(vocabulary.ends))  # type: ignore[arg-type]
        wanted.cut = self._tokenizer.greedy_tokenize
        self._limits = LLParserLimits(
            initial_lexer_fuel=limits.compile_fuel,
            step_lexer_fuel=limits.step_fuel,
            step_max_items=limits.step_items,
            max_lexer_states=limits.states,
            max_grammar_size=limits.symbols,
            verbose_errors=False,
        )

    def compile(self, text: str, named: str) -> LLMatcher:
        """A matcher at the beginning, its first mask computed once, so that what that finds out is known to all its
        copies. InputError, naming the field `named`, where the text is no grammar, or too large, or accepts nothing."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise InputError(explained(matcher.get_error()), param=named)
        return matcher


class _Vocabulary:
    """In the shape that the library asks for. Text that a grammar leaves no choice about it cuts into tokens by itself:
    here the longest ones, from the front."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: TokenBytes) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special
        self.eos_token_id = vocabulary.ends[0]
        self.cut: Callable[[str], list[int]] = lambda _: []

    def __call__(self, text: str) -> list[int]:
        return self.cut(text)


def explained(error: str) -> str:
    """The library's words for a person: what is unsupported by its name, and what to do."""
    text = clean(error)
    if (found := _UNSUPPORTED.search(text)) is not None:
        names = ", ".join(re.findall(r'"([^"]*)"', found.group(1)))
        return f"the JSON schema uses {names}, which cannot be enforced; leave it out"
    if text.startswith("oneOf constraints"):
        return (
            "the JSON schema uses oneOf with alternatives that may overlap, which cannot be enforced; tell them apart "
            "by their types or by a required field with a const, or use anyOf"
        )
    if text == DEAD_END:
        return "no answer could have this form: no token is allowed at its beginning"
    return f"it cannot be compiled: {text}"


def clean(error: str) -> str:
    """Of one line and bounded length; DEAD_END where it says no more than that."""
    text = " ".join(error.replace("<non-verbose/>", "").split())[:MAX_ERROR_CHARS]
    return DEAD_END if text in ("", "NoExtension", "NoExtensionBias") else text
