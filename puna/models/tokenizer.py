"""Text to token ids and back.

A tokenizer is a vocabulary (vocabulary.py: what tokens stand for) and an encoder (encoders.py: how text is cut into
them), read from whatever container a model came in. Decoding is done on bytes, so any ids give the same text whether
they are decoded at once or one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from puna.errors import InputError, PunaError
from puna.models.detokenizer import Detokenizer
from puna.models.encoders import Encoder, library_errors
from puna.models.gguf_parse import clipped
from puna.models.guarded_encoding import GuardedEncoder
from puna.models.vocabulary import CONTROL, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from puna.models.folder_vocabulary import Folder
    from puna.models.model_file import ModelFile

COUNTED_CHARS = 1 << 20  # of a text, in which words are counted

# A letter behind a space or nothing. What may be composed with the character behind it is none in a text; in a token it
# is one, so that a text never has more of them than its tokens together.
_WORD_BEGINS = re.compile(r"(?<![^ ])[A-Za-z](?=[\x00-\x7f])")
_WORD_BEGINS_IN_TOKEN = re.compile(rb"(?<![^ ])[A-Za-z]")


class Tokenizer:
    """Thread-safe once built."""

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self.vocab_size = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.special_ids = frozenset(i for i, kind in enumerate(vocabulary.kinds) if kind in (CONTROL, UNKNOWN))
        self._bytes: list[bytes | None] = [None] * self.vocab_size

    @classmethod
    def from_gguf(cls, file: ModelFile) -> Tokenizer:
        """Raises ModelFileError."""
        from puna.models.gguf_vocabulary import gguf_tokenizer

        return cls(*gguf_tokenizer(file))

    @classmethod
    def from_folder(cls, folder: Folder) -> Tokenizer:
        """Of a folder with tokenizer.json or tokenizer.model. Raises ModelFileError."""
        from puna.models.folder_vocabulary import folder_tokenizer
        from puna.models.sentencepiece_file import sentencepiece_tokenizer

        if (folder.path / "tokenizer.json").is_file():
            return cls(*folder_tokenizer(folder))
        return cls(*sentencepiece_tokenizer(folder))

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """`add_special`: add the beginning and end tokens that the file asks for. `parse_special`: text that spells a
        special token becomes that token; otherwise it is plain text. Raises InputError for text that is not Unicode, or
        that the file's vocabulary or patterns do not hold for."""
        _check_encodable(text)
        try:
            with library_errors():
                ids = self._encoder.encode(text, parse_special=parse_special)
        except PunaError:
            raise
        except ValueError as error:
            raise InputError(f"this model's tokenizer cannot encode the text: {clipped(str(error))}") from None
        return [*self._vocabulary.before, *ids, *self._vocabulary.after] if add_special else ids

    def close(self) -> None:
        """For the end of a program: no thread is left that encodes for long, for none can be interrupted."""
        if isinstance(self._encoder, GuardedEncoder):
            self._encoder.close()

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with `bos_id`, as the file wants it."""
        return self.bos_id is not None and self._vocabulary.before[:1] == (self.bos_id,)

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that `text` certainly does not stay under, known without the work of encoding it: from its
        length and the longest token, and from how many words begin in it and in a token at most."""
        shrinks = self._vocabulary.shrinks
        if not shrinks:
            return 0
        words = len(_WORD_BEGINS.findall(text, 0, COUNTED_CHARS))
        return max(-(-len(text) // (self._longest_token_bytes * shrinks)), -(-words // self._most_words))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Raises InputError for an id that is not in the vocabulary."""
        stream = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return stream.push_all(ids) + stream.flush()

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """A stream of text behind `prompt_ids`, whose own text it does not repeat. `shown`: special tokens that are not
        skipped."""
        bytes_of = self._shown_bytes if skip_special_tokens else self.token_bytes
        if shown and skip_special_tokens:
            hidden = self.special_ids - shown

            def bytes_of(token_id: int) -> bytes:
                return b"" if token_id in hidden else self.token_bytes(token_id)

        before = _last_bytes(prompt_ids, bytes_of)
        return Detokenizer(bytes_of, before, drop_space=self._vocabulary.drops_first_space and not before)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; a special token stands for its own name. Raises InputError."""
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._vocabulary.spell(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where the token alone is no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """The id of the token whose entry in the vocabulary is exactly `text`, such as "<|im_end|>"."""
        return self._ids.get(text)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: index for index, text in enumerate(self._vocabulary.texts) if text}

    @cached_property
    def _longest_token_bytes(self) -> int:
        return max(1, *(len(self.token_bytes(token)) for token in range(self.vocab_size)))

    @cached_property
    def _most_words(self) -> int:
        """That begin in one token; its own beginning may be one."""
        return max(
            1, *(len(_WORD_BEGINS_IN_TOKEN.findall(self.token_bytes(token))) for token in range(self.vocab_size))
        )

    def _shown_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_ids else self.token_bytes(token_id)


def _check_encodable(text: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"the text to tokenize is {type(text).__name__}; expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a surrogate pair, which "
            "is not valid Unicode text; send the whole character"
        ) from None


def _last_bytes(prompt_ids: Sequence[int], bytes_of: Callable[[int], bytes]) -> bytes:
    """The last bytes of a prompt: at most three can belong to a character that is not finished."""
    tail = b""
    for token_id in reversed(prompt_ids):
        tail = bytes_of(token_id) + tail
        if len(tail) >= 4:
            break
    return tail
