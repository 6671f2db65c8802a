"""The tokenizer in a GGUF file's metadata.

Kinds: "gpt2" (byte-level pair merging, with a pre-tokenizer's name), "llama" (SentencePiece: merging by scores),
"gemma4" (merging by ranks on text with visible spaces) and "t5" (unigrams). Which rules each implies where a file is
silent is the convention that such files are written by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from puna.errors import ModelFileError
from puna.models.encoders import CuttingEncoder, Encoder, library_errors, ranked_merging, scored_merging, unigram
from puna.models.facts import Facts
from puna.models.model_file import ModelFile
from puna.models.pretokenizers import LINES, PRE_TOKENIZERS, PreTokenizer
from puna.models.vocabulary import NORMAL, Spelling, Vocabulary, end_ids


class _Kind(NamedTuple):
    """How a kind of tokenizer is called for people, and what holds where a file does not say."""

    name: str
    spelling: Spelling
    add_bos: bool
    add_eos: bool
    space_prefix: bool


KINDS = {
    "gpt2": _Kind("byte-level BPE", "characters", False, False, False),
    "llama": _Kind("SentencePiece BPE", "spaces", True, False, True),
    "gemma4": _Kind("SentencePiece BPE, ranked", "spaces", True, False, False),
    "t5": _Kind("SentencePiece unigram", "spaces", False, True, True),
}


def gguf_tokenizer(file: ModelFile) -> tuple[Vocabulary, Encoder]:
    """Raises ModelFileError where the metadata describe no tokenizer that Puna can use."""
    vocabulary = read_vocabulary(file)
    try:
        return vocabulary, _encoder(file, vocabulary)
    except ValueError as error:
        file.fail(f"the vocabulary contradicts itself: {error}")


def _encoder(file: ModelFile, vocabulary: Vocabulary) -> Encoder:
    """Raises ModelFileError, or ValueError where the library does not take it."""
    facts = vocabulary_facts(file)
    space_prefix = vocabulary.drops_first_space
    match facts.text("model"):
        case "llama":
            unknown = _token_id(file, "unknown", vocabulary.texts)
            merging = scored_merging(vocabulary, _scores(file, vocabulary), unknown)
            return CuttingEncoder(vocabulary, merging, leading_space=space_prefix)
        case "t5":
            scores = _scores(file, vocabulary)
            unknown_id = facts.integer("unknown_token_id", 2, least=0, most=len(vocabulary.texts) - 1)
            one_space = facts.flag("remove_extra_whitespaces", False)
            charsmap = _bytes(file, "tokenizer.ggml.precompiled_charsmap")
            with library_errors():
                encode = unigram(
                    vocabulary,
                    scores,
                    unknown_id,
                    space_prefix=space_prefix,
                    one_space=one_space,
                    charsmap=charsmap,
                )
            return CuttingEncoder(vocabulary, encode)
        case _:
            merges, cut = _merges(file), _cut(file)
            with library_errors():
                return CuttingEncoder(vocabulary, ranked_merging(vocabulary, merges, cut))


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
    named = f"{KINDS[kind].name} ({cut})" if kind == "gpt2" else KINDS[kind].name
    return f"{named}, {tokens} tokens"


def read_vocabulary(file: ModelFile) -> Vocabulary:
    """Raises ModelFileError."""
    facts = vocabulary_facts(file)
    model = facts.text("model")
    if model not in KINDS:
        file.fail(f"the tokenizer is of kind {model!r}; Puna reads: {', '.join(map(repr, KINDS))}")
    kind = KINDS[model]
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(_strings(file, "tokenizer.ggml.tokens"))]
    if len(set(texts)) != len(texts):
        seen: set[str] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        file.fail(f"the vocabulary has the token {twice!r} twice; expected each token once")
    kinds = _token_kinds(file, len(texts))
    bos, eos = (_token_id(file, name, texts) for name in ("bos", "eos"))
    bos, eos = _conventional(model, texts, bos, eos)
    ends = end_ids(texts, kinds, [eos, *(_token_id(file, name, texts) for name in ("eot", "eom"))])
    adds_bos = facts.flag("add_bos_token", kind.add_bos or (model == "gpt2" and _cut(file).add_bos))
    adds_eos = facts.flag("add_eos_token", kind.add_eos)
    return Vocabulary(
        texts=tuple(texts),
        kinds=kinds,
        spelling=kind.spelling,
        bos_id=bos,
        eos_ids=ends,
        before=(bos,) if adds_bos and bos is not None else (),
        after=ends[:1] if adds_eos else (),
        drops_first_space=facts.flag("add_space_prefix", True) if kind.space_prefix else False,
        shrinks=0 if model == "t5" else 1,
    )


def _conventional(model: str, texts: Sequence[str], bos: int | None, eos: int | None) -> tuple[int | None, int | None]:
    """SentencePiece's own first tokens are <unk>, <s>, </s>; a file of that kind need not name them."""
    if model == "llama" and len(texts) > 2:
        return 1 if bos is None else bos, 2 if eos is None else eos
    if model == "t5" and len(texts) > 1:
        return bos, 1 if eos is None else eos
    return bos, eos


def _cut(file: ModelFile) -> PreTokenizer:
    facts = vocabulary_facts(file)
    if facts.text("model") == "gemma4":
        return LINES
    pre = facts.text("pre", "default")
    if pre not in PRE_TOKENIZERS:
        file.fail(f"the pre-tokenizer {pre!r} is not known; known: {', '.join(sorted(PRE_TOKENIZERS))}")
    return PRE_TOKENIZERS[pre]


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


def _scores(file: ModelFile, vocabulary: Vocabulary) -> list[float]:
    scores, count = file.metadata.get("tokenizer.ggml.scores"), len(vocabulary.texts)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu" or len(scores) != count:
        file.fail(f"metadata 'tokenizer.ggml.scores' has to be {count} numbers, one a token")
    if not np.isfinite(scores).all():
        file.fail("metadata 'tokenizer.ggml.scores' has an entry that is no finite number")
    return [float(score) for score in scores.tolist()]


def _bytes(file: ModelFile, key: str) -> bytes:
    value = file.metadata.get(key)
    if value is None:
        return b""
    if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1:
        file.fail(f"metadata {key!r} has to be bytes")
    return value.tobytes()


def _merges(file: ModelFile) -> list[tuple[str, str]]:
    return list(dict.fromkeys(_split_merge(file, merge) for merge in _strings(file, "tokenizer.ggml.merges")))


def _split_merge(file: ModelFile, merge: str) -> tuple[str, str]:
    space = merge.find(" ", 1)
    if space < 0:
        file.fail(f"the merge {merge!r} has to be two tokens with a space between them")
    return merge[:space], merge[space + 1 :]


def _token_id(file: ModelFile, name: str, texts: Sequence[str]) -> int | None:
    facts, key = vocabulary_facts(file), f"{name}_token_id"
    return facts.integer(key, least=0, most=len(texts) - 1) if facts.has(key) else None
