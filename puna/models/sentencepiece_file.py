"""The tokenizer of a folder that has tokenizer.model, SentencePiece's own file, and no tokenizer.json.

The file is a protocol buffer; what of it decides tokens is read here: pieces with scores and kinds, the model's type,
how white space is treated. Tokens that were added later stand in tokenizer_config.json (added_tokens_decoder).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from puna.models.charsmap import Charsmap
from puna.models.encoders import CuttingEncoder, Encoder, library_errors, scored_merging, unigram
from puna.models.folder_vocabulary import Folder, around_by_config, named_tokens, padded, stated_ids
from puna.models.gguf_parse import brief, clipped
from puna.models.vocabulary import CONTROL, NORMAL, SPACE, UNUSED, USER_DEFINED, Vocabulary, end_ids

MAX_BYTES = 64 << 20
UNIGRAM, BPE = 1, 2  # TrainerSpec.model_type

# Numbers of the fields that are read, as sentencepiece_model.proto numbers them.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _UNKNOWN_ID, _BOS_ID, _EOS_ID = 3, 24, 40, 41, 42
_CHARSMAP, _DUMMY_PREFIX, _ONE_SPACE = 2, 3, 4


@dataclass(frozen=True)
class SentencePieces:
    """What a tokenizer.model says."""

    pieces: list[tuple[str, float, int]]  # text, score, kind
    model_type: int
    unknown_id: int
    bos_id: int
    eos_id: int
    charsmap: bytes
    space_prefix: bool
    one_space: bool


def sentencepiece_tokenizer(folder: Folder) -> tuple[Vocabulary, Encoder]:
    """Raises ModelFileError."""
    path = folder.path / "tokenizer.model"
    if not path.is_file():
        folder.fail("there is no tokenizer.json and no tokenizer.model; put the tokenizer's file beside the weights")
    try:
        if path.stat().st_size > MAX_BYTES:
            folder.fail(f"tokenizer.model has {path.stat().st_size} bytes; expected at most {MAX_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        folder.fail(f"tokenizer.model cannot be read: {error.strerror or error}")
    try:
        described = parse(content)
    except (ValueError, struct.error) as error:
        folder.fail(f"tokenizer.model is no SentencePiece file: {clipped(str(error))}")
    try:
        with library_errors():
            return _build(folder, described)
    except ValueError as error:
        folder.fail(f"tokenizer.model contradicts itself: {clipped(str(error))}")


def parse(content: bytes) -> SentencePieces:
    """Raises ValueError."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        if number == _PIECES:
            piece = dict(_fields(_message(value)))
            text, kind = _message(piece.get(_PIECE_TEXT, b"")).decode(), _number(piece.get(_PIECE_KIND, NORMAL))
            (score,) = struct.unpack("<f", _message(piece.get(_PIECE_SCORE, b"\0\0\0\0")))
            if not math.isfinite(score):
                raise ValueError(f"piece {len(pieces)}, {clipped(text, 80)!r}, has the score {score}")
            pieces.append((text, score, kind))
        elif number == _TRAINER:
            trainer = dict(_fields(_message(value)))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_message(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    if trainer.get(_WHITESPACE_AS_SUFFIX):
        raise ValueError("it puts white space behind words, which Puna does not read")
    return SentencePieces(
        pieces=pieces,
        model_type=_number(trainer.get(_MODEL_TYPE, UNIGRAM)),
        unknown_id=_number(trainer.get(_UNKNOWN_ID, 0)),
        bos_id=_number(trainer.get(_BOS_ID, 1)),
        eos_id=_number(trainer.get(_EOS_ID, 2)),
        charsmap=_message(normalizer.get(_CHARSMAP, b"")),
        space_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        one_space=bool(normalizer.get(_ONE_SPACE, 1)),
    )


def _build(folder: Folder, described: SentencePieces) -> tuple[Vocabulary, Encoder]:
    if described.model_type not in (UNIGRAM, BPE):
        raise ValueError("it is neither a unigram nor a byte-pair model; convert it to tokenizer.json")
    texts = [text for text, _, _ in described.pieces]
    scores = [score for _, score, _ in described.pieces]
    kinds = [kind for _, _, kind in described.pieces]
    for index, kind in enumerate(kinds):
        if kind == USER_DEFINED:
            texts[index] = texts[index].replace(SPACE, " ")
    config = folder.json("tokenizer_config.json")
    _add_tokens(folder, config.get("added_tokens_decoder"), texts, kinds, scores)
    padded(folder, texts, kinds)
    scores += [0.0] * (len(texts) - len(scores))
    ids = {text: index for index, text in enumerate(texts) if text}
    named = named_tokens(folder, config)
    bos = ids.get(named.get("bos_token", ""), described.bos_id if described.bos_id >= 0 else None)
    eos = ids.get(named.get("eos_token", ""), described.eos_id if described.eos_id >= 0 else None)
    unknown = described.unknown_id
    if max(bos or 0, eos or 0, unknown) >= len(texts) or unknown < 0:
        raise ValueError("its unknown, first or last token is not among its pieces")
    is_bpe = described.model_type == BPE
    before, after = around_by_config(folder, config, bos, eos) or (
        (bos,) if is_bpe and bos is not None else (),
        () if is_bpe or eos is None else (eos,),
    )
    vocabulary = Vocabulary(
        texts=tuple(texts),
        kinds=tuple(kinds),
        spelling="spaces",
        bos_id=bos,
        eos_ids=end_ids(texts, kinds, [eos, *stated_ids(folder, len(texts))]),
        before=before,
        after=after,
        drops_first_space=described.space_prefix,
        shrinks=0 if described.one_space or described.charsmap or not is_bpe else 1,
    )
    if is_bpe:
        merging = scored_merging(vocabulary, scores, unknown, _normalizer(described))
        return vocabulary, CuttingEncoder(vocabulary, merging, leading_space=described.space_prefix)
    encode = unigram(
        vocabulary,
        scores,
        unknown,
        space_prefix=described.space_prefix,
        one_space=described.one_space,
        charsmap=described.charsmap,
    )
    return vocabulary, CuttingEncoder(vocabulary, encode)


def _normalizer(described: SentencePieces) -> Callable[[str], str] | None:
    if not described.charsmap and not described.one_space:
        return None
    charsmap = Charsmap(described.charsmap) if described.charsmap else None

    def normalize(text: str) -> str:
        text = charsmap.normalize(text) if charsmap is not None else text
        if not described.one_space:
            return text
        words = " ".join(word for word in text.split(" ") if word)
        return " " + words if described.space_prefix and words and text.startswith(" ") else words

    return normalize


def _add_tokens(folder: Folder, added: object, texts: list[str], kinds: list[int], scores: list[float]) -> None:
    if added is None:
        return
    if not isinstance(added, dict):
        folder.fail(f"tokenizer_config.json: 'added_tokens_decoder' is {brief(added)}; expected an object")
    for key, token in added.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not key.isdecimal() or not 0 <= int(key) < (1 << 24) or not isinstance(content, str) or not content:
            folder.fail(f"tokenizer_config.json: 'added_tokens_decoder' has {clipped(str((key, token)))}")
        index = int(key)
        missing = index + 1 - len(texts)
        texts += [""] * missing
        kinds += [UNUSED] * missing
        scores += [0.0] * missing
        texts[index] = content
        kinds[index] = CONTROL if token.get("special") else USER_DEFINED


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message: whole numbers, or the bytes of everything else."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        match key & 7:
            case 0:
                number, at = _varint(content, at)
                yield key >> 3, number
            case 1 | 2 | 5:
                size, at = (8, at) if key & 7 == 1 else (4, at) if key & 7 == 5 else _varint(content, at)
                if size > len(content) - at:
                    raise ValueError(f"at byte {at}: a field of {size} bytes, of which {len(content) - at} are there")
                yield key >> 3, content[at : at + size]
                at += size
            case kind:
                raise ValueError(f"at byte {at}: a field of kind {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number, negative ones as 64 bits of two's complement, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends within a number")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return (value - (1 << 64) if value >> 63 else value), at
    raise ValueError(f"at byte {at}: a number without an end")


def _message(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else _wrong("a number where a message should be")


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else _wrong("a message where a number should be")


def _wrong(what: str) -> NoReturn:
    raise ValueError(what)
