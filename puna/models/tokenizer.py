"""Text to token ids and back, by the vocabulary and rules in a GGUF file's metadata.

Byte-level byte-pair encoding ("gpt2" in GGUF). Special tokens are cut out of the text here, the text between them goes
through the `tokenizers` library. A file's own rules hold: which tokens are special, whether a beginning or end token is
added. Decoding is done on bytes, so any ids give the same text whether they are decoded at once or one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from puna.errors import InputError, ModelFileError
from puna.models.detokenizer import Detokenizer
from puna.models.facts import Facts
from puna.models.model_file import ModelFile
from puna.models.pretokenizers import PRE_TOKENIZERS, PreTokenizer

LONG_TEXT = 4096  # characters from which on encoding takes long enough to be noticed by other threads

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

# Control tokens that end an answer though files seldom say so: a turn's end beside a text's end.
END_TEXTS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|return|>"),
    *("</s>", "<end_of_turn>", "<eos>", "<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens. `kinds` has one number a token; `merges` are pairs, best first."""

    texts: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: PreTokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool


class Tokenizer:
    """Thread-safe once built."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError where merges name tokens that are not in the vocabulary."""
        self._vocabulary = replace(vocabulary, merges=())  # the encoder has its own copy, of eight megabytes
        self.vocab_size = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.special_ids = frozenset(i for i, kind in enumerate(vocabulary.kinds) if kind in (CONTROL, UNKNOWN))
        self._ids = {text: index for index, text in enumerate(vocabulary.texts)}
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._encoder = _build_encoder(self._ids, vocabulary)

    @classmethod
    def from_gguf(cls, file: ModelFile) -> Tokenizer:
        """Raises ModelFileError."""
        vocabulary = read_vocabulary(file)
        try:
            return cls(vocabulary)
        except Exception as error:  # the library raises bare Exception
            file.fail(f"the vocabulary contradicts itself: {error}")

    @classmethod
    def from_folder(cls, file: ModelFile) -> Tokenizer:
        """Of a folder with tokenizer.json. Raises ModelFileError."""
        file.fail("tokenizer.json cannot be read yet")

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """`add_special`: add the beginning and end tokens that the file asks for. `parse_special`: text that spells a
        special token becomes that token; otherwise it is plain text. Raises InputError for text that is not Unicode."""
        _check_encodable(text)
        ids: list[int] = []
        for piece in self._special_pattern(parse_special).split(text) if text else ():
            special = self._special_by_text(parse_special).get(piece)
            if special is not None:
                ids.append(special)
            elif piece:
                ids += self._encode_piece(piece)
        vocabulary = self._vocabulary
        if add_special and vocabulary.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and vocabulary.add_eos and self.eos_ids:
            ids.append(self.eos_ids[0])
        return ids

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with `bos_id`, as the file wants it."""
        return self._vocabulary.add_bos and self.bos_id is not None

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that `text` certainly does not stay under, known without the work of encoding it."""
        return -(-len(text) // self._longest_token_bytes)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Raises InputError for an id that is not in the vocabulary."""
        bytes_of = self._shown_bytes if skip_special_tokens else self.token_bytes
        return b"".join(map(bytes_of, ids)).decode("utf-8", "replace")

    def detokenizer(self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True) -> Detokenizer:
        """A stream of text behind `prompt_ids`, whose own text it does not repeat."""
        bytes_of = self._shown_bytes if skip_special_tokens else self.token_bytes
        return Detokenizer(bytes_of, _last_bytes(prompt_ids, bytes_of))

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; a special token stands for its own name. Raises InputError."""
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where the token alone is no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """The id of the token whose entry in the vocabulary is exactly `text`, such as "<|im_end|>"."""
        return self._ids.get(text)

    def _encode_piece(self, text: str) -> list[int]:
        if len(text) < LONG_TEXT:
            return self._encoder.encode(text, add_special_tokens=False).ids
        # Only the batch's path lets go of the interpreter lock, without which other threads would stand still.
        return self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids

    @cached_property
    def _longest_token_bytes(self) -> int:
        return max(len(self.token_bytes(token)) for token in range(self.vocab_size))

    def _shown_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_ids else self.token_bytes(token_id)

    def _spell(self, token_id: int) -> bytes:
        text, kind = self._vocabulary.texts[token_id], self._vocabulary.kinds[token_id]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return text.encode()
        return b"".join(_BYTE_OF_CHARACTER.get(character) or character.encode() for character in text)

    def _special_pattern(self, parse_special: bool) -> re.Pattern[str]:
        return self._all_specials[0] if parse_special else self._user_specials[0]

    def _special_by_text(self, parse_special: bool) -> dict[str, int]:
        return self._all_specials[1] if parse_special else self._user_specials[1]

    @cached_property
    def _all_specials(self) -> tuple[re.Pattern[str], dict[str, int]]:
        return self._specials((CONTROL, UNKNOWN, USER_DEFINED))

    @cached_property
    def _user_specials(self) -> tuple[re.Pattern[str], dict[str, int]]:
        """Tokens that a model's maker added as plain text are found even where control tokens are not wanted."""
        return self._specials((USER_DEFINED,))

    def _specials(self, kinds: tuple[int, ...]) -> tuple[re.Pattern[str], dict[str, int]]:
        vocabulary = self._vocabulary
        found = {text: i for i, text in enumerate(vocabulary.texts) if vocabulary.kinds[i] in kinds and text}
        longest_first = sorted(found, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first or ["(?!)"])) + ")"), found


