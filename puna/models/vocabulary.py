"""A vocabulary: what each token stands for, which tokens are special, what is added around a text.

Every container's tokenizer comes down to this (gguf_vocabulary.py, folder_vocabulary.py, sentencepiece_file.py). Tokens
are written in one of two spellings; `spell` turns either into exact bytes, so that decoding needs no library and knows
no difference between a text decoded at once and one decoded token by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # as in tokenizer.ggml.token_type
SPACE = "\u2581"  # "▁", how SentencePiece writes a space

# Control tokens that end an answer though files seldom say so: a turn's end beside a text's end.
END_TEXTS = (
    *(
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
    ),
    *("</s>", "<end_of_turn>", "<turn|>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<end_of_utterance>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>",),
)

# "characters": every byte is one printable character (GPT-2's alphabet). "spaces": text as it is, a space as "▁", bytes
# without a token of their own as "<0x0A>".
Spelling = Literal["characters", "spaces"]


@dataclass(frozen=True)
class Vocabulary:
    """`texts` and `kinds` have one entry a token. `before` and `after` are put around a text; `drops_first_space` says
    that encoding puts a space before a text, which decoding its beginning takes away again. `shrinks`: how many
    characters of a text may become one of a token's, 0 where there is no saying (white space that goes, unknown runs
    that fuse)."""

    texts: tuple[str, ...]
    kinds: tuple[int, ...]
    spelling: Spelling
    bos_id: int | None
    eos_ids: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    drops_first_space: bool = False
    shrinks: int = 1

    def spell(self, token_id: int) -> bytes:
        """The token's bytes; those of a special token are its name."""
        text, kind = self.texts[token_id], self.kinds[token_id]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return text.encode()
        if self.spelling == "characters":
            return b"".join(_BYTE_OF_CHARACTER.get(character) or character.encode() for character in text)
        if kind == BYTE and (byte := byte_of(text)) is not None:
            return bytes([byte])
        return text.replace(SPACE, " ").encode()

    def of_kinds(self, kinds: Iterable[int]) -> dict[str, int]:
        """Ids by text."""
        wanted = frozenset(kinds)
        return {text: i for i, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)) if kind in wanted}


def byte_of(text: str) -> int | None:
    """The byte that "<0x0A>" stands for; None for any other text."""
    return int(text[3:5], 16) if _BYTE_TOKEN.fullmatch(text) else None


def end_ids(texts: Sequence[str], kinds: Sequence[int], named: Iterable[int | None]) -> tuple[int, ...]:
    """Those that the file names, in its order, then control tokens that are known to end a turn or a text."""
    control = {texts[i]: i for i, kind in enumerate(kinds) if kind == CONTROL}
    found = [*named, *(control.get(text) for text in END_TEXTS)]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _byte_of_character() -> dict[str, bytes]:
    """Byte-level vocabularies spell every byte as one printable character: itself where Latin-1 prints it, otherwise
    the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): bytes([byte]) for byte in printable}
    return spelled | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_BYTE_OF_CHARACTER = _byte_of_character()
