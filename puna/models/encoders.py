"""From text to token ids: special tokens are cut out of the text, what lies between them goes to a piece's encoder.

The kinds of encoders: byte-pair merging and unigrams by the `tokenizers` library, SentencePiece's merging by scores
(score_merging.py), and a whole tokenizer.json, which brings rules for special tokens of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from puna.errors import PunaError
from puna.models.charsmap import Charsmap
from puna.models.pretokenizers import PreTokenizer
from puna.models.score_merging import ScoreMerging
from puna.models.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, byte_of

LONG_TEXT = 4096  # characters from which on encoding takes long enough to be noticed by other threads


class Encoder(Protocol):
    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Without the tokens that are put around a whole text."""
        ...


class CuttingEncoder:
    """Special tokens by their text, the rest by `encode_piece`. `leading_space`: a space is put before every piece that
    nothing or a special token precedes."""

    def __init__(
        self, vocabulary: Vocabulary, encode_piece: Callable[[str], list[int]], *, leading_space: bool = False
    ) -> None:
        self._vocabulary = vocabulary
        self._encode_piece = encode_piece
        self._leading_space = leading_space

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        ids: list[int] = []
        after_special = True
        for piece in (self._all if parse_special else self._added).cut(text):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_piece(" " + piece if self._leading_space and after_special else piece)
            after_special = isinstance(piece, int)
        return ids

    @cached_property
    def _all(self) -> SpecialTokens:
        return SpecialTokens(self._vocabulary.of_kinds((CONTROL, UNKNOWN, USER_DEFINED)))

    @cached_property
    def _added(self) -> SpecialTokens:
        """Tokens that a model's maker added as plain text are found even where control tokens are not wanted."""
        return SpecialTokens(self._vocabulary.of_kinds((USER_DEFINED,)))


class SpecialTokens:
    """Finds them from the left, of several at one place the longest. Costs a look-up a character, and one for every
    length that tokens of that first character have."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        lengths: dict[str, set[int]] = {}
        for text in filter(None, ids):
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def cut(self, text: str) -> Iterator[str | int]:
        """Texts, none of them empty, and the ids between them, in order."""
        start = at = 0
        candidates = [place for place, character in enumerate(text) if character in self._lengths]
        for at in candidates:
            if at < start:
                continue
            for length in self._lengths[text[at]]:
                token = self._ids.get(text[at : at + length])
                if token is not None:
                    if at > start:
                        yield text[start:at]
                    yield token
                    start = at + length
                    break
        if start < len(text):
            yield text[start:]


@dataclass(frozen=True)
class LibraryReading:
    """What the library makes of a tokenizer.json: ids by text, added tokens by id with whether they are special, and
    the tokens around a text; or why it cannot encode any."""

    ids: Mapping[str, int]
    added: Mapping[int, tuple[str, bool]]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        added = [[index, *token] for index, token in self.added.items()]
        return {"ids": self.ids, "added": added, "before": self.before, "after": self.after, "problem": self.problem}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LibraryReading:
        added = {index: (text, special) for index, text, special in value["added"]}
        return cls(value["ids"], added, tuple(value["before"]), tuple(value["after"]), value["problem"])


class LibraryEncoder:
    """A tokenizer of the `tokenizers` library that does everything by itself. `text`: a tokenizer.json. Raises as the
    library does (`library_errors`)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._with_specials = tokenizers.Tokenizer.from_str(text)

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return encode_by_library(self._with_specials if parse_special else self._as_text, text)

    @cached_property
    def reading(self) -> LibraryReading:
        tokenizer = self._with_specials
        added = {index: (token.content, token.special) for index, token in tokenizer.get_added_tokens_decoder().items()}
        found = LibraryReading(tokenizer.get_vocab(with_added_tokens=True), added)
        try:
            with library_errors():
                probe = tokenizer.encode("a")
        except ValueError as error:
            return replace(found, problem=str(error))
        inside = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
        if not inside:
            return replace(found, before=tuple(probe.ids))
        return replace(found, before=tuple(probe.ids[: inside[0]]), after=tuple(probe.ids[inside[-1] + 1 :]))

    @cached_property
    def _as_text(self) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(self._text)
        tokenizer.encode_special_tokens = True
        return tokenizer


@contextmanager
def library_errors() -> Iterator[None]:
    """The library raises bare Exception, and its panics are no Exception at all; here both become ValueError."""
    try:
        yield
    except (PunaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(str(error)) from None


def encode_by_library(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) < LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=False).ids
    # Only the batch's path lets go of the interpreter lock, without which other threads would stand still.
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def ranked_merging(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], cut: PreTokenizer
) -> Callable[[str], list[int]]:
    """Byte-pair encoding by a list of pairs, the best first. Raises as the library does (`library_errors`) where merges
    name tokens that are not in the vocabulary."""
    ids = {text: index for index, text in enumerate(vocabulary.texts)}
    in_bytes = vocabulary.spelling == "characters"
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, ignore_merges=cut.ignore_merges, byte_fallback=not in_bytes)
    )
    splits: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cut.patterns
    ]
    if in_bytes:
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return lambda text: encode_by_library(tokenizer, text)


def scored_merging(
    vocabulary: Vocabulary, scores: list[float], unknown_id: int | None, normalize: Callable[[str], str] | None = None
) -> Callable[[str], list[int]]:
    """SentencePiece's byte-pair encoding. Text never becomes a control token here, whatever it spells."""
    ids = vocabulary.of_kinds((NORMAL, USER_DEFINED, UNUSED))
    single_bytes = {byte_of(text): token for text, token in vocabulary.of_kinds((BYTE,)).items()}

    def spell_out(character: str) -> list[int]:
        found = [single_bytes.get(byte) for byte in character.encode()]
        known = [token for token in found if token is not None]
        if len(known) == len(found):
            return known
        return [] if unknown_id is None else [unknown_id]

    merging = ScoreMerging(ids, {text: scores[token] for text, token in ids.items()}, spell_out)
    if normalize is None:
        return lambda text: merging.encode(text.replace(" ", SPACE))
    return lambda text: merging.encode(normalize(text).replace(" ", SPACE))


def unigram(
    vocabulary: Vocabulary,
    scores: list[float],
    unknown_id: int,
    *,
    space_prefix: bool,
    one_space: bool,
    charsmap: bytes = b"",
) -> Callable[[str], list[int]]:
    """The likeliest cut into tokens. `one_space`: spaces at the ends go, several become one. `charsmap`: a compiled
    normalisation as SentencePiece has it."""
    pairs = []
    for token, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True)):
        # What text must not become gets a name with a space, which no normalised text has.
        hidden = kind in (CONTROL, UNKNOWN, BYTE) and token != unknown_id
        pairs.append(
            (f" {token} " if hidden and kind != BYTE else text, 0.0 if kind == USER_DEFINED else scores[token])
        )
    byte_fallback = BYTE in vocabulary.kinds
    tokenizer = tokenizers.Tokenizer(models.Unigram(pairs, unknown_id, byte_fallback))
    steps: list[normalizers.Normalizer] = []
    if one_space:
        steps += [
            normalizers.Replace(tokenizers.Regex("^ +| +$"), ""),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    inner = any(SPACE in text.lstrip(SPACE) for text in vocabulary.texts)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always" if space_prefix else "never", split=not inner
    )
    if not charsmap:
        return lambda text: encode_by_library(tokenizer, text)
    normalize = Charsmap(charsmap).normalize
    return lambda text: encode_by_library(tokenizer, normalize(text))