def vocabulary_facts(file: ModelFile) -> Facts:
    """What a GGUF file says of its tokenizer."""
    return Facts(file, file.metadata, "tokenizer.ggml")


def kind_of_vocabulary(file: ModelFile) -> str:
    """In a few words, for people."""
    kind, cut = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre", "default")
    if kind is None:
        return "none"
    try:
        tokens = len(read_vocabulary(file).texts)
    except ModelFileError as error:
        return f"{kind}, unusable: {error}"
    return f"byte-level BPE ({cut}), {tokens} tokens"


def read_vocabulary(file: ModelFile) -> Vocabulary:
    """Raises ModelFileError where the metadata describe no vocabulary that Puna can use."""
    facts = vocabulary_facts(file)
    model = facts.text("model")
    if model != "gpt2":
        file.fail(f"the tokenizer is of kind {model!r}; Puna reads 'gpt2' (byte-level byte-pair encoding)")
    pre = facts.text("pre", "default")
    if pre not in PRE_TOKENIZERS:
        file.fail(f"the pre-tokenizer {pre!r} is not known; known: {', '.join(sorted(PRE_TOKENIZERS))}")
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(_strings(file, "tokenizer.ggml.tokens"))]
    if len(set(texts)) != len(texts):
        seen: set[str] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        file.fail(f"the vocabulary has the token {twice!r} twice; expected each token once")
    kinds = _token_kinds(file, len(texts))
    merges = tuple(dict.fromkeys(_split_merge(file, merge) for merge in _strings(file, "tokenizer.ggml.merges")))
    cut = PRE_TOKENIZERS[pre]
    return Vocabulary(
        texts=tuple(texts),
        kinds=kinds,
        merges=merges,
        pre_tokenizer=cut,
        bos_id=_token_id(file, "bos", len(texts)),
        eos_ids=_end_ids(file, texts, kinds),
        add_bos=facts.flag("add_bos_token", cut.add_bos),
        add_eos=facts.flag("add_eos_token", False),
    )


def _strings(file: ModelFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or (value and not isinstance(value[0], str)):
        file.fail(f"metadata {key!r} is missing or no list of strings; the tokenizer needs it")
    return value


def _token_kinds(file: ModelFile, count: int) -> tuple[int, ...]:
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return (NORMAL,) * count
    if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu" or len(kinds) != count:
        file.fail(f"metadata 'tokenizer.ggml.token_type' has to be {count} whole numbers, one a token")
    return tuple(kinds.tolist())


def _split_merge(file: ModelFile, merge: str) -> tuple[str, str]:
    space = merge.find(" ", 1)
    if space < 0:
        file.fail(f"the merge {merge!r} has to be two tokens with a space between them")
    return merge[:space], merge[space + 1 :]


def _token_id(file: ModelFile, name: str, count: int) -> int | None:
    facts, key = vocabulary_facts(file), f"{name}_token_id"
    return facts.integer(key, least=0, most=count - 1) if facts.has(key) else None


def _end_ids(file: ModelFile, texts: Sequence[str], kinds: Sequence[int]) -> tuple[int, ...]:
    """The file's end token first, then those that end a turn."""
    named = [_token_id(file, name, len(texts)) for name in ("eos", "eot", "eom")]
    control = {texts[i]: i for i, kind in enumerate(kinds) if kind == CONTROL}
    found = [*named, *(control.get(text) for text in END_TEXTS)]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _build_encoder(ids: dict[str, int], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    cut = vocabulary.pre_tokenizer
    model = tokenizer_models.BPE(vocab=ids, merges=list(vocabulary.merges), ignore_merges=cut.ignore_merges)
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cut.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder = tokenizers.Tokenizer(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    return encoder


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


def _byte_of_character() -> dict[str, bytes]:
    """Byte-level vocabularies spell every byte as one printable character: itself where Latin-1 prints it, otherwise
    the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): bytes([byte]) for byte in printable}
    return spelled | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
